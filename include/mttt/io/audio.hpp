// Sound files: wav, flac and whatever else libsndfile reads, in; wav and flac, out. Resampling through soxr.
//
// Nothing is converted behind the caller's back: rate and channels change only where the name or an argument
// of a function says so.
//
// Shapes:  samples are interleaved, (frames, channels).
// Units:   samples in [-1, 1] for integer formats, as stored for float ones; sample_rate in Hz; a frame is
//          one sample of every channel.
// Errors:  missing, empty and unreadable files; wav and flac that lack even a byte of what their header
//          promises; small files that would fill the memory; NaN or infinity, with its position; formats that
//          cannot hold the sound; over 16 times the rate, under 1/256. Writers are atomic: see
//          write_file_atomically.
// Not supported: noticing that files of other formats are cut short; raw files without a header; pipes;
//          streaming resampling. Link with -lsndfile -lsoxr.
// Source:  libsndfile API; soxr.h; WAVE and RF64 chunk layout of EBU Tech 3306.
#pragma once

#include <sndfile.h>
#include <soxr.h>

#include <cmath>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

#include "mttt/io/file.hpp"

namespace mttt {

struct Audio {
  std::vector<float> samples;  // (frames, channels)
  int channels = 1;
  int sample_rate = 0;  // Hz

  std::size_t frames() const { return samples.size() / static_cast<std::size_t>(channels); }
  double seconds() const { return static_cast<double>(frames()) / sample_rate; }
};

namespace detail {

inline std::string format_text(int sample_rate, int channels) {
  return cat(sample_rate, " Hz, ", channels == 1 ? "mono" : cat(channels, " channels"));
}

inline void check_finite(std::string_view subject, std::span<const float> samples, int channels,
                         std::uint64_t first_frame = 0) {
  for (std::size_t i = 0; i < samples.size(); ++i) {
    if (std::isfinite(samples[i])) continue;
    const auto wide = static_cast<std::size_t>(channels);
    fail(subject, cat(samples[i], " at frame ", first_frame + i / wide, ", channel ", i % wide),
         "finite samples", "repair the recording or the program that made it");
  }
}

/// libsndfile shortens what a truncated wav promises without a word, so the promise is read here. Unknown
/// lengths (a wav written to a pipe says 2 or 4 GiB) pass.
inline void check_wav_complete(const std::string& path, const FileReader& file) {
  const auto load = [&]<class T>(std::uint64_t at, T value) {
    if (at + sizeof value <= file.bytes()) file.read(at, std::as_writable_bytes(std::span(&value, 1)));
    return std::uint64_t{value};
  };
  const auto tag = [&](std::uint64_t at) {
    std::string text(at + 4 <= file.bytes() ? 4 : 0, ' ');
    file.read(at, std::as_writable_bytes(std::span(text)));
    return text;
  };
  if ((tag(0) != "RIFF" && tag(0) != "RF64") || tag(8) != "WAVE") return;
  std::uint64_t wide_size = 0;  // of the data chunk of an RF64 file
  for (std::uint64_t at = 12; at + 8 <= file.bytes();) {
    std::uint64_t size = load(at + 4, std::uint32_t{0});
    if (tag(at) == "ds64") wide_size = load(at + 16, std::uint64_t{0});
    if (tag(at) == "data") {
      const bool unknown = size >= 0x7ffff000u && wide_size == 0;
      if (size == 0xffffffffu && wide_size != 0) size = wide_size;
      const std::uint64_t held = file.bytes() - at - 8;
      if (unknown || size <= held) return;
      fail(path, cat(held, " bytes of sound"), cat(size, " bytes, as its header says"),
           "the file is truncated: fetch or record it again");
    }
    at += 8 + size + size % 2;
  }
}

/// A byte of a compressed file may stand for a thousand samples, but then they are silence. Beyond this many
/// samples (64 MB), a file that unfolds like that is refused.
inline constexpr std::uint64_t sound_always_read = 1 << 24, most_samples_per_byte = 250;
/// A header says any rate it likes: from 1 Hz to 24 kHz, a small file would fill the memory.
inline constexpr int largest_rise = 16, largest_fall = 256;

}  // namespace detail

/// Reads a sound file piece by piece.
class AudioReader {
 public:
  explicit AudioReader(const std::filesystem::path& path) : path_(path.string()) {
    const FileReader file(path);
    bytes_ = file.bytes();
    if (bytes_ == 0) fail(path_, "an empty file", "a sound file", "record or fetch it again");
    file_.reset(sf_open(path.c_str(), SFM_READ, &info_));
    if (!file_) {
      fail(path_, detail::cat("'", sf_strerror(nullptr), "'"),
           "a wav, flac or other file that libsndfile reads",
           "check that it is a complete sound file, or convert it to wav");
    }
    detail::check_wav_complete(path_, file);
    if (info_.channels < 1 || info_.samplerate < 1) {
      fail(path_, detail::format_text(info_.samplerate, info_.channels), "a rate and channels above 0",
           "the header is damaged");
    }
  }

