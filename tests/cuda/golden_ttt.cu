// TTT on the GPU against the published implementation.
#include "golden/ttt_golden.hpp"
#include "mttt/cuda.cuh"

namespace {
using namespace mttt;
using namespace mttt::testing;
}  // namespace

TEST_CASE("CUDA: TTT-Linear equals ttt-lm-pytorch") {
  SECTION("float32") { ttt_equals_published<linear_golden, Cuda<float>>("ttt_linear"); }
  SECTION("float64") { ttt_equals_published<linear_golden, Cuda<double>>("ttt_linear"); }
}
TEST_CASE("CUDA: TTT-MLP equals ttt-lm-pytorch") {
  SECTION("float32") { ttt_equals_published<mlp_golden, Cuda<float>>("ttt_mlp"); }
  SECTION("float64") { ttt_equals_published<mlp_golden, Cuda<double>>("ttt_mlp"); }
}
