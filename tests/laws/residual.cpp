#include "mttt/nn/residual.hpp"

#include "composites.hpp"
#include "laws.hpp"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/layer_scale.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"
#include "mttt/nn/sequential.hpp"

namespace {
using namespace mttt;
using mttt::testing::Fold;
using mttt::testing::Unfold;

constexpr NormConfig norm{.dim = 8};
constexpr AttentionConfig heads{.dim = 8, .num_heads = 2, .kv_repeat = 2, .context = 4};

template <class B>
using Plain = Residual<Linear<LinearConfig{.in = 5, .out = 5}, B>>;
template <class B>  // its steps come back in number
using Resampled = Residual<Sequential<Fold<3, 2, B>, Activation<Elu, 6, B>, Unfold<6, 2, B>>>;
template <class B>  // a transformer layer
using Layer =
    Sequential<Residual<Sequential<RmsNorm<norm, B>, Attention<heads, B>,
                                   LayerScale<LayerScaleConfig{.dim = 8, .init = 0.5}, B>>>,
               Residual<Sequential<RmsNorm<norm, B>, SiluGating<GatingConfig{.dim = 8, .hidden = 11}, B>>>>;
template <class B>
using Stack = Repeat<2, Recompute<Layer<B>>>;
template <class B>
using RecomputedResampling = Recompute<Sequential<Fold<3, 2, B>, Activation<Elu, 6, B>>>;
}  // namespace

TEST_CASE("Residual") { mttt::testing::hold_to_all_laws<Plain>({.batch = 3}); }
TEST_CASE("Residual around blocks that resample") { mttt::testing::hold_to_all_laws<Resampled>(); }
TEST_CASE("Residual of Sequential, Sequential of Residual") {
  mttt::testing::hold_to_all_laws<Layer>({.batch = 3});
}
TEST_CASE("Repeat of Recompute of layers") { mttt::testing::hold_to_all_laws<Stack>(); }
TEST_CASE("Recompute of a block that resamples") { mttt::testing::hold_to_all_laws<RecomputedResampling>(); }