  int channels() const { return info_.channels; }
  int sample_rate() const { return info_.samplerate; }
  /// Of the file.
  std::uint64_t bytes() const { return bytes_; }
  /// What the header promises; a file written to a pipe may not know.
  std::optional<std::uint64_t> frames() const {
    if (info_.frames <= 0 || info_.frames == SF_COUNT_MAX) return std::nullopt;
    return static_cast<std::uint64_t>(info_.frames);
  }

  /// Fills `out`, a multiple of channels() long, with the next frames and answers how many; fewer only at the
  /// end, then 0.
  std::size_t read(std::span<float> out) {
    const auto wide = static_cast<std::size_t>(info_.channels);
    const auto got = sf_readf_float(file_.get(), out.data(), static_cast<sf_count_t>(out.size() / wide));
    const auto count = static_cast<std::size_t>(std::max<sf_count_t>(got, 0));
    if (sf_error(file_.get()) != SF_ERR_NO_ERROR) damaged(sf_strerror(file_.get()), count);
    // The length of an mp3 is an estimate, that of the others a promise.
    const bool exact = (info_.format & SF_FORMAT_TYPEMASK) != SF_FORMAT_MPEG;
    if (count < out.size() / wide && exact && frames() && position_ + count < *frames())
      damaged("end of file", count);
    detail::check_finite(path_, out.first(count * wide), info_.channels, position_);
    position_ += count;
    return count;
  }

 private:
  struct Close {
    void operator()(SNDFILE* file) const { sf_close(file); }
  };
  [[noreturn]] void damaged(std::string_view what, std::size_t count) const {
    fail(path_, detail::cat("'", what, "' after ", position_ + count, " frames"),
         frames() ? detail::cat(*frames(), " frames, as its header says") : "sound up to the end",
         "the file is truncated or damaged: fetch or record it again");
  }

