// The laws of the causal convolution: strides, dilations, groups, both paddings, kernel 1.
#include "mttt/codec/conv1d.hpp"
#include "laws.hpp"

namespace {
using namespace mttt;
template <class B>
using Plain = Conv1d<Conv1dConfig{.in = 3, .out = 5, .kernel = 7}, B>;
template <class B>
using Pointwise = Conv1d<Conv1dConfig{.in = 6, .out = 4, .kernel = 1, .bias = false}, B>;
template <class B>
using Strided = Conv1d<Conv1dConfig{.in = 4, .out = 6, .kernel = 6, .stride = 3}, B>;
template <class B>
using WithoutContext = Conv1d<Conv1dConfig{.in = 4, .out = 6, .kernel = 3, .stride = 3}, B>;
template <class B>
using Dilated = Conv1d<Conv1dConfig{.in = 3, .out = 4, .kernel = 3, .dilation = 4}, B>;
template <class B>
using StridedDilated = Conv1d<Conv1dConfig{.in = 2, .out = 3, .kernel = 4, .stride = 2, .dilation = 3}, B>;
}  // namespace

TEST_CASE("Conv1d") { mttt::testing::hold_to_all_laws<Plain>(); }
TEST_CASE("Conv1d of one sample") { mttt::testing::hold_to_all_laws<Pointwise>(); }
TEST_CASE("Conv1d with a stride") { mttt::testing::hold_to_all_laws<Strided>(); }
TEST_CASE("Conv1d whose kernel is its stride") { mttt::testing::hold_to_all_laws<WithoutContext>(); }
TEST_CASE("Conv1d with dilation") { mttt::testing::hold_to_all_laws<Dilated>(); }
TEST_CASE("Conv1d with stride and dilation") { mttt::testing::hold_to_all_laws<StridedDilated>(); }
TEST_CASE("Conv1d at many sessions") { mttt::testing::hold_to_all_laws<Strided>({.batch = 19, .steps = 4}); }
