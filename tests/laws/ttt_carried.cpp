// Segments of a recording that hand their fast weights on, in all variants of the layer.
#include "carry.hpp"
#include "mttt/nn/named.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"
#include "mttt/nn/sequential.hpp"
#include "mttt/ttt/gate.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_carry_laws;

template <class B>
using TttLinear = Ttt<TttConfig{.dim = 12, .num_heads = 3, .mini_batch_size = 4}, B>;
template <class B>
using TttLinearVideo =
    Ttt<TttConfig{.dim = 12, .num_heads = 2, .mini_batch_size = 4, .variant = TttVariant::video}, B>;
template <class B>
using TttMlp = Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4, .layers = 2, .expansion = 4}, B>;
template <class B>
using TttLinearFactors =
    Ttt<TttConfig{.dim = 12, .num_heads = 3, .mini_batch_size = 4, .memory = TttMemory::factors}, B>;
template <class B>
using TttMlp5Video = Ttt<TttConfig{.dim = 8,
                                   .num_heads = 2,
                                   .mini_batch_size = 3,
                                   .layers = 5,
                                   .expansion = 2,
                                   .variant = TttVariant::video},
                         B>;
template <class B>
using RecomputedResidual = Recompute<Residual<Gated<GateConfig{.initial_alpha = 0.4}, TttLinear<B>, B>>>;
/// Two layers, each behind a norm, under a name of their own.
template <class B>
using Stack =
    Named<"stack", Repeat<2, Residual<Sequential<LayerNorm<NormConfig{.dim = 12}, B>, TttLinear<B>>>>>;
}  // namespace

TEST_CASE("Carried TTT-Linear, lm variant") { hold_to_carry_laws<TttLinear>(); }
TEST_CASE("Carried TTT-Linear, video variant") { hold_to_carry_laws<TttLinearVideo>(); }
TEST_CASE("Carried TTT-Linear that keeps factors") { hold_to_carry_laws<TttLinearFactors>(); }
TEST_CASE("Carried TTT-MLP of 2 layers") { hold_to_carry_laws<TttMlp>(); }
TEST_CASE("Carried TTT-MLP of 5 layers, video variant") { hold_to_carry_laws<TttMlp5Video>(); }
TEST_CASE("Carried Recompute of Residual of Gated TTT-Linear") { hold_to_carry_laws<RecomputedResidual>(); }
TEST_CASE("Carried stack of norms and TTT-Linear") { hold_to_carry_laws<Stack>(); }

TEST_CASE("A carried state that does not fit is refused") {
  using B = Cpu<float>;
  using Layer = TttLinear<B>;
  B be;
  Rng rng(1);
  Store<Layer::Params, B> params(be), grad(be);
  Layer::init(*params, rng);
  Store<Layer::Carried, B> state(be, 2), other(be, 3);
  Store<Layer::CarriedGradient, B> dstate(be, 2);
  const auto x = be.make<float, dyn, dyn, 12>(2, 6), y = be.make<float, dyn, dyn, 12>(2, 6);
  laws::fill_normal(x, 1, rng);
  Layer::Saved saved;
  Layer::forward(be, *params, x, y, saved, {nullptr, &*state});
  CHECK(state->position(1) == 6);
  using mttt::test::contains;
  CHECK_THROWS_WITH(Layer::forward(be, *params, x, y, saved, {&*state, nullptr}),
                    contains("found 6; expected a multiple of 4"));
  CHECK_THROWS_WITH(Layer::forward(be, *params, x, y, saved, {nullptr, &*other}),
                    contains("found 3 sessions; expected 2"));
  CHECK_THROWS_WITH(Layer::backward(be, *params, saved, y, x, *grad, {&*dstate, nullptr}),
                    contains("found 6 steps; expected a multiple of mini_batch_size = 4"));
  const auto continuing = be.make<std::uint8_t, dyn>(2);  // who starts anew may have ended anywhere
  be.fill(continuing.data(), 2, std::uint8_t{0});
  CHECK_NOTHROW(Layer::forward(be, *params, x, y, saved, {&*state, &*state, continuing}));
  CHECK(state->position(1) == 6);
}

TEST_CASE("A backend whose memory the host does not read spoils what it cannot refuse") {
  using A = float;
  const A learned[2] = {1, 2}, carried[4] = {3, 4, 5, 6};
  const std::int64_t position[2] = {8, 6};
  A weights[4];
  const CpuTeam team(nullptr);
  for (Index b = 0; b < 2; ++b)
    mttt::detail::EnterWeights<A>{learned, carried, position, nullptr, weights, 1, 2, 4}(team, b);
  CHECK(weights[0] == 3);
  CHECK(weights[1] == 4);
  CHECK(std::isnan(weights[2]));
  const std::uint8_t continuing[2] = {1, 0};
  mttt::detail::EnterWeights<A>{learned, carried, position, continuing, weights, 1, 2, 4}(team, 1);
  CHECK(weights[2] == 1);
}