  std::string path_;
  SF_INFO info_{};
  std::unique_ptr<SNDFILE, Close> file_;
  std::uint64_t bytes_ = 0, position_ = 0;
};

inline Audio read_audio(const std::filesystem::path& path) {
  AudioReader reader(path);
  Audio audio{{}, reader.channels(), reader.sample_rate()};
  const auto wide = static_cast<std::size_t>(audio.channels);
  // The promised length is not trusted with memory before the samples are seen.
  const std::size_t block = std::max<std::size_t>(1, (1 << 16) / wide);
  for (std::size_t got = 1; got > 0;) {
    const std::size_t have = audio.samples.size();
    if (have > detail::sound_always_read && have / detail::most_samples_per_byte > reader.bytes()) {
      fail(path.string(), detail::cat("over ", have, " samples in ", reader.bytes(), " bytes"),
           detail::cat("at most ", detail::most_samples_per_byte, " samples a byte"),
           "it is nearly all silence or made to fill the memory: read it piece by piece, with AudioReader");
    }
    audio.samples.resize(have + block * wide);
    got = reader.read(std::span(audio.samples).subspan(have));
    audio.samples.resize(have + got * wide);
  }
  if (audio.samples.empty()) fail(path.string(), "no samples", "at least one", "record or fetch it again");
  return audio;
}

/// The strict way: refuses any other rate or number of channels.
inline void expect_format(const Audio& audio, int sample_rate, int channels,
                          std::string_view subject = "audio") {
  if (audio.sample_rate == sample_rate && audio.channels == channels) return;
  fail(subject, detail::format_text(audio.sample_rate, audio.channels),
       detail::format_text(sample_rate, channels),
       "convert it first, or ask for the conversion (resample, to_mono, load_mono with Convert::yes)");
}

enum class Mono { average, left, right };

inline Audio to_mono(const Audio& audio, Mono policy = Mono::average) {
  const auto wide = static_cast<std::size_t>(audio.channels);
  if (policy == Mono::right && wide < 2)
    fail("to_mono", "mono", "a right channel", "use Mono::average or Mono::left");
  Audio out{std::vector<float>(audio.frames()), 1, audio.sample_rate};
  for (std::size_t i = 0; i < out.samples.size(); ++i) {
    const float* frame = audio.samples.data() + i * wide;
    float sum = 0;
    for (std::size_t c = 0; c < wide; ++c) sum += frame[c];
    out.samples[i] = policy == Mono::average ? sum / static_cast<float>(wide) : frame[policy == Mono::right];
  }
  return out;
}

/// Converts the rate, without delay: frame t of the input is found at t * rate / audio.sample_rate of the
/// output, which is ceil(frames * rate / audio.sample_rate) long.
inline Audio resample(const Audio& audio, int sample_rate) {
  if (sample_rate < 1 || audio.sample_rate < 1) {
    fail("resample", detail::cat(audio.sample_rate, " Hz to ", sample_rate, " Hz"), "rates above 0",
         "check both rates");
  }
  if (sample_rate / detail::largest_rise > audio.sample_rate ||
      audio.sample_rate / detail::largest_fall > sample_rate) {
    fail("resample", detail::cat(audio.sample_rate, " Hz to ", sample_rate, " Hz"),
         detail::cat("at most ", detail::largest_rise, " times the rate, at least 1/", detail::largest_fall),
         "check both rates: the header of the file may be damaged");
  }
  if (audio.sample_rate == sample_rate || audio.samples.empty())
    return {audio.samples, audio.channels, sample_rate};
  const auto from = static_cast<std::uint64_t>(audio.sample_rate),
             to = static_cast<std::uint64_t>(sample_rate);
  const auto frames = static_cast<std::size_t>((audio.frames() * to + from - 1) / from);
  const auto wide = static_cast<std::size_t>(audio.channels);
  Audio out{std::vector<float>(frames * wide), audio.channels, sample_rate};
  const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
  std::size_t done = 0;
  const soxr_error_t error = soxr_oneshot(
      audio.sample_rate, sample_rate, static_cast<unsigned>(audio.channels), audio.samples.data(),
      audio.frames(), nullptr, out.samples.data(), frames, &done, nullptr, &quality, nullptr);
  if (error != nullptr)
    fail("resample", detail::cat("'", error, "' from soxr"), "a conversion that soxr can do",
         "check both rates");
  return out;
}

enum class Convert { no, yes };

/// Reads a file as mono at `sample_rate`; anything else is refused, or converted with Convert::yes.
inline Audio load_mono(const std::filesystem::path& path, int sample_rate, Convert convert = Convert::no,
                       Mono policy = Mono::average) {
  Audio audio = read_audio(path);
  if (convert == Convert::no) expect_format(audio, sample_rate, 1, path.string());
  if (audio.channels != 1) audio = to_mono(audio, policy);
  if (audio.sample_rate != sample_rate) audio = resample(audio, sample_rate);
  return audio;
}

namespace detail {

/// Lets libsndfile write through a FileSink; errors are kept, since no exception may cross C code.
struct SndfileSink {
  FileSink& sink;
  std::exception_ptr error;

