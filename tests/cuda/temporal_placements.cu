#include "mttt/lm/temporal.hpp"

#include "agreement_in.cuh"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;

constexpr TemporalConfig config(Placement placement, Index layers) {
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
template <class B>
using BeforeAttention = Temporal<config(Placement::before_attention, 2), B>;
template <class B>
using InsteadOfAttention = Temporal<config(Placement::instead_of_attention, 2), B>;
}  // namespace

TEST_CASE("CUDA: Temporal, TTT-MLP before attention") { hold_to_agreement_in<BeforeAttention, float>(); }
TEST_CASE("CUDA: Temporal, TTT-MLP instead of attention") {
  hold_to_agreement_in<InsteadOfAttention, float, bf16>();
}
