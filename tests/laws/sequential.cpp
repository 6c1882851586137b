#include "mttt/nn/sequential.hpp"

#include "composites.hpp"
#include "laws.hpp"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/norm.hpp"

namespace {
using namespace mttt;
using mttt::testing::Fold;
using mttt::testing::Unfold;

template <Index from, Index to, class B>
using Map = Linear<LinearConfig{.in = from, .out = to, .bias = true}, B>;
template <class B>
using One = Sequential<Map<3, 5, B>>;
template <class B>
using Four = Sequential<Map<3, 7, B>, Activation<Elu, 7, B>, Map<7, 2, B>,
                        LayerNorm<NormConfig{.dim = 2, .eps = 0.1}, B>>;
template <class B>
using Nested = Sequential<One<B>, Sequential<Map<5, 4, B>, Activation<Silu, 4, B>>, Repeat<2, Map<4, 4, B>>>;
template <class B>  // 6 steps in, 2 out, then 4
using Resampling =
    Sequential<Map<2, 3, B>, Fold<3, 3, B>, Map<9, 4, B>, Unfold<4, 2, B>, Activation<Elu, 2, B>>;
template <class B>
using Thrice = Repeat<3, Sequential<RmsNorm<NormConfig{.dim = 5}, B>, Map<5, 5, B>, Activation<Silu, 5, B>>>;
template <class B>
using Once = Repeat<1, Map<4, 4, B>>;

using F = Cpu<float>;
static_assert(Resampling<F>::time_multiple == 3 && out_time<Resampling<F>>(6) == 4);
static_assert(Sequential<Unfold<4, 2, F>, Fold<2, 6, F>>::time_multiple == 3, "3 steps become 6, then 1");
static_assert(Sequential<Fold<1, 2, F>, Fold<2, 3, F>>::time_multiple == 6);
}  // namespace

TEST_CASE("Sequential of one") { mttt::testing::hold_to_all_laws<One>(); }
TEST_CASE("Sequential of four") { mttt::testing::hold_to_all_laws<Four>({.batch = 3}); }
TEST_CASE("Sequential, nested") { mttt::testing::hold_to_all_laws<Nested>(); }
TEST_CASE("Sequential that resamples") { mttt::testing::hold_to_all_laws<Resampling>({.batch = 3}); }
TEST_CASE("Repeat") { mttt::testing::hold_to_all_laws<Thrice>({.batch = 3}); }
TEST_CASE("Repeat once") { mttt::testing::hold_to_all_laws<Once>(); }
