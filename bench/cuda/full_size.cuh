// Weights of models of full size, drawn on the GPU: of the sizes that the blocks' own init draws, so that
// activations, scores and codes are such as speed depends on.
//
// Shapes, units: none.   Errors: those of the backend.
// Not supported: the blocks' own numbers; see bench::Fill.
// Source:  none.
#pragma once

#include <cmath>
#include <string_view>

#include "mttt/lm/duplex.hpp"
#include "timing.cuh"

namespace bench {

template <class B, class P>
void draw(B& be, P& params) {
  mttt::for_each_tensor(
      [&](std::string_view name, auto& t) {
        using T = typename std::remove_cvref_t<decltype(t)>::value_type;
        const auto ends = [&](auto... end) { return (name.ends_with(end) || ...); };
        const auto fill = [&](float scale, float mean) {
          be.for_each(t.size(), Fill<T>{t.data(), scale, mean});
        };
        mttt::Index row = 1;  // what a sum goes over
        for (std::size_t i = 1; i < t.rank; ++i) row *= t.extent(i);
        if (ends("gating_alpha")) return fill(0, 0.1f);
        if (ends("learnable_token_idx", "bias", ".b1", ".b2", "_initialized")) return fill(0, 0);
        if (ends("learnable_ttt_lr_weight", ".W1", ".W2")) return fill(0.035f, 0);
        if (row == 1 || ends("alpha", "norm_weight", "base_lr", "cluster_usage")) return fill(0, 1);
        if (ends("embedding_sum")) return fill(1, 0);
        fill(std::sqrt(3.0f / static_cast<float>(row)), 0);
      },
      params);
}

}  // namespace bench
