// The laws of the transposed convolution: strides, groups, kernels of one, two and two and a half strides.
#include "mttt/codec/conv_transpose1d.hpp"
#include "laws.hpp"

namespace {
using namespace mttt;
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

TEST_CASE("ConvTranspose1d") { mttt::testing::hold_to_all_laws<Doubled>(); }
TEST_CASE("ConvTranspose1d whose stride does not divide the kernel") {
  mttt::testing::hold_to_all_laws<Uneven>();
}
TEST_CASE("ConvTranspose1d without overlap") { mttt::testing::hold_to_all_laws<WithoutOverlap>(); }
TEST_CASE("ConvTranspose1d with groups") { mttt::testing::hold_to_all_laws<Grouped>(); }
TEST_CASE("ConvTranspose1d, depthwise") { mttt::testing::hold_to_all_laws<Depthwise>(); }
