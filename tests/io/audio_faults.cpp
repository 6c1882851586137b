// Faults in sound: every kind of wav that is not what the model hears, NaN, damage, pipes, files that shrink.
#include <sys/stat.h>
#include <sys/wait.h>

#include "mttt/io/audio.hpp"
#include "scratch.hpp"

namespace {
using namespace mttt;

template <class T>
std::string bytes_of(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

/// A wav by hand. tag 1: whole numbers, 3: floats.
std::string wav(int tag, int channels, int rate, int bits, const std::string& data) {
  const int frame = channels * bits / 8;
  const std::string format =
      bytes_of(static_cast<std::uint16_t>(tag)) + bytes_of(static_cast<std::uint16_t>(channels)) +
      bytes_of(rate) + bytes_of(static_cast<std::uint32_t>(std::int64_t{rate} * frame)) +
      bytes_of(static_cast<std::uint16_t>(frame)) + bytes_of(static_cast<std::uint16_t>(bits));
  return "RIFF" + bytes_of(static_cast<std::uint32_t>(36 + data.size())) + "WAVEfmt " + bytes_of(16) +
         format + "data" + bytes_of(static_cast<std::uint32_t>(data.size())) + data;
}

/// 1000 frames of a ramp from -0.5 to 0.5 in every channel, as `Sample`.
template <class Sample, class F>
std::string ramp(int channels, F convert) {
  std::string data;
  for (int i = 0; i < 1000; ++i) {
    for (int c = 0; c < channels; ++c) data += bytes_of(static_cast<Sample>(convert(i / 1000.0 - 0.5)));
  }
  return data;
}

}  // namespace

TEST_CASE("wav of any width, rate and channels is heard; what is wanted exactly is refused by name", "[io]") {
  const Scratch scratch;
  const auto eight = [](double x) { return std::lrint(128 + 128 * x); };
  const auto pcm = [](double x) { return std::lrint(32768 * x); };
  const auto same = [](double x) { return x; };
  const auto wide = [](double x) { return std::lrint(2147483648.0 * x); };
  struct Case {
    std::string file;
    int channels, rate;
    double error;
  };
  const Case cases[] = {{wav(1, 1, 24000, 8, ramp<std::uint8_t>(1, eight)), 1, 24000, 0.5 / 128},
                        {wav(1, 2, 8000, 8, ramp<std::uint8_t>(2, eight)), 2, 8000, 0.5 / 128},
                        {wav(1, 2, 44100, 16, ramp<std::int16_t>(2, pcm)), 2, 44100, 0.5 / 32768},
                        {wav(1, 1, 48000, 32, ramp<std::int32_t>(1, wide)), 1, 48000, 1e-7},
                        {wav(3, 1, 16000, 32, ramp<float>(1, same)), 1, 16000, 1e-7},
                        {wav(3, 6, 96000, 64, ramp<double>(6, same)), 6, 96000, 1e-7}};
  for (const auto& [file, channels, rate, error] : cases) {
    INFO(channels << " channels, " << rate << " Hz");
    const auto path = scratch.put("a.wav", file);
    const Audio audio = read_audio(path);
    CHECK(audio.channels == channels);
    CHECK(audio.sample_rate == rate);
    REQUIRE(audio.frames() == 1000);
    for (std::size_t i = 0; i < 1000; ++i)
      CHECK(std::abs(audio.samples[i * static_cast<std::size_t>(channels)] -
                     (static_cast<double>(i) / 1000 - 0.5)) <= error);
    if (rate != 24000 || channels != 1)
      check_refused([&] { load_mono(path, 24000); },
                    detail::format_text(rate, channels) + "; expected 24000 Hz, mono; convert it first");
    const Audio heard = load_mono(path, 24000, Convert::yes);
    expect_format(heard, 24000, 1);
    CHECK(heard.frames() == (1000u * 24000 + static_cast<unsigned>(rate) - 1) / static_cast<unsigned>(rate));
  }
}

TEST_CASE("NaN and infinity in float sound of both widths are refused with their place", "[io]") {
  const Scratch scratch;
  for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)}) {
    std::string narrow = ramp<float>(2, [](double x) { return x; }),
                wide = ramp<double>(2, [](double x) { return x; });
    narrow.replace((2 * 700 + 1) * 4, 4, bytes_of(static_cast<float>(bad)));
    wide.replace((2 * 700 + 1) * 8, 8, bytes_of(bad));
    for (const auto& file : {wav(3, 2, 24000, 32, narrow), wav(3, 2, 24000, 64, wide)})
      check_refused([&] { read_audio(scratch.put("a.wav", file)); },
                    "at frame 700, channel 1; expected finite");
  }
  // 1e300 is finite in the file, but no float holds it.
  std::string large = ramp<double>(1, [](double x) { return x; });
  large.replace(5 * 8, 8, bytes_of(1e300));
  check_refused([&] { read_audio(scratch.put("a.wav", wav(3, 1, 24000, 64, large))); }, "inf at frame 5");
}

