// Mimi with an attention window that binds, on the GPU, whole and streamed, against the published one.
#include "golden/mimi_golden.hpp"
#include "mttt/cuda.cuh"

namespace {
using Golden = mttt::testing::MimiGolden<10, mttt::Cuda<float>>;
}

TEST_CASE("CUDA: Mimi with a binding window equals the published one, whole") {
  Golden("mimi_tiny_window").all_whole();
}
TEST_CASE("CUDA: Mimi with a binding window equals the published one, streamed") {
  Golden("mimi_tiny_window").all_streamed();
}
