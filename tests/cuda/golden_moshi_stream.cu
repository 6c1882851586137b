// LMGen on the GPU against the published one.
#include "golden/moshi_stream_golden.hpp"
#include "mttt/cuda.cuh"

TEST_CASE("CUDA: 60 greedy frames say the published codes, with the published text logits") {
  mttt::testing::greedy_frames_equal_published<mttt::Cuda<float>>(GENERATE(1, 2));
}
