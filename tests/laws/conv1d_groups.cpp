// The laws of the causal convolution with groups and with its first sample repeated.
#include "laws.hpp"
#include "mttt/codec/conv1d.hpp"

namespace {
using namespace mttt;
template <class B>
using Replicate =
    Conv1d<Conv1dConfig{
               .in = 4, .out = 4, .kernel = 4, .stride = 2, .bias = false, .pad_mode = PadMode::replicate},
           B>;
template <class B>
using LongReplicate =
    Conv1d<Conv1dConfig{.in = 3, .out = 2, .kernel = 5, .dilation = 2, .pad_mode = PadMode::replicate}, B>;
template <class B>
using Grouped = Conv1d<Conv1dConfig{.in = 6, .out = 9, .kernel = 4, .stride = 2, .groups = 3}, B>;
template <class B>
using Depthwise =
    Conv1d<Conv1dConfig{
               .in = 5, .out = 5, .kernel = 3, .dilation = 2, .groups = 5, .pad_mode = PadMode::replicate},
           B>;
}  // namespace

TEST_CASE("Conv1d that repeats the first sample") { mttt::testing::hold_to_all_laws<Replicate>(); }
TEST_CASE("Conv1d with a context longer than a chunk") { mttt::testing::hold_to_all_laws<LongReplicate>(); }
TEST_CASE("Conv1d with groups") { mttt::testing::hold_to_all_laws<Grouped>(); }
TEST_CASE("Conv1d, depthwise") { mttt::testing::hold_to_all_laws<Depthwise>(); }
