// Mimi on the GPU, whole and streamed, against the published implementation.
#include "golden/mimi_golden.hpp"
#include "mttt/cuda.cuh"

namespace {
using Golden = mttt::testing::MimiGolden<64, mttt::Cuda<float>>;
}

TEST_CASE("CUDA: Mimi equals the published one, whole") { Golden("mimi_tiny").all_whole(); }
TEST_CASE("CUDA: Mimi equals the published one, streamed") { Golden("mimi_tiny").all_streamed(); }
