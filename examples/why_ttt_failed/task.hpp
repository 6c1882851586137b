// The task: remember what was said. A stream of keys and values; a key keeps its value for the whole stream; of a key
// that was heard before, its value is to be predicted.
//
// Formula: tokens k_0 v_0 k_1 v_1 ..., keys drawn anew each time, the value of a key drawn once a stream.
// Shapes:  tokens, targets, weights, distances (B, T). Targets and weights are of the token that follows; the
//          weight is 1 after a key that was heard before, else 0.
// Units:   distances in tokens, to where the key was last heard; 0 after a new key, -1 after a value.
// Errors:  none.
// Not supported: an odd T.
// Source:  the associative recall tasks of Arora et al. 2023 ("Zoology"), for the idea.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/core/tensor.hpp"

namespace why {
using namespace mttt;

inline constexpr Index keys = 16, values = 32, card = keys + values;

/// Streams [first, first + B) of an endless list. One call of the functor makes one of them.
struct DrawStream {
  std::uint64_t seed, first;
  Index steps;
  std::int32_t *tokens, *targets, *distances;
  float* weights;
  MTTT_HD void operator()(Index b) const {
    const std::uint64_t stream = first + static_cast<std::uint64_t>(b);
    const Index from = b * steps;
    Index last[keys];
    for (Index& place : last) place = -1;
    for (Index t = 0; t < steps; t += 2) {
      const Index key = philox(seed, stream, static_cast<std::uint64_t>(t)).word[0] % keys;
      const auto of_key = static_cast<std::uint64_t>(2 * key + 1);  // odd: no position has this counter
      const Index value = keys + philox(seed, stream, of_key).word[0] % values;
      tokens[from + t] = static_cast<std::int32_t>(key);
      tokens[from + t + 1] = targets[from + t] = static_cast<std::int32_t>(value);
      targets[from + t + 1] = 0;
      weights[from + t] = last[key] < 0 ? 0.0f : 1.0f;
      weights[from + t + 1] = 0;
      distances[from + t] = static_cast<std::int32_t>(last[key] < 0 ? 0 : t - last[key]);
      distances[from + t + 1] = -1;
      last[key] = t;
    }
  }
};

/// Streams in the backend's memory.
struct Streamed {
  Tensor<std::int32_t, dyn, dyn> tokens, targets, distances;
  Tensor<float, dyn, dyn> weights;
};
template <class B>
Streamed draw(B& be, std::uint64_t seed, std::uint64_t first, Index batch, Index steps) {
  const auto make = [&] { return be.template make<std::int32_t, dyn, dyn>(batch, steps); };
  Streamed s{make(), make(), make(), be.template make<float, dyn, dyn>(batch, steps)};
  be.for_each(batch, DrawStream{seed, first, steps, s.tokens.data(), s.targets.data(), s.distances.data(),
                                s.weights.data()});
  return s;
}

/// How often the largest logit is that of the value, by distance.
struct Accuracy {
  static constexpr std::array<std::int32_t, 6> up_to{0, 16, 32, 64, 128, 256};  // 0: keys never heard before
  std::array<std::int64_t, 6> hits{}, of{};

  void add(std::int32_t distance, bool hit) {
    for (std::size_t i = 0; i < up_to.size() && distance >= 0; ++i) {
      if (distance > up_to[i]) continue;
      hits[i] += hit;
      ++of[i];
      return;
    }
  }
  double at(std::size_t i) const {
    return of[i] == 0 ? NAN : static_cast<double>(hits[i]) / static_cast<double>(of[i]);
  }
  /// Of all keys that were heard before.
  double heard() const {
    std::int64_t hit = 0, all = 0;
    for (std::size_t i = 1; i < up_to.size(); ++i) hit += hits[i], all += of[i];
    return all == 0 ? NAN : static_cast<double>(hit) / static_cast<double>(all);
  }
};

/// hit(b, t) of the logits (B, n, card) of steps [from, from + n)
template <class T>
struct Hit {
  const T* logits;
  const std::int32_t* targets;  // (B, T)
  std::uint8_t* hits;           // (B, T)
  Index steps, from, n;
  MTTT_HD void operator()(Index row) const {
    const T* x = logits + row * card;
    Index best = 0;
    for (Index i = 1; i < card; ++i)
      if (wide(x[i]) > wide(x[best])) best = i;
    const Index at = row / n * steps + from + row % n;
    hits[at] = best == targets[at];
  }
};

}  // namespace why
