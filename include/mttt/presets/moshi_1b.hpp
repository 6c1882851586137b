// moshi_1b: a Moshi of about a billion parameters with TTT layers; moshi_1b_without_ttt: the same
// without.
//
// The TTT layers are as in presets/tiny.hpp: in parallel to attention, TTT-Linear in the lm variant, in all
// layers but the first, gate 0.1, mini-batches of 16 frames, heads of 64 channels.
//
// Formula, shapes: see lm/moshi.hpp.
// Units:   context and delays in frames of 80 ms. Attention sees 40 s; what was earlier, only TTT can know.
// Errors:  none.
// Not supported: none; there are no published weights.
// Source:  streams and proportions of kyutai-labs/moshi models/loaders.py `_lm_kwargs`; width and depth of
//          its temporal transformer as in Pythia-1B (2048, 16 layers), heads of 128 as in the 7B Moshi.
#pragma once

#include "mttt/lm/moshi.hpp"

namespace mttt::presets {

inline constexpr MoshiConfig moshi_1b{
    .n_q = 16,
    .dep_q = 8,
    .card = 2048,
    .text_card = 32000,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 2048,
                 .num_heads = 16,
                 .num_layers = 16,
                 .hidden = gating_hidden(2048, 2048 * 33 / 8),
                 .context = 500,
                 .ttt_layers = LayerSet::range(1, 15),
                 .placement = Placement::parallel,
                 .initial_gating_alpha = 0.1,
                 .ttt = {.dim = 0, .num_heads = 32, .mini_batch_size = 16}},
    .depformer = {.dim = 512, .num_heads = 8, .num_layers = 4, .hidden = gating_hidden(512, 512 * 33 / 8)}};

inline constexpr MoshiConfig moshi_1b_without_ttt = moshi_1b.without_ttt();

}  // namespace mttt::presets
