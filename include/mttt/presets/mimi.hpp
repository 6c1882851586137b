// The sizes of Mimi that ship: the published codec, a small one, and a toy for demonstrations and tests.
//
// Formula, errors: see codec/mimi.hpp.
// Shapes:  MimiConfig.
// Units:   sample_rate in Hz; all have 12.5 frames a second.
// Not supported: weights; see io/checkpoint.hpp to load them.
// Source:  kyutai-labs/moshi models/loaders.py `_mimi_config` for mimi_24khz.
#pragma once

#include "mttt/codec/mimi.hpp"

namespace mttt::presets {

/// The published codec of Moshi, which takes 8 of its 32 codebooks. 79 million weights, 17 million numbers in
/// codebooks.
inline constexpr MimiConfig mimi_24khz{};

/// 8 codebooks of 10 bits, 1 kbit/s. 6.2 million numbers: 2.7 million in the transformers, 2.9 in the
/// convolutions, 0.6 in the quantiser: 10 MB with the first in 8 bits and the rest in 16. 1 GFLOP a second of
/// sound.
inline constexpr MimiConfig mimi_small{
    .seanet = {.dimension = 192, .n_filters = 20},
    .transformer = {.d_model = 192, .num_heads = 3, .num_layers = 3, .dim_feedforward = 768, .context = 125},
    .quantizer = {.dim = 192, .codebook_dim = 64, .card = 1024, .n_q = 8}};

/// The same frames in a network that encodes and decodes far faster than real time on one core.
inline constexpr MimiConfig mimi_tiny{
    .seanet = {.dimension = 64, .n_filters = 4},
    .transformer = {.d_model = 64, .num_heads = 4, .num_layers = 1, .dim_feedforward = 128, .context = 50},
    .quantizer = {.dim = 64, .codebook_dim = 32, .card = 256, .n_q = 8}};

}  // namespace mttt::presets
