// Hostile sound files: wav and flac, and whatever else libsndfile takes them for.
#include "mttt/io/audio.hpp"
#include "fuzz.hpp"

namespace {
using namespace mttt;
}

void seeds(const std::filesystem::path& folder) {
  for (const int channels : {1, 2}) {
    Audio audio{{}, channels, channels == 1 ? 24000 : 8000};
    for (int i = 0; i < 200 * channels; ++i)
      audio.samples.push_back(0.5f * std::sin(0.3f * static_cast<float>(i)));
    const std::string number = std::to_string(channels);
    write_audio(folder / (number + ".wav"), audio);
    write_audio(folder / (number + "-float.wav"), audio, SampleFormat::float32);
    write_audio(folder / (number + ".flac"), audio);
  }
  write_audio(folder / "silence.flac", {std::vector<float>(50000), 1, 24000});
}

void try_file(const std::filesystem::path& path, std::span<const std::byte>) {
  fuzz::accepted([&] {
    const Audio audio = read_audio(path);
    if (audio.channels < 1 || audio.sample_rate < 1 || audio.frames() < 1) std::abort();
  });
  fuzz::accepted([&] {
    AudioReader reader(path);
    std::vector<float> block(static_cast<std::size_t>(7 * reader.channels()));
    for (int i = 0; i < 10 && reader.read(block) > 0; ++i) continue;
  });
  for (const Mono policy : {Mono::average, Mono::right})
    fuzz::accepted([&] { load_mono(path, 24000, Convert::yes, policy); });
}
