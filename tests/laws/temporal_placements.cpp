#include "laws.hpp"
#include "mttt/lm/temporal.hpp"

namespace {
using namespace mttt;

constexpr TemporalConfig config(Placement placement) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 2,
          .hidden = 12,
          .context = 5,
          .kv_repeat = 2,
          .ttt_layers = LayerSet::range(0, 1),
          .placement = placement,
          .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4, .layers = 2, .expansion = 2}};
}
template <class B>
using BeforeAttention = Temporal<config(Placement::before_attention), B>;
template <class B>
using InsteadOfAttention = Temporal<config(Placement::instead_of_attention), B>;
template <class B>
using GatedTtt = Gated<GateConfig{}, Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4}, B>, B>;
}  // namespace

TEST_CASE("Temporal transformer, TTT-MLP before attention") {
  mttt::testing::hold_to_all_laws<BeforeAttention>();
}
TEST_CASE("Temporal transformer, TTT-MLP instead of attention") {
  mttt::testing::hold_to_all_laws<InsteadOfAttention>();
}
TEST_CASE("Gated TTT-Linear") { mttt::testing::hold_to_all_laws<GatedTtt>(); }
