// A Mimi small enough for gradients by central differences: 12 samples a frame, a short attention window.
#pragma once

#include "laws.hpp"
#include "mttt/codec/mimi.hpp"

namespace mttt::testing {

inline constexpr MimiConfig mimi_small{
    .sample_rate = 1200,
    .seanet = {.dimension = 8, .n_filters = 2, .kernel_size = 3, .ratios = {3, 2}},
    .transformer = {.d_model = 8, .num_heads = 2, .num_layers = 1, .dim_feedforward = 12, .context = 5},
    .quantizer = {.dim = 8, .codebook_dim = 4, .card = 9, .n_q = 3}};

}  // namespace mttt::testing
