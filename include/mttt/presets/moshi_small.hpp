// moshi_small: a Moshi of 24.6 million parameters with TTT layers, for the codec mimi_small: 25 MB in 8 bits;
// moshi_small_without_ttt: the same without.
//
// The TTT layers are as in presets/tiny.hpp: in parallel to attention, TTT-Linear in the lm variant, in all
// layers but the first, gate 0.1, mini-batches of 16 frames, heads of 64 channels.
//
// Formula, shapes: see lm/moshi.hpp.
// Units:   context and delays in frames of 80 ms. Attention sees 4 s; what was earlier, only TTT can know.
// Errors:  none.
// Not supported: none.
// Source:  streams and proportions of kyutai-labs/moshi models/loaders.py `_lm_kwargs`.
#pragma once

#include "mttt/lm/moshi.hpp"

namespace mttt::presets {

inline constexpr MoshiConfig moshi_small{
    .n_q = 16,
    .dep_q = 8,
    .card = 1024,
    .text_card = 2000,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 320,
                 .num_heads = 5,
                 .num_layers = 7,
                 .hidden = 816,
                 .context = 50,
                 .ttt_layers = LayerSet::range(1, 6),
                 .placement = Placement::parallel,
                 .initial_gating_alpha = 0.1,
                 .ttt = {.dim = 0, .num_heads = 5, .mini_batch_size = 16}},
    .depformer = {.dim = 128, .num_heads = 2, .num_layers = 3, .hidden = 320}};

inline constexpr MoshiConfig moshi_small_without_ttt = moshi_small.without_ttt();

}  // namespace mttt::presets
