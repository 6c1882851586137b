// tiny: a small Moshi with TTT layers, trained in a minute on two cores; tiny_without_ttt: the same without;
// tiny_lora: with adapters of rank 8 beside all its linear layers.
//
// The TTT layers are those that remembered best in a first comparison on a stream of keys and values: in
// parallel to attention, TTT-Linear in the lm variant, in all layers but the first, gate 0.1, mini-batches of
// 16 frames.
//
// Formula, shapes: see lm/moshi.hpp.
// Units:   context and delays in frames of 80 ms. Attention sees 2 s; what was earlier, only TTT can know.
// Errors:  none.
// Not supported: none.
// Source:  proportions of kyutai-labs/moshi models/loaders.py `_lm_kwargs`.
#pragma once

#include "mttt/lm/moshi.hpp"

namespace mttt::presets {

inline constexpr MoshiConfig tiny{
    .n_q = 16,
    .dep_q = 8,
    .card = 256,
    .text_card = 512,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 128,
                 .num_heads = 4,
                 .num_layers = 4,
                 .hidden = gating_hidden(128, 128 * 33 / 8),
                 .context = 25,
                 .ttt_layers = LayerSet::range(1, 3),
                 .placement = Placement::parallel,
                 .initial_gating_alpha = 0.1,
                 .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 16}},
    .depformer = {.dim = 64, .num_heads = 4, .num_layers = 2, .hidden = gating_hidden(64, 64 * 33 / 8)}};

inline constexpr MoshiConfig tiny_without_ttt = tiny.without_ttt();
inline constexpr MoshiConfig tiny_lora = tiny.with_lora(8);

}  // namespace mttt::presets
