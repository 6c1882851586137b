// moshi_7b: the published 7B Moshi (Moshika and Moshiko), 24 kHz, 12.5 frames a second; moshi_7b_lora: with
// adapters of rank 128 beside all its linear layers, as moshi-finetune's example has them; moshi_7b_ttt: with
// TTT in its top 8 layers, in parallel to attention, TTT-Linear in the lm variant, mini-batches of 16 frames,
// heads of 64 channels. The latter two recompute their layers in training.
//
// Formula, shapes: see lm/moshi.hpp.
// Units:   context and delays in frames.
// Errors:  none.
// Not supported: none.
// Source:  kyutai-labs/moshi models/loaders.py `_lm_kwargs`; moshi-finetune's TTT placements are not part of
//          it.
#pragma once

#include "mttt/lm/moshi.hpp"

namespace mttt::presets {

inline constexpr MoshiConfig moshi_7b{
    .n_q = 16,
    .dep_q = 8,
    .card = 2048,
    .text_card = 32000,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 4096,
                 .num_heads = 32,
                 .num_layers = 32,
                 .hidden = gating_hidden(4096, 4096 * 33 / 8),
                 .context = 3000},
    .depformer = {
        .dim = 1024, .num_heads = 16, .num_layers = 6, .hidden = gating_hidden(1024, 1024 * 33 / 8)}};

inline constexpr MoshiConfig moshi_7b_lora = moshi_7b.with_lora(128).with_recompute(true);

inline constexpr MoshiConfig moshi_7b_ttt = [] {
  MoshiConfig config = moshi_7b.with_recompute(true);
  config.temporal.ttt_layers = LayerSet::range(24, 31);
  config.temporal.ttt = {.dim = 0, .num_heads = 64, .mini_batch_size = 16};
  return config;
}();

}  // namespace mttt::presets
