// Sounds: segments of recordings as they are heard, for the training of a codec; micro-batch i is a function
// of (seed, i) alone.
//
// Rule:    segment b of micro-batch i draws Philox at counter i * batch + b: a voice with a chance in
//          proportion to its length, then a first sample after which a whole segment is left. A segment that
//          nothing is to be heard in (no sample reaches `silence`) is drawn again, up to 8 times. Shorter
//          voices are followed by silence. Then a gain, evenly from -gain_db to gain_db, but so that no sample
//          leaves [-1, 1].
// Shapes:  voices (samples) each, pcm (batch, samples, 1).
// Units:   samples within [-1, 1], all of one rate; dB.
// Errors:  no voices; a batch or length below 1.
// Not supported: changes of speed; recordings larger than memory.
// Source:  none.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/core/tensor.hpp"

namespace mttt {

struct SoundOptions {
  Index batch, samples;  // segments a micro-batch, samples a segment
  std::uint64_t seed = 0;
  float silence = 1e-3f;
  double gain_db = 0;
};

class Sounds {
 public:
  Sounds(const std::vector<std::vector<float>>& voices, SoundOptions options)
      : voices_(voices), options_(options) {
    if (options.batch < 1 || options.samples < 1) {
      fail("Sounds",
           std::to_string(options.batch) + " segments of " + std::to_string(options.samples) + " samples",
           "one or more of each", "correct the batch and the length of a segment");
    }
    for (const auto& voice : voices) ends_.push_back(total_samples() + static_cast<Index>(voice.size()));
    if (total_samples() == 0) fail("Sounds", "no sound", "at least one sample", "name some recordings");
  }

  Index total_samples() const { return ends_.empty() ? 0 : ends_.back(); }

  /// Fills pcm in the host's memory.
  void fill(std::int64_t index, Tensor<float, dyn, dyn, 1> pcm) const {
    for (Index b = 0; b < options_.batch; ++b) {
      float* to = &pcm(b, 0, 0);
      const auto counter = static_cast<std::uint64_t>(index * options_.batch + b);
      for (std::uint64_t attempt = 0; attempt < 8 && !draw(counter, attempt, to); ++attempt) {
      }
      if (options_.gain_db > 0) change_level(counter, to);
    }
  }

  /// In the backend's memory, in its arena.
  template <class B>
  Tensor<typename B::Scalar, dyn, dyn, 1> make(B& be, std::int64_t index) const {
    std::vector<float> host(static_cast<std::size_t>(options_.batch * options_.samples));
    fill(index, {host.data(), {options_.batch, options_.samples, 1}});
    const auto pcm = be.template make<typename B::Scalar, dyn, dyn, 1>(options_.batch, options_.samples);
    be.to_device(host.data(), pcm.data(), pcm.size());
    return pcm;
  }

 private:
  /// Whether something is to be heard.
  bool draw(std::uint64_t counter, std::uint64_t attempt, float* to) const {
    const PhiloxBlock random = philox(options_.seed, counter, stream_of_numbers + attempt);
    const auto place = static_cast<Index>(fraction(random.word[0], random.word[1]) * double(total_samples()));
    const auto i =
        static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), place) - ends_.begin());
    const std::vector<float>& voice = voices_[i];
    const Index have = std::min(static_cast<Index>(voice.size()), options_.samples);
    const Index spare = static_cast<Index>(voice.size()) - have;
    const auto first = static_cast<Index>(fraction(random.word[2], random.word[3]) * double(spare + 1));
    std::copy_n(voice.data() + first, have, to);
    std::fill(to + have, to + options_.samples, 0.0f);
    return std::any_of(to, to + have, [&](float x) { return std::abs(x) >= options_.silence; });
  }
  void change_level(std::uint64_t counter, float* to) const {
    const PhiloxBlock random = philox(options_.seed, counter, stream_of_gains);
    const double db = options_.gain_db * (2 * fraction(random.word[0], random.word[1]) - 1);
    float peak = 0;
    for (Index i = 0; i < options_.samples; ++i) peak = std::max(peak, std::abs(to[i]));
    const float gain = std::min(static_cast<float>(std::pow(10, db / 20)), peak > 0 ? 1 / peak : 1.0f);
    for (Index i = 0; i < options_.samples; ++i) to[i] *= gain;
  }
  /// Of [0, 1), in steps of 2^-53.
  static double fraction(std::uint32_t high, std::uint32_t low) {
    return (static_cast<double>(high >> 6) * 0x1p27 + static_cast<double>(low >> 5)) * 0x1p-53;
  }
  static constexpr std::uint64_t stream_of_numbers = 0x736f756e,  // apart from other draws of the same seed
      stream_of_gains = 0x6761696e;

  const std::vector<std::vector<float>>& voices_;  // outlives this
  SoundOptions options_;
  std::vector<Index> ends_;
};

}  // namespace mttt
