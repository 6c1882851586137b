// Moshi on the GPU against the published LMModel.
#include "golden/moshi_golden.hpp"
#include "mttt/cuda.cuh"

TEST_CASE("CUDA: Moshi's teacher-forced logits equal the published ones") {
  mttt::testing::logits_equal_published<mttt::Cuda<float>>();
}
