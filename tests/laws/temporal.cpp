#include "mttt/lm/temporal.hpp"
#include "laws.hpp"

namespace {
using namespace mttt;

constexpr TemporalConfig config(Placement placement) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 3,
          .hidden = 12,
          .context = 6,
          .ttt_layers = LayerSet::range(1, 2),
          .placement = placement,
          .ttt_layer_context = 3,
          .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};
}
template <class B>
using Parallel = Temporal<config(Placement::parallel), B>;
template <class B>
using AfterAttention = Temporal<[] {
  auto adapted = config(Placement::after_attention);
  adapted.lora = {.rank = 3, .scaling = 1.5, .frozen = false};
  return adapted;
}(),
                                B>;
}  // namespace

TEST_CASE("Temporal transformer, TTT in parallel") { mttt::testing::hold_to_all_laws<Parallel>(); }
TEST_CASE("Temporal transformer, TTT after attention, adapters beside all other weights") {
  mttt::testing::hold_to_all_laws<AfterAttention>();
}
