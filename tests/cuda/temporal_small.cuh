// A Temporal of three layers, the middle one with TTT, small enough for every placement.
#pragma once

#include "agreement.cuh"
#include "mttt/lm/temporal.hpp"

namespace mttt::testing {

constexpr TemporalConfig temporal_small(Placement placement, Index layers) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 3,
          .hidden = 12,
          .context = 6,
          .ttt_layers = LayerSet::range(1, 2),
          .placement = placement,
          .ttt_layer_context = 3,
          .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4, .layers = layers, .expansion = 2}};
}

}  // namespace mttt::testing
