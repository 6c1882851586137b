// TTT-Linear and TTT-MLP against the published implementation.
#include "ttt_golden.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
}  // namespace

TEST_CASE("TTT-Linear equals ttt-lm-pytorch in float32") {
  ttt_equals_published<linear_golden, Cpu<float>>("ttt_linear");
}
TEST_CASE("TTT-Linear equals ttt-lm-pytorch in float64") {
  ttt_equals_published<linear_golden, Cpu<double>>("ttt_linear");
}
TEST_CASE("TTT-MLP equals ttt-lm-pytorch in float32") {
  ttt_equals_published<mlp_golden, Cpu<float>>("ttt_mlp");
}
TEST_CASE("TTT-MLP equals ttt-lm-pytorch in float64") {
  ttt_equals_published<mlp_golden, Cpu<double>>("ttt_mlp");
}
