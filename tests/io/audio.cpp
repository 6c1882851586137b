// Sound: round trips, conversion of rate and channels, and files that must be refused.
#include "mttt/io/audio.hpp"

#include <numbers>
#include <random>

#include "scratch.hpp"

using mttt::Audio;

namespace {

/// A sine of `hertz` in every channel, half as loud in each further one.
Audio sine(double hertz, int sample_rate, int channels, std::size_t frames, double level = 0.5) {
  Audio audio{{}, channels, sample_rate};
  for (std::size_t t = 0; t < frames; ++t) {
    for (int c = 0; c < channels; ++c) {
      const double phase = 2 * std::numbers::pi * hertz * static_cast<double>(t) / sample_rate;
      audio.samples.push_back(static_cast<float>(std::ldexp(level, -c) * std::sin(phase)));
    }
  }
  return audio;
}

/// Amplitude and phase (of a sine, in radians) of one frequency in one channel, away from the edges.
std::pair<double, double> tone(const Audio& audio, double hertz, std::size_t channel = 0) {
  double re = 0, im = 0, weight = 0;
  const std::size_t n = audio.frames();
  for (std::size_t t = n / 8; t < n - n / 8; ++t) {
    const double x = (static_cast<double>(t) / static_cast<double>(n) - 0.125) / 0.75;
    const double window = 0.5 - 0.5 * std::cos(2 * std::numbers::pi * x);
    const double phase = 2 * std::numbers::pi * hertz * static_cast<double>(t) / audio.sample_rate;
    const double sample = audio.samples[t * static_cast<std::size_t>(audio.channels) + channel];
    re += window * sample * std::sin(phase);
    im += window * sample * std::cos(phase);
    weight += window / 2;
  }
  return {std::hypot(re, im) / weight, std::atan2(im, re)};
}

float largest_difference(const Audio& a, const Audio& b) {
  REQUIRE(a.samples.size() == b.samples.size());
  float largest = 0;
  for (std::size_t i = 0; i < a.samples.size(); ++i)
    largest = std::max(largest, std::abs(a.samples[i] - b.samples[i]));
  return largest;
}

}  // namespace

TEST_CASE("wav and flac survive a round trip", "[io]") {
  Scratch scratch;
  for (const int channels : {1, 2, 5}) {
    const Audio audio = sine(440, 24000, channels, 5000);
    for (const std::string name : {"a.wav", "a.flac"}) {
      INFO(name << ", " << channels << " channels");
      CHECK(mttt::write_audio(scratch / name, audio) == 0);
      const Audio back = mttt::read_audio(scratch / name);
      CHECK(back.channels == channels);
      CHECK(back.sample_rate == 24000);
      CHECK(back.frames() == 5000);
      CHECK(largest_difference(audio, back) <= 0.5f / 32768);
      // What is already on the 16-bit grid comes back exactly; equal sound gives equal bytes.
      const std::string bytes = content_of(scratch / name);
      mttt::write_audio(scratch / name, back);
      CHECK(content_of(scratch / name) == bytes);
    }
    CHECK(mttt::write_audio(scratch / "f.wav", audio, mttt::SampleFormat::float32) == 0);
    CHECK(mttt::read_audio(scratch / "f.wav").samples == audio.samples);
    const std::string bytes = content_of(scratch / "f.wav");
    mttt::write_audio(scratch / "f.wav", audio, mttt::SampleFormat::float32);
    CHECK(content_of(scratch / "f.wav") == bytes);
  }
  CHECK(scratch.files() == 3);
}

TEST_CASE("clipping is counted", "[io]") {
  Scratch scratch;
  const Audio audio{{0, 1, -1, 1.001f, -2, 100, 0.5f}, 1, 8000};
  CHECK(mttt::write_audio(scratch / "a.wav", audio) == 3);
  const float top = 32767.0f / 32768;
  CHECK(mttt::read_audio(scratch / "a.wav").samples == std::vector<float>{0, top, -1, top, -1, top, 0.5f});
  CHECK(mttt::write_audio(scratch / "b.wav", audio, mttt::SampleFormat::float32) == 0);
  CHECK(mttt::read_audio(scratch / "b.wav").samples == audio.samples);
}

TEST_CASE("a reader gives the same samples in pieces of any size", "[io]") {
  Scratch scratch;
  const Audio audio = sine(300, 16000, 2, 2345);
  for (const std::string name : {"a.wav", "a.flac"}) {
    mttt::write_audio(scratch / name, audio);
    const Audio whole = mttt::read_audio(scratch / name);
    for (const std::size_t piece : {1, 7, 1000, 2345, 5000}) {
      mttt::AudioReader reader(scratch / name);
      CHECK(reader.frames() == 2345);
      CHECK(reader.channels() == 2);
      CHECK(reader.sample_rate() == 16000);
      std::vector<float> samples, buffer(piece * 2);
      for (std::size_t got = 1; got > 0;) {
        got = reader.read(buffer);
        samples.insert(samples.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(2 * got));
      }
      CHECK(samples == whole.samples);
      CHECK(reader.read(buffer) == 0);
    }
  }
}

