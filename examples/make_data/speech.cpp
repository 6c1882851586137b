#include "speech.hpp"

#include <algorithm>
#include <cmath>

#include "mttt/core/error.hpp"
#ifdef MTTT_HAS_AUDIO
#include "g722.hpp"
#include "mttt/io/audio.hpp"
#endif

Person person_of(const std::string& text) {
  const auto equals = text.find('='), colon = text.find(':', equals == text.npos ? 0 : equals);
  if (equals == 0 || equals == text.npos)
    mttt::fail("speaker", "'" + text + "'", "NAME=FOLDER or NAME=FOLDER:PART");
  return {text.substr(0, equals), colon == text.npos ? "" : text.substr(colon + 1),
          text.substr(equals + 1, colon == text.npos ? colon : colon - equals - 1)};
}

#ifdef MTTT_HAS_AUDIO
namespace {
namespace fs = std::filesystem;

std::vector<fs::path> sounds_of(const Person& person) {
  std::vector<fs::path> sounds;
  for (const auto& file : fs::recursive_directory_iterator(person.folder)) {
    const auto ending = file.path().extension();
    const bool sound =
        ending == ".g722" || ending == ".wav" || ending == ".ogg" || ending == ".flac" || ending == ".opus";
    // In Asterisk's folders silence is a sound too.
    if (sound && file.path().string().find(person.part, person.folder.string().size()) != std::string::npos &&
        file.path().parent_path().filename() != "silence")
      sounds.push_back(file.path());
  }
  std::sort(sounds.begin(), sounds.end());
  if (sounds.empty()) mttt::fail(person.folder.string(), "no sound files", "g722, wav, ogg, flac or opus");
  return sounds;
}

std::vector<float> read_sound(const fs::path& path) {
  mttt::Audio audio;
  if (path.extension() == ".g722") {
    audio = {G722Decoder().decode(mttt::WholeFile(path).text()), 1, 16000};
  } else {
    audio = mttt::to_mono(mttt::read_audio(path));
  }
  return mttt::resample(audio, sample_rate).samples;
}

/// The part that is louder than 30 dB below the loudest 20 ms, at the loudness of all our voices; nothing where
/// there is no speech of 0.3 s.
std::vector<std::int16_t> speech_of(const std::vector<float>& sound) {
  constexpr std::size_t frame = sample_rate / 50;
  std::vector<double> power;
  for (std::size_t at = 0; at + frame <= sound.size(); at += frame) {
    double sum = 0;
    for (std::size_t t = at; t < at + frame; ++t)
      sum += static_cast<double>(sound[t]) * static_cast<double>(sound[t]);
    power.push_back(sum / frame);
  }
  if (power.empty()) return {};
  const double least = *std::max_element(power.begin(), power.end()) / 1000;
  const auto loud = [&](double p) { return p > least; };
  const auto first = std::find_if(power.begin(), power.end(), loud);
  const auto last = std::find_if(power.rbegin(), power.rend(), loud);
  const auto from = static_cast<std::size_t>(std::max<std::ptrdiff_t>(0, first - power.begin() - 2)) * frame,
             to = std::min(sound.size(), static_cast<std::size_t>(power.rend() - last + 3) * frame);
  if (least < 1e-9 || to - from < sample_rate * 3 / 10) return {};
  double sum = 0, peak = 0;
  for (std::size_t t = from; t < to; ++t) {
    const double x = static_cast<double>(sound[t]);
    sum += x * x, peak = std::max(peak, std::abs(x));
  }
  const double gain =
      std::min(voice_loudness / std::sqrt(sum / static_cast<double>(to - from)), voice_peak / peak);
  std::vector<std::int16_t> speech(to - from);
  for (std::size_t t = 0; t < speech.size(); ++t) {
    const double edge = static_cast<double>(std::min({t, speech.size() - 1 - t, frame / 4})) / (frame / 4);
    speech[t] =
        static_cast<std::int16_t>(std::lrint(32767 * gain * edge * static_cast<double>(sound[from + t])));
  }
  return speech;
}
}  // namespace

std::vector<Recording> recordings_of(const Person& person, double length, double most, mttt::Rng& rng) {
  auto sounds = sounds_of(person);
  for (std::size_t i = sounds.size(); i > 1; --i) std::swap(sounds[i - 1], sounds[rng.below(i)]);
  std::vector<Recording> recordings;
  double seconds = 0;
  for (const auto& path : sounds) {
    std::vector<std::int16_t> speech;
    try {
      speech = speech_of(read_sound(path));
    } catch (const mttt::Error& error) {
      std::printf("left out: %s\n", error.what());
    }
    if (speech.empty()) continue;
    if (recordings.empty() || recordings.back().seconds() > length) {
      if (seconds >= most) break;
      recordings.push_back({{}, 1, {}, {}});
    }
    auto& samples = recordings.back().samples;
    samples.insert(samples.end(), speech.begin(), speech.end());
    samples.resize(samples.size() + static_cast<std::size_t>((0.2 + 0.4 * rng.uniform()) * sample_rate));
    seconds += static_cast<double>(speech.size()) / sample_rate;
  }
  return recordings;
}
#else
std::vector<Recording> recordings_of(const Person& person, double, double, mttt::Rng&) {
  mttt::fail(person.name, "a program that was built without libsndfile and soxr", "one with both",
             "build with them");
}
#endif
