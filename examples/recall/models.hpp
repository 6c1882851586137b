// The models: moshi_small, with another window, another kind of memory, and as many parameters.
#pragma once

#include "mttt/presets/moshi_small.hpp"

namespace recalls {
using namespace mttt;

struct Memory {
  LayerSet layers = LayerSet::range(1, 6);
  Placement placement = Placement::parallel;
  Index inner_layers = 1, window = presets::moshi_small.temporal.context;
};

/// Numbers in the layers.
consteval Index size_of(const TemporalConfig& c) {
  const TttConfig ttt = c.ttt_config();
  const Index matrices = 4 * c.dim * c.dim, inner = ttt.num_heads * ttt.model().size();
  Index sum = 0;
  for (Index i = 0; i < c.num_layers; ++i) {
    const bool learns = c.has_ttt(i);
    if (!learns || c.placement != Placement::instead_of_attention) sum += matrices;
    if (learns) sum += matrices + inner + ttt.num_heads * c.dim;
    sum += 3 * c.dim * c.hidden;
  }
  return sum;
}

/// What memory takes or leaves, the gating's width makes up for, to a multiple of 16.
consteval MoshiConfig with_memory(Memory memory) {
  MoshiConfig config = presets::moshi_small;
  TemporalConfig& t = config.temporal;
  const Index wanted = size_of(t);
  t.ttt_layers = memory.layers;
  t.placement = memory.placement;
  t.ttt.layers = memory.inner_layers;
  t.context = memory.window;
  const Index of_width = 16 * 3 * t.dim * t.num_layers, missing = wanted - size_of(t);
  t.hidden += 16 * ((missing + (missing > 0 ? of_width : -of_width) / 2) / of_width);
  return config;
}

inline constexpr MoshiConfig config_local = with_memory({.layers = {}});
inline constexpr MoshiConfig config_full = with_memory({.layers = {}, .window = 8000});
inline constexpr MoshiConfig config_linear = with_memory({});
inline constexpr MoshiConfig config_narrow = with_memory({.window = 16});
inline constexpr MoshiConfig config_mlp = with_memory({.inner_layers = 2});
inline constexpr MoshiConfig config_after = with_memory({.placement = Placement::after_attention});
inline constexpr MoshiConfig config_before = with_memory({.placement = Placement::before_attention});
inline constexpr MoshiConfig config_instead = with_memory({.placement = Placement::instead_of_attention});

#ifdef MTTT_EXAMPLES_CUDA
using Number = bf16;
#else
using Number = float;
#endif

}  // namespace recalls
