// Sampling of codes from logits: temperature, top-k, reproducible on every backend.
//
// Formula: code = argmax over the top k of  x_i / temperature - log(-log u_i)  (Gumbel), which draws from
//          softmax(x / temperature) restricted to the k largest; u_i from Philox with the session's seed as
//          key and (frame, stream, i) as counter: a draw depends on nothing else, in particular not on the
//          neighbours in the batch. Greedy, or a temperature of 0 or less: argmax x.
//          Ties, also at the edge of the top k, go to the lowest index.
// Shapes:  logits (N, card), seeds and frames (N), codes: code of row r at codes[r * stride].
// Units:   frames since the session's reset.
// Errors:  none; a row of NaN yields some code in range.
// Not supported: top-p.
// Source:  kyutai-labs/moshi utils/sampling.py `sample_token`; Gumbel 1954; the k-th largest by radix select.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "mttt/backend/backend.hpp"
#include "mttt/core/rng.hpp"

namespace mttt {

struct SampleOptions {
  double temperature = 0.8;
  Index top_k = 250;  // 0 or less: all
  bool greedy = false;
};

namespace detail {

/// Ordered as the numbers are.
MTTT_HD inline std::uint32_t order_key(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x + 0.0f);  // -0 becomes +0: they tie
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

template <class T>
struct SampleRow {
  const T* logits;
  const std::int64_t *seeds, *frames;
  std::int32_t* codes;
  Index card, stride, stream, top_k;  // top_k 0: all
  double inverse_temperature;         // 0: greedy

  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T* x = logits + row * card;
    Index best;
    if (greedy()) {
      best = team.template argmax<Wide<T>>(card, [=](Index i) { return wide(x[i]); });
    } else {
      const std::uint64_t edge = top_k > 0 ? find_edge(team, x) : 0;
      best = team.template argmax<double>(
          card, [=, this](Index i) { return place(x, i) < edge ? -INFINITY + 0.0 : score(x, row, i); });
    }
    if (team.leader()) codes[row * stride] = static_cast<std::int32_t>(best);
  }

  MTTT_HD bool greedy() const { return inverse_temperature == 0; }
  /// Logit i of row `row` with its noise: the largest is drawn.
  MTTT_HD double score(const T* x, Index row, Index i) const {
    const auto block =
        philox(static_cast<std::uint64_t>(seeds[row]), static_cast<std::uint64_t>(frames[row]),
               static_cast<std::uint64_t>(stream) << 32 | (static_cast<std::uint64_t>(i) >> 2));
    const double u = uniform_from(block.word[i & 3]);
    return static_cast<double>(wide(x[i])) * inverse_temperature - std::log(-std::log(u));
  }

  static constexpr Index digits = 256;
  static constexpr Index scratch = (digits + 3) * static_cast<Index>(sizeof(std::int32_t));

  static constexpr int key_bits = sizeof(T) == 2 ? 16 : 32;  // those in which logits differ

  /// Ordered as logits are, of equal ones the earlier first; no two are equal.
  MTTT_HD std::uint64_t place(const T* x, Index i) const {
    const std::uint64_t key = order_key(static_cast<float>(x[i])) >> (32 - key_bits);
    return key << 32 | static_cast<std::uint64_t>(card - 1 - i);
  }

  /// A place that the top_k largest reach and no other, digit by digit.
  template <class Team>
  MTTT_HD std::uint64_t find_edge(Team team, const T* x) const {
    std::int32_t *counts = team.template scratch<std::int32_t>(), *found = counts + digits;
    auto wanted = static_cast<std::int32_t>(top_k);  // the edge's rank among places that begin as it does
    std::uint64_t edge = 0;
    for (int shift = 24 + key_bits; shift >= 0; shift -= 8) {
      if (shift < 32 && (card - 1) >> shift == 0) continue;
      const std::uint64_t known = edge;
      team.histogram(
          card, digits,
          [=, this](Index i) {
            const std::uint64_t at = place(x, i);
            return (at ^ known) >> shift >> 8 == 0 ? Index{255} - static_cast<Index>(at >> shift & 255)
                                                   : Index{-1};
          },
          counts);
      team.scan(digits, counts);
      const std::int32_t rank = wanted;
      team.for_each(
          digits, [=](Index i) {  // the digit at which the count, from the largest, reaches the rank
            const std::int32_t larger = i == 0 ? 0 : counts[i - 1];
            if (larger < rank && rank <= counts[i])
              found[0] = static_cast<std::int32_t>(255 - i), found[1] = larger, found[2] = counts[i] - larger;
          });
      team.sync();
      edge |= static_cast<std::uint64_t>(found[0]) << shift;
      wanted -= found[1];
      if (wanted == found[2]) break;  // all that begin so take part
    }
    return edge;
  }
};

}  // namespace detail

/// How rows of `card` logits are drawn from. seeds and frames may be null when the choice is greedy.
template <class T>
detail::SampleRow<T> sample_row(const T* logits, Index card, const SampleOptions& options,
                                const std::int64_t* seeds, const std::int64_t* frames, Index stream,
                                std::int32_t* codes, Index stride = 1) {
  const bool greedy = options.greedy || !(options.temperature > 0);
  const Index top_k = options.top_k > 0 && options.top_k < card ? options.top_k : 0;
  return {logits, seeds, frames, codes, card, stride, stream, top_k, greedy ? 0 : 1 / options.temperature};
}

/// One code a row.
template <class B, class T, Index Card>
void sample(B& be, Tensor<T, dyn, Card> logits, const SampleOptions& options, const std::int64_t* seeds,
            const std::int64_t* frames, Index stream, std::int32_t* codes, Index stride = 1) {
  const Index card = logits.extent(1);
  const auto row =
      sample_row<std::remove_const_t<T>>(logits.data(), card, options, seeds, frames, stream, codes, stride);
  be.rows(logits.extent(0), row, row.scratch, card * (row.top_k > 0 ? 16 : 4));
}

}  // namespace mttt