  static SndfileSink& self(void* user) { return *static_cast<SndfileSink*>(user); }
  static sf_count_t length(void* user) {
    struct stat status {};
    return ::fstat(self(user).sink.descriptor(), &status) == 0 ? status.st_size : -1;
  }
  static sf_count_t seek(sf_count_t offset, int whence, void* user) {
    return ::lseek(self(user).sink.descriptor(), offset, whence);
  }
  static sf_count_t tell(void* user) { return seek(0, SEEK_CUR, user); }
  static sf_count_t read(void* data, sf_count_t bytes, void* user) {
    return ::read(self(user).sink.descriptor(), data, static_cast<std::size_t>(bytes));
  }
  static sf_count_t write(const void* data, sf_count_t bytes, void* user) {
    try {
      self(user).sink.write(std::span(static_cast<const std::byte*>(data), static_cast<std::size_t>(bytes)));
      return bytes;
    } catch (...) {
      if (!self(user).error) self(user).error = std::current_exception();
      return 0;
    }
  }
};

inline void write_sndfile(FileSink& sink, const std::string& path, const Audio& audio, SF_INFO info,
                          const std::vector<short>& pcm) {
  SndfileSink state{sink, nullptr};
  SF_VIRTUAL_IO io{SndfileSink::length, SndfileSink::seek, SndfileSink::read, SndfileSink::write,
                   SndfileSink::tell};
  SNDFILE* file = sf_open_virtual(&io, SFM_WRITE, &info, &state);
  if (file == nullptr && !state.error)
    fail(path, cat("'", sf_strerror(nullptr), "'"), "a file libsndfile can write", "try wav");
  sf_count_t done = 0;
  if (file != nullptr) {
    sf_command(file, SFC_SET_ADD_PEAK_CHUNK, nullptr,
               SF_FALSE);  // it holds the time of day: equal sound, equal bytes
    const auto frames = static_cast<sf_count_t>(audio.frames());
    done = pcm.empty() ? sf_writef_float(file, audio.samples.data(), frames)
                       : sf_writef_short(file, pcm.data(), frames);
    sf_close(file);
  }
  if (state.error) std::rethrow_exception(state.error);
  if (done != static_cast<sf_count_t>(audio.frames()))
    fail(path, cat(done, " frames written"), cat(audio.frames()), "try again");
}

}  // namespace detail

enum class SampleFormat { pcm16, float32 };

/// Writes .wav (pcm16 or float32) or .flac (pcm16), by the name's ending. Answers how many samples lay
/// outside [-1, 1] and were clipped; float32 clips nothing.
inline std::size_t write_audio(const std::filesystem::path& path, const Audio& audio,
                               SampleFormat format = SampleFormat::pcm16) {
  const std::string name = path.string(), ending = path.extension().string();
  const bool flac = ending == ".flac";
  if (!flac && ending != ".wav")
    fail(name, "the ending " + detail::quote(ending), ".wav or .flac", "choose one of these");
  if (flac && format == SampleFormat::float32)
    fail(name, "float32 samples", "pcm16 for flac", "write a wav to keep floats");
  SF_INFO info{};
  info.channels = audio.channels;
  info.samplerate = audio.sample_rate;
  info.format = (flac ? SF_FORMAT_FLAC : SF_FORMAT_WAV) |
                (format == SampleFormat::pcm16 ? SF_FORMAT_PCM_16 : SF_FORMAT_FLOAT);
  if (audio.channels < 1 || audio.sample_rate < 1 || sf_format_check(&info) == 0) {
    fail(name, detail::format_text(audio.sample_rate, audio.channels),
         "a rate and channels that the format holds", "check the sound");
  }
  const auto wide = static_cast<std::size_t>(audio.channels);
  if (audio.samples.empty() || audio.samples.size() % wide != 0) {
    fail(name, detail::cat(audio.samples.size(), " samples"), detail::cat("one or more frames of ", wide),
         "check the sound");
  }
  if (!flac && audio.samples.size() > 1'000'000'000 / (format == SampleFormat::pcm16 ? 1 : 2)) {
    fail(name, detail::cat(audio.samples.size(), " samples"), "less than 2 GB of sound in a wav",
         "write a flac, or several files");
  }
  detail::check_finite(name, audio.samples, audio.channels);
  std::vector<short> pcm;
  std::size_t clipped = 0;
  if (format == SampleFormat::pcm16) {
    pcm.reserve(audio.samples.size());
    for (const float sample : audio.samples) {
      clipped += std::abs(sample) > 1;
      pcm.push_back(static_cast<short>(std::lrint(std::clamp(sample * 32768.0f, -32768.0f, 32767.0f))));
    }
  }
  write_file_atomically(path, [&](FileSink& sink) { detail::write_sndfile(sink, name, audio, info, pcm); });
  return clipped;
}

}  // namespace mttt
