#include "agreement.cuh"
#include "mttt/codec/conv_transpose1d.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>
using Plain = Conv1d<Conv1dConfig{.in = 3, .out = 5, .kernel = 7}, B>;
template <class B>
using Strided = Conv1d<Conv1dConfig{.in = 4, .out = 6, .kernel = 7, .stride = 3}, B>;
template <class B>
using Dilated = Conv1d<Conv1dConfig{.in = 3, .out = 4, .kernel = 3, .dilation = 4}, B>;
template <class B>
using Replicate =
    Conv1d<Conv1dConfig{
               .in = 4, .out = 4, .kernel = 4, .stride = 2, .bias = false, .pad_mode = PadMode::replicate},
           B>;
template <class B>
using Grouped = Conv1d<Conv1dConfig{.in = 6, .out = 9, .kernel = 4, .stride = 2, .groups = 3}, B>;
template <class B>
using Depthwise =
    Conv1d<Conv1dConfig{
               .in = 5, .out = 5, .kernel = 3, .dilation = 2, .groups = 5, .pad_mode = PadMode::replicate},
           B>;
}  // namespace

TEST_CASE("CUDA: Conv1d") { hold_to_agreement_in<Plain, float, double>({.steps = 25}); }
TEST_CASE("CUDA: Conv1d with a stride") { hold_to_agreement_in<Strided, float, double>({.steps = 20}); }
TEST_CASE("CUDA: Conv1d at many sessions") {
  hold_to_agreement_in<Strided, float, double>({.batch = 19, .steps = 4});
}
TEST_CASE("CUDA: Conv1d with dilation") { hold_to_agreement_in<Dilated, float, double>(); }
TEST_CASE("CUDA: Conv1d that repeats the first sample") { hold_to_agreement_in<Replicate, float, double>(); }
TEST_CASE("CUDA: Conv1d with groups") { hold_to_agreement_in<Grouped, float, double>(); }
TEST_CASE("CUDA: Conv1d, depthwise") { hold_to_agreement_in<Depthwise, float, double>(); }
