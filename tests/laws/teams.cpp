// Every functor gives a team of several members the numbers that it gives a team of one.
#include "emulated.hpp"
#include "laws.hpp"
#include "mttt/laws_backends.hpp"
#include "mttt/lm/temporal.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/nn/layer_scale.hpp"

namespace {
using namespace mttt;
using mttt::testing::Emulated;

template <template <class> class Block>
void hold_teams(const laws::Options& options = {.batch = 2, .steps = 9}) {
  Cpu<double> cpu(1);
  Emulated<double> emulated;
  mttt::testing::demand(
      laws::backends_agree<Block<Cpu<double>>, Block<Emulated<double>>>(cpu, emulated, options));
}

constexpr TemporalConfig config(Index layers, TttVariant variant, Placement placement) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 2,
          .hidden = 12,
          .context = 5,
          .kv_repeat = 2,
          .ttt_layers = LayerSet::range(1, 1),
          .placement = placement,
          .ttt = {.dim = 0,
                  .num_heads = 0,
                  .mini_batch_size = 4,
                  .layers = layers,
                  .expansion = 2,
                  .variant = variant}};
}
template <class B>
using WithLinear = Temporal<config(1, TttVariant::lm, Placement::parallel), B>;
template <class B>
using WithMlp = Temporal<config(2, TttVariant::video, Placement::after_attention), B>;
template <class B>
using Norms = LayerNorm<NormConfig{.dim = 70}, B>;
template <class B>
using Biased = Linear<LinearConfig{.in = 7, .out = 300, .bias = true}, B>;
template <class B>
using Scaled = LayerScale<LayerScaleConfig{.dim = 33}, B>;
template <class B>
using Feed = FeedForward<FeedForwardConfig{.dim = 6, .hidden = 10}, B>;
}  // namespace

TEST_CASE("teams: Temporal with TTT-Linear") { hold_teams<WithLinear>(); }
TEST_CASE("teams: Temporal with TTT-MLP") { hold_teams<WithMlp>(); }
TEST_CASE("teams: LayerNorm") { hold_teams<Norms>({.batch = 5, .steps = 20}); }
TEST_CASE("teams: Linear with bias") { hold_teams<Biased>(); }
TEST_CASE("teams: LayerScale") { hold_teams<Scaled>(); }
TEST_CASE("teams: FeedForward") { hold_teams<Feed>(); }
