// Recordings as the codec reads them, and a codec that nobody has trained.
#pragma once

#include <cstdio>
#include <filesystem>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/codec/codebook_init.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/presets/mimi.hpp"

/// Of all presets.
inline constexpr int codec_rate = 24000;

/// The two voices of a recording one after the other, (2, samples): two sessions of the codec. With `mono`
/// a recording of one channel is taken as the model's voice, to which the user listens in silence.
inline std::vector<float> read_voices(const std::filesystem::path& path, bool mono = false) {
  using namespace mttt;
  Audio audio = read_audio(path);
  if (audio.channels != 2 && !(mono && audio.channels == 1)) {
    fail(path.string(), detail::cat(audio.channels, audio.channels == 1 ? " channel" : " channels"),
         mono ? "1 or 2" : "2: the model's voice left, the user's right",
         audio.channels == 1 ? "add --mono for recordings of one voice" : "separate the speakers first");
  }
  audio = resample(audio, codec_rate);
  if (audio.channels == 1) {
    audio.samples.resize(2 * audio.samples.size(), 0.0f);
    return audio.samples;
  }
  std::vector<float> voices = to_mono(audio, Mono::left).samples;
  const auto right = to_mono(audio, Mono::right).samples;
  voices.insert(voices.end(), right.begin(), right.end());
  return voices;
}

/// Random convolutions and attention, but codebooks placed on what these make of the recordings: codes then
/// say something about the sound, though the sound that they decode to says nothing. `read` gives the voices of
/// a recording, or nothing.
template <class Codec, class B, class Read>
void write_untrained_codec(const std::filesystem::path& path, std::uint64_t seed, const std::string& preset,
                           const std::vector<std::filesystem::path>& recordings, Read&& read) {
  using namespace mttt;
  B be;
  Rng rng(seed);
  Store<typename Codec::Params, B> params(be);
  Codec::init(*params, rng);
  std::vector<float> latents;  // (frames, dimension), of all pieces
  for (const auto& recording : recordings) {
    const std::vector<float> voices = read(recording);
    const auto samples = static_cast<Index>(voices.size());
    constexpr Index piece =
        125 * Codec::frame_size;  // 10 s: whole pieces at once need memory by their length
    for (Index at = 0; at + Codec::frame_size <= samples; at += piece) {
      const Index frames = std::min(piece, samples - at) / Codec::frame_size;
      const auto scope = be.scope();
      const auto latent = be.template make<float, dyn, dyn, Codec::dimension>(1, frames);
      const Tensor<const float, dyn, dyn, 1> sound(voices.data() + at, {1, frames * Codec::frame_size, 1});
      Codec::encode_latent(be, *params, sound, latent);
      latents.insert(latents.end(), latent.data(), latent.data() + latent.size());
    }
  }
  const Index frames = static_cast<Index>(latents.size()) / Codec::dimension;
  init_codebooks<typename Codec::Quantizer>(be, params->quantizer,
                                            {latents.data(), {frames, Codec::dimension}}, rng);
  make_folders(path.parent_path());
  save_params(path, be, params,
              {.config = {{"preset", preset}},
               .metadata = {{"training", "none: random weights, codebooks by k-means"},
                            {"seed", std::to_string(seed)}}});
  std::printf("%s: a new codec; its codebooks fit %td frames of the recordings\n", path.c_str(), frames);
}
