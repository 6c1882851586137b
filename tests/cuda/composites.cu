#include "agreement.cuh"
#include "laws/composites.hpp"
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
using mttt::testing::hold_to_agreement;
using mttt::testing::hold_to_agreement_in;
using mttt::testing::Unfold;

constexpr NormConfig norm{.dim = 8};
constexpr AttentionConfig heads{.dim = 8, .num_heads = 2, .kv_repeat = 2, .context = 4};
template <Index from, Index to, class B>
using Map = Linear<LinearConfig{.in = from, .out = to, .bias = true}, B>;

template <class B>  // 6 steps in, 2 out, then 4
using Resampling =
    Sequential<Map<2, 3, B>, Fold<3, 3, B>, Map<9, 4, B>, Unfold<4, 2, B>, Activation<Elu, 2, B>>;
template <class B>  // a transformer layer
using Layer =
    Sequential<Residual<Sequential<RmsNorm<norm, B>, Attention<heads, B>,
                                   LayerScale<LayerScaleConfig{.dim = 8, .init = 0.5}, B>>>,
               Residual<Sequential<RmsNorm<norm, B>, SiluGating<GatingConfig{.dim = 8, .hidden = 11}, B>>>>;
template <class B>
using Stack = Repeat<2, Recompute<Layer<B>>>;
}  // namespace

TEST_CASE("CUDA: Sequential that resamples") { hold_to_agreement<Resampling>({.batch = 3}); }
TEST_CASE("CUDA: Repeat of Recompute of layers") { hold_to_agreement_in<Stack, float, bf16>(); }
