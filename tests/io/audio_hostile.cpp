// Small sound files made to fill the memory.
#include "mttt/io/audio.hpp"
#include "scratch.hpp"

using namespace mttt;

TEST_CASE("hostile sound: a rate from which the memory would be filled") {
  const Scratch scratch;
  // 200 kB that would become 9.6 GB at 24 kHz.
  write_audio(scratch / "a.wav", {std::vector<float>(100'000), 1, 1});
  check_refused([&] { load_mono(scratch / "a.wav", 24000, Convert::yes); }, "found 1 Hz to 24000 Hz");
  check_refused([&] { resample({std::vector<float>(100), 1, 1 << 30}, 24000); }, "at least 1/256");
  CHECK(resample({std::vector<float>(100), 1, 1500}, 24000).frames() == 1600);
  CHECK(resample({std::vector<float>(2560), 1, 256 * 8000}, 8000).frames() == 10);
}

TEST_CASE("hostile sound: silence that unfolds a thousandfold") {
  const Scratch scratch;
  const auto silence = [&](std::size_t samples) {
    write_audio(scratch / "a.flac", {std::vector<float>(samples), 1, 24000});
    return std::filesystem::file_size(scratch / "a.flac");
  };
  // Twenty minutes of it are refused, eleven are not; either may be read piece by piece.
  CHECK(silence(28'800'000) < 120'000);
  check_refused([&] { read_audio(scratch / "a.flac"); }, "at most 250 samples a byte");
  AudioReader reader(scratch / "a.flac");
  std::vector<float> block(1 << 20);
  std::size_t all = 0;
  for (std::size_t got; (got = reader.read(block)) > 0;) all += got;
  CHECK(all == 28'800'000);
  CHECK(silence(15'840'000) < 70'000);
  CHECK(read_audio(scratch / "a.flac").frames() == 15'840'000);
}
