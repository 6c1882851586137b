// Segments that hand fast weights on through the transformer's layers. Attention starts anew with each, so
// that only a transformer without it gives the whole's numbers; the gradients are those of what is computed
// everywhere.
#include "carry.hpp"
#include "mttt/lm/temporal.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_carried_gradient;
using mttt::testing::hold_to_carry_laws;

constexpr TemporalConfig config(Placement placement, LayerSet layers) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 3,
          .hidden = 12,
          .context = 6,
          .ttt_layers = layers,
          .placement = placement,
          .ttt_layer_context = 3,
          .initial_gating_alpha = 0.5,
          .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};
}
constexpr LayerSet some{0b101}, all = LayerSet::range(0, 2);
template <class B>
using Parallel = Temporal<config(Placement::parallel, some), B>;
template <class B>
using AfterAttention = Temporal<config(Placement::after_attention, some), B>;
template <class B>
using BeforeAttention = Temporal<config(Placement::before_attention, some).with_recompute(true), B>;
template <class B>
using InsteadOfAttention = Temporal<config(Placement::instead_of_attention, all), B>;

/// Loss and weights are many nonlinear layers apart: the error of differences, which falls with their square
/// as it should, is above the law's tolerance at the usual 1e-5.
constexpr laws::Options deep{.difference = 3e-6};
}  // namespace

TEST_CASE("Carried: transformer, TTT in parallel") { hold_to_carried_gradient<Parallel>(deep); }
TEST_CASE("Carried: transformer, TTT after attention") { hold_to_carried_gradient<AfterAttention>(deep); }
TEST_CASE("Carried: recomputed transformer, TTT before attention") {
  hold_to_carried_gradient<BeforeAttention>(deep);
}
TEST_CASE("Carried: transformer, TTT instead of attention") { hold_to_carry_laws<InsteadOfAttention>(deep); }