TEST_CASE("resampling keeps frequency, level and time", "[io]") {
  struct Case {
    int from, to;
    double hertz;
  };
  for (const auto& [from, to, hertz] :
       {Case{44100, 24000, 1000}, Case{44100, 24000, 10000}, Case{48000, 24000, 440},
        Case{16000, 24000, 3000}, Case{8000, 24000, 3000}, Case{24000, 44100, 10000}}) {
    INFO(from << " to " << to << " at " << hertz << " Hz");
    const Audio in = sine(hertz, from, 2, static_cast<std::size_t>(from) + 1);
    const Audio out = mttt::resample(in, to);
    CHECK(out.sample_rate == to);
    CHECK(out.channels == 2);
    CHECK(out.frames() == (in.frames() * static_cast<std::size_t>(to) + static_cast<std::size_t>(from) - 1) /
                              static_cast<std::size_t>(from));
    const auto [level, phase] = tone(out, hertz);
    CHECK(std::abs(20 * std::log10(level / 0.5)) < 0.1);
    CHECK(std::abs(phase) < 0.01);
    CHECK(std::abs(20 * std::log10(tone(out, hertz, 1).first / 0.25)) < 0.1);
    // The peak stays: a note away there is nothing.
    CHECK(tone(out, hertz * 1.06).first < 0.5e-3);
    CHECK(tone(out, hertz / 1.06).first < 0.5e-3);
  }
  // What the new rate cannot hold is gone instead of folded down to 24000 - 15000 Hz.
  const Audio high = mttt::resample(sine(15000, 44100, 1, 44100), 24000);
  CHECK(tone(high, 9000).first < 1e-4);
  CHECK(tone(high, 5000).first < 1e-4);

  const Audio same = sine(440, 24000, 1, 100);
  CHECK(mttt::resample(same, 24000).samples == same.samples);
  CHECK(mttt::resample(sine(440, 44100, 1, 1), 24000).frames() == 1);
  CHECK(mttt::resample(Audio{{}, 1, 44100}, 24000).frames() == 0);
  check_refused([&] { mttt::resample(same, 0); }, "24000 Hz to 0 Hz");
}

TEST_CASE("mono by choice only", "[io]") {
  Scratch scratch;
  const Audio stereo{{1, 0.5f, -1, 0, 0.25f, 0.25f}, 2, 44100};
  CHECK(mttt::to_mono(stereo).samples == std::vector<float>{0.75f, -0.5f, 0.25f});
  CHECK(mttt::to_mono(stereo, mttt::Mono::left).samples == std::vector<float>{1, -1, 0.25f});
  CHECK(mttt::to_mono(stereo, mttt::Mono::right).samples == std::vector<float>{0.5f, 0, 0.25f});
  const Audio mono = mttt::to_mono(stereo);
  CHECK(mttt::to_mono(mono).samples == mono.samples);
  check_refused([&] { mttt::to_mono(mono, mttt::Mono::right); }, "a right channel");

  mttt::expect_format(stereo, 44100, 2);
  check_refused([&] { mttt::expect_format(stereo, 24000, 1, "talk.wav"); },
                "talk.wav: found 44100 Hz, 2 channels; expected 24000 Hz, mono; convert it first");
  check_refused([&] { mttt::expect_format(mono, 24000, 1); }, "found 44100 Hz, mono");

  mttt::write_audio(scratch / "a.wav", sine(1000, 44100, 2, 44100));
  check_refused([&] { mttt::load_mono(scratch / "a.wav", 24000); },
                "a.wav: found 44100 Hz, 2 channels; expected 24000 Hz, mono");
  const Audio converted = mttt::load_mono(scratch / "a.wav", 24000, mttt::Convert::yes);
  mttt::expect_format(converted, 24000, 1);
  CHECK(converted.frames() == 24000);
  CHECK(tone(converted, 1000).first == Approx(0.375).epsilon(0.01));
  const Audio right = mttt::load_mono(scratch / "a.wav", 24000, mttt::Convert::yes, mttt::Mono::right);
  CHECK(tone(right, 1000).first == Approx(0.25).epsilon(0.01));
  mttt::write_audio(scratch / "b.wav", converted, mttt::SampleFormat::float32);
  CHECK(mttt::load_mono(scratch / "b.wav", 24000).samples == converted.samples);
}

