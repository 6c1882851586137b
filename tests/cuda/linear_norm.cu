#include "agreement.cuh"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/layer_scale.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/lora.hpp"
#include "mttt/nn/norm.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement;
template <class B>
using WithBias = Linear<LinearConfig{.in = 7, .out = 5, .bias = true}, B>;
template <class B>
using WithoutBias = Linear<LinearConfig{.in = 300, .out = 129}, B>;
template <class B>
using Adapted = Lora<LoraConfig{.rank = 3, .scaling = 1.5, .frozen = false},
                     Linear<LinearConfig{.in = 70, .out = 65, .bias = true}, B>>;
template <class B>
using Rms = RmsNorm<NormConfig{.dim = 67, .eps = 1e-8}, B>;
template <class B>
using Layer = LayerNorm<NormConfig{.dim = 130}, B>;
template <class B>
using WideLayer = LayerNorm<NormConfig{.dim = 5000}, B>;
template <class B>
using Scale = LayerScale<LayerScaleConfig{.dim = 5, .init = 0.01}, B>;
template <class B>
using EluBlock = Activation<Elu, 5, B>;
template <class B>
using GeluTanhBlock = Activation<GeluTanh, 3, B>;
template <class B>
using Gating = SiluGating<GatingConfig{.dim = 40, .hidden = gating_hidden(40, 160)}, B>;
template <class B>
using Feed = FeedForward<FeedForwardConfig{.dim = 5, .hidden = 13}, B>;
}  // namespace

TEST_CASE("CUDA: Linear with bias") { hold_to_agreement<WithBias>(); }
TEST_CASE("CUDA: Linear without bias") { hold_to_agreement<WithoutBias>({.batch = 3, .steps = 50}); }
TEST_CASE("CUDA: Lora") { hold_to_agreement<Adapted>({.batch = 3}); }
TEST_CASE("CUDA: RmsNorm") { hold_to_agreement<Rms>({.batch = 3}); }
TEST_CASE("CUDA: LayerNorm") { hold_to_agreement<Layer>({.batch = 3}); }
TEST_CASE("CUDA: LayerNorm, wide") { hold_to_agreement<WideLayer>({.steps = 3}); }
TEST_CASE("CUDA: LayerScale") { hold_to_agreement<Scale>(); }
TEST_CASE("CUDA: ELU") { hold_to_agreement<EluBlock>({.input_scale = 2}); }
TEST_CASE("CUDA: GELU by tanh") { hold_to_agreement<GeluTanhBlock>({.input_scale = 2}); }
TEST_CASE("CUDA: SiluGating") { hold_to_agreement<Gating>({.batch = 3}); }
TEST_CASE("CUDA: FeedForward") { hold_to_agreement<Feed>({.batch = 3, .input_scale = 2}); }
