#include "agreement.cuh"
#include "mttt/codec/conv_transpose1d.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>
using Doubled = ConvTranspose1d<ConvTranspose1dConfig{.in = 6, .out = 4, .kernel = 6, .stride = 3}, B>;
template <class B>
using Uneven =
    ConvTranspose1d<ConvTranspose1dConfig{.in = 3, .out = 4, .kernel = 5, .stride = 2, .bias = false}, B>;
template <class B>
using WithoutOverlap = ConvTranspose1d<ConvTranspose1dConfig{.in = 3, .out = 4, .kernel = 2, .stride = 2}, B>;
template <class B>
using Grouped =
    ConvTranspose1d<ConvTranspose1dConfig{.in = 6, .out = 9, .kernel = 7, .stride = 2, .groups = 3}, B>;
template <class B>
using Depthwise = ConvTranspose1d<
    ConvTranspose1dConfig{.in = 5, .out = 5, .kernel = 4, .stride = 2, .groups = 5, .bias = false}, B>;
}  // namespace

TEST_CASE("CUDA: ConvTranspose1d") { hold_to_agreement_in<Doubled, float, double>(); }
TEST_CASE("CUDA: ConvTranspose1d whose stride does not divide the kernel") {
  hold_to_agreement_in<Uneven, float, double>();
}
TEST_CASE("CUDA: ConvTranspose1d without overlap") { hold_to_agreement_in<WithoutOverlap, float, double>(); }
TEST_CASE("CUDA: ConvTranspose1d with groups") { hold_to_agreement_in<Grouped, float, double>(); }
TEST_CASE("CUDA: ConvTranspose1d, depthwise") { hold_to_agreement_in<Depthwise, float, double>(); }