TEST_CASE("bad sound files are refused with a reason", "[io]") {
  Scratch scratch;
  const auto read = [&](const std::filesystem::path& path) { return [path] { mttt::read_audio(path); }; };
  check_refused(read(scratch / "none.wav"), "no such file");
  check_refused(read(scratch.folder), "a folder");
  check_refused(read(scratch.put("empty.wav", "")), "an empty file");
  check_refused(read(scratch.put("text.wav", "this is no sound at all")), "a wav, flac or other file");
  std::mt19937 random(2);
  std::string noise(10'000, '\0');
  for (auto& c : noise) c = static_cast<char>(random());
  check_refused(read(scratch.put("noise.flac", noise)), "a wav, flac or other file");
  check_refused(read(scratch.put("noise.flac", "fLaC" + noise)), "noise.flac");

  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Audio audio = sine(440, 24000, 2, 100'000);
    audio.samples[2 * 70'001 + 1] = bad;
    check_refused([&] { mttt::write_audio(scratch / "bad.wav", audio); }, "at frame 70001, channel 1");
    CHECK(!std::filesystem::exists(scratch / "bad.wav"));
    // Planted behind the writer's back: the last bytes of the file are the samples.
    audio.samples[2 * 70'001 + 1] = 0.12345f;
    mttt::write_audio(scratch / "nan.wav", audio, mttt::SampleFormat::float32);
    std::string content = content_of(scratch / "nan.wav");
    const std::size_t at = content.size() - (audio.samples.size() - (2 * 70'001 + 1)) * sizeof(float);
    std::memcpy(content.data() + at, &bad, sizeof bad);
    check_refused(read(scratch.put("nan.wav", content)),
                  "at frame 70001, channel 1; expected finite samples");
  }

  const Audio audio = sine(440, 24000, 1, 100);
  check_refused([&] { mttt::write_audio(scratch / "a.mp3", audio); },
                "the ending '.mp3'; expected .wav or .flac");
  check_refused([&] { mttt::write_audio(scratch / "a", audio); }, "the ending ''");
  check_refused([&] { mttt::write_audio(scratch / "a.flac", audio, mttt::SampleFormat::float32); },
                "pcm16 for flac");
  check_refused([&] { mttt::write_audio(scratch / "a.flac", sine(440, 24000, 9, 100)); },
                "24000 Hz, 9 channels");
  check_refused([&] { mttt::write_audio(scratch / "a.wav", Audio{{1, 2, 3}, 2, 24000}); }, "3 samples");
  check_refused([&] { mttt::write_audio(scratch / "a.wav", Audio{{}, 1, 24000}); }, "0 samples");
  check_refused([&] { mttt::write_audio(scratch / "a.wav", Audio{{0}, 1, 0}); }, "0 Hz");
  check_refused([&] { mttt::write_audio(scratch / "none/a.wav", audio); }, "opening its folder");
  check_refused([&] { mttt::write_audio("/proc/a.wav", audio); }, "creating a temporary file");
}

TEST_CASE("a full disk while writing sound leaves the old file", "[io]") {
  Scratch scratch;
  for (const std::string name : {"a.wav", "a.flac"}) {
    const auto path = scratch.put(name, "old");
    const Audio audio = sine(440, 24000, 1, 100'000);
    {
      const FileSizeLimit limit(1000);
      check_refused([&] { mttt::write_audio(path, audio); }, "make space on that disk");
    }
    CHECK(content_of(path) == "old");
    std::filesystem::remove(path);
    CHECK(scratch.files() == 0);
  }
}

TEST_CASE("sound truncated at any byte is refused", "[io]") {
  Scratch scratch;
  const Audio audio = sine(440, 24000, 2, 100);
  const auto check = [&](const std::string& name, mttt::SampleFormat format) {
    mttt::write_audio(scratch / name, audio, format);
    const std::string whole = content_of(scratch / name);
    for (std::size_t length = 0; length < whole.size(); ++length) {
      INFO(name << " cut after " << length << " of " << whole.size());
      const auto path = scratch.put("cut-" + name, whole.substr(0, length));
      CHECK_THROWS_AS(mttt::read_audio(path), mttt::Error);
    }
    return error_of([&] { mttt::read_audio(scratch.put("cut-" + name, whole.substr(0, whole.size() - 1))); });
  };
  CHECK(check("a.wav", mttt::SampleFormat::pcm16).find("found 399 bytes of sound; expected 400 bytes") !=
        std::string::npos);
  CHECK(check("f.wav", mttt::SampleFormat::float32).find("found 799 bytes of sound") != std::string::npos);
  CHECK(check("a.flac", mttt::SampleFormat::pcm16).find("the file is truncated or damaged") !=
        std::string::npos);
}

TEST_CASE("a wav from a pipe, which does not know its length, is read to the end", "[io]") {
  Scratch scratch;
  const Audio audio = sine(440, 24000, 1, 100);
  mttt::write_audio(scratch / "a.wav", audio);
  std::string content = content_of(scratch / "a.wav");
  const std::size_t data = content.find("data");
  content.replace(data + 4, 4, "\xff\xff\xff\xff");
  content.replace(4, 4, "\xff\xff\xff\xff");
  CHECK(mttt::read_audio(scratch.put("pipe.wav", content)).frames() == 100);
  // Unknown chunks before and after the sound are stepped over.
  content = content_of(scratch / "a.wav");
  content.insert(data, std::string("junk\x03\0\0\0abc\0", 12));
  content += std::string("note\x02\0\0\0hi", 10);
  CHECK(mttt::read_audio(scratch.put("chunks.wav", content)).frames() == 100);
}
