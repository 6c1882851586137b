#include "mttt/lm/depformer.hpp"

#include "agreement.cuh"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;

constexpr DepformerConfig config{.dim = 12,
                                 .num_heads = 3,
                                 .num_layers = 2,
                                 .hidden = 7,
                                 .steps = 4,
                                 .in_dim = 5,
                                 .card = 6,
                                 .text_card = 9};
template <class B>
using Layer = DepformerLayer<config, B>;
template <class B>
using Projections = PerStep<Linear<LinearConfig{.in = 6, .out = 5}, B>, 4, B>;
}  // namespace

// Their batch is the number of steps of a frame, their time the rows.
TEST_CASE("CUDA: depformer layer") { hold_to_agreement_in<Layer, float, bf16>({.batch = 4, .steps = 5}); }
TEST_CASE("CUDA: per-step linear") {
  hold_to_agreement_in<Projections, float, bf16>({.batch = 4, .steps = 5});
}
