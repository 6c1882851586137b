// A Moshi of 341 million parameters, 251 million of which are read in every frame: what moshi.cpp was
// measured with.
#pragma once

#include "mttt/lm/moshi.hpp"

namespace bench {

inline constexpr mttt::MoshiConfig moshi_341m{
    .n_q = 16,
    .dep_q = 8,
    .card = 2048,
    .text_card = 32000,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 1024,
                 .num_heads = 16,
                 .num_layers = 8,
                 .hidden = mttt::gating_hidden(1024, 1024 * 33 / 8),
                 .context = 3000},
    .depformer = {
        .dim = 512, .num_heads = 8, .num_layers = 4, .hidden = mttt::gating_hidden(512, 512 * 33 / 8)}};

}  // namespace bench
