// The model of moshi_tiny.safetensors, made by the published LMModel and LMGen with random weights.
#pragma once

#include "golden.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/lm/moshi.hpp"

namespace mttt::testing {

inline constexpr MoshiConfig moshi_golden{
    .n_q = 16,
    .dep_q = 8,
    .card = 32,
    .text_card = 48,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 64, .num_heads = 4, .num_layers = 3, .hidden = gating_hidden(64, 264), .context = 10},
    .depformer = {.dim = 32, .num_heads = 4, .num_layers = 2, .hidden = gating_hidden(32, 132)}};

template <class B>
Store<typename Moshi<moshi_golden, B>::Params, B> golden_params(B& be) {
  Store<typename Moshi<moshi_golden, B>::Params, B> params(be);
  load_params(MTTT_TEST_DATA "/moshi_tiny.safetensors", be, params, {.prefix = "weights."});
  return params;
}

template <class T>
Streams<const T> streams(const std::vector<T>& values, Index batch, Index count, Index steps) {
  REQUIRE(static_cast<Index>(values.size()) == batch * count * steps);
  return {values.data(), {batch, count, steps}};
}

}  // namespace mttt::testing
