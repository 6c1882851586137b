#include "mttt/nn/norm.hpp"

#include "laws.hpp"
#include "mttt/nn/layer_scale.hpp"

namespace {
using namespace mttt;
template <class B>
using Rms = RmsNorm<NormConfig{.dim = 7, .eps = 1e-5}, B>;
template <class B>
using RmsWide = RmsNorm<NormConfig{.dim = 67, .eps = 1e-8}, B>;  // more than one block of columns
template <class B>
using Layer = LayerNorm<NormConfig{.dim = 9}, B>;
template <class B>
using LayerWide = LayerNorm<NormConfig{.dim = 130}, B>;
template <class B>
using Scale = LayerScale<LayerScaleConfig{.dim = 5, .init = 0.01}, B>;
}  // namespace

TEST_CASE("RmsNorm") { mttt::testing::hold_to_all_laws<Rms>({.batch = 3}); }
TEST_CASE("RmsNorm, wide") { mttt::testing::hold_to_all_laws<RmsWide>(); }
TEST_CASE("LayerNorm") { mttt::testing::hold_to_all_laws<Layer>({.batch = 3}); }
TEST_CASE("LayerNorm, wide") { mttt::testing::hold_to_all_laws<LayerWide>(); }
TEST_CASE("LayerScale") { mttt::testing::hold_to_all_laws<Scale>({.batch = 3}); }
