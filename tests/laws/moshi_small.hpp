// A Moshi of a few thousand weights, with a TTT layer, delays of all kinds, and fewer heard than spoken
// streams.
#pragma once

#include "laws.hpp"
#include "mttt/lm/moshi.hpp"

namespace mttt::testing {

inline constexpr MoshiConfig moshi_small{
    .n_q = 4,
    .dep_q = 3,
    .card = 6,
    .text_card = 9,
    .delays = {1, 0, 2, 1, 1},
    .temporal = {.dim = 8,
                 .num_heads = 2,
                 .num_layers = 2,
                 .hidden = 10,
                 .context = 4,
                 .ttt_layers = LayerSet::range(1, 1),
                 .initial_gating_alpha = 0.7,
                 .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 3}},
    .depformer = {.dim = 6, .num_heads = 3, .num_layers = 2, .hidden = 5}};

/// Codes of all streams (B, 1 + n_q, T), here and there none.
template <class B>
Streams<std::int32_t> random_codes(B& be, Index batch, Index steps, Rng& rng) {
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(batch, moshi_small.streams(), steps);
  for (Index i = 0; i < codes.size(); ++i) {
    const bool text = i / steps % moshi_small.streams() == 0;
    const auto card = static_cast<std::uint64_t>(text ? moshi_small.text_card : moshi_small.card);
    codes.data()[i] = rng.uniform() < 0.1 ? zero_code : static_cast<std::int32_t>(rng.below(card));
  }
  return codes;
}

/// What a session says at its frame t under teacher forcing: position t + 1 of stream k.
inline std::int32_t forced_code(Streams<const std::int32_t> codes, Index b, Index k, Index t) {
  const Index from = t - moshi_small.delays.of[k];
  return from < 0 ? moshi_small.initial().of(k) : codes(b, k, from);
}

}  // namespace mttt::testing