TEST_CASE("empty and damaged headers are refused; none is believed about its size", "[io]") {
  const Scratch scratch;
  const auto refused = [&](const std::string& file, const std::string& words) {
    check_refused([&] { read_audio(scratch.put("a.wav", file)); }, words);
  };
  const std::string whole = wav(1, 1, 24000, 16, ramp<std::int16_t>(1, [](double x) { return 32768 * x; }));
  refused(wav(1, 1, 24000, 16, ""), "no samples");
  refused(whole.substr(0, 36), "a.wav");  // no data chunk
  refused(whole.substr(0, 44), "0 bytes of sound; expected 2000 bytes");
  for (std::size_t length = 0; length < 44; ++length) {
    INFO("cut after " << length);
    CHECK_THROWS_AS(read_audio(scratch.put("a.wav", whole.substr(0, length))), Error);
  }
  for (const auto& file :
       {wav(1, 0, 24000, 16, "xx"), wav(1, 1, 0, 16, "xx"), wav(1, 1, -1, 16, "xx"),
        wav(1, 1, 24000, 0, "xx"), wav(77, 1, 24000, 16, "xx"), wav(1, 65535, 24000, 16, "xx")}) {
    CHECK_THROWS_AS(read_audio(scratch.put("a.wav", file)), Error);
  }
  std::string liar = whole;
  liar.replace(40, 4, bytes_of(0x7ffffff0u - 0x1000u));
  refused(liar, "2000 bytes of sound; expected 2147479536 bytes");
}

TEST_CASE("sound that is shortened while it is read, and pipes that stall, are errors", "[io]") {
  const Scratch scratch;
  Audio audio{std::vector<float>(200'000), 1, 24000};
  for (std::size_t i = 0; i < audio.samples.size(); ++i)
    audio.samples[i] =
        static_cast<float>(static_cast<double>(i * 7919 % 1000) / 1000 - 0.5);  // hard to compress
  for (const char* name : {"a.wav", "a.flac"}) {
    INFO(name);
    write_audio(scratch / name, audio);
    AudioReader reader(scratch / name);
    std::vector<float> piece(1000);
    CHECK(reader.read(piece) == 1000);
    std::filesystem::resize_file(scratch / name, std::filesystem::file_size(scratch / name) / 2);
    check_refused(
        [&] {
          while (reader.read(piece) > 0) {
          }
        },
        "the file is truncated or damaged");
  }
  const auto pipe = scratch / "pipe.wav";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {  // an open that waited would wait for ever: in a child that an alarm ends
    ::alarm(10);
    const std::string message = error_of([&] { read_audio(pipe); });
    ::_exit(message.find("found a pipe or a device; expected a regular file") != std::string::npos ? 0 : 1);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  check_refused([&] { write_audio(pipe, audio); }, "a folder or a device");
  CHECK(scratch.files() == 3);
}
