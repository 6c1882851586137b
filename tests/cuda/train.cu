// Training in float32: the GPU follows the CPU, step by step.
#include "train_small.cuh"

namespace {
using namespace mttt;
using testing::Training;
}  // namespace

TEST_CASE("CUDA: training in float32 follows the CPU") {
  const TrainOptions options{.max_steps = 12, .lr = 2e-3, .num_microbatches = 2};
  Training<Cpu<float>> cpu(options);
  Training<Cuda<float>> gpu(options);
  // A step differs by rounding, 1e-6; AdamW divides small gradients by their own size, so that some weights
  // differ by a share of the step, and the difference grows from step to step.
  double first = 0, last = 0;
  for (int i = 0; i < 12; ++i) {
    const auto expected = cpu.step(), got = gpu.step();
    INFO("step " << i);
    CHECK(got.loss == Approx(expected.loss).epsilon(i == 0 ? 1e-5 : 1e-3));
    CHECK(got.gradient_norm == Approx(expected.gradient_norm).epsilon(i == 0 ? 1e-4 : 1e-2));
    (i == 0 ? first : last) = got.loss;
  }
  CHECK(last < 0.9 * first);
}

TEST_CASE("CUDA: a warm training step allocates nothing") {
  Training<Cuda<float>> gpu({.max_steps = 10, .lr = 1e-3});
  gpu.losses(2);
  const Index arena = gpu.be.arena_bytes(), held = CudaMemory::held();
  gpu.losses(3);
  CHECK(gpu.be.arena_bytes() == arena);
  CHECK(CudaMemory::held() == held);
}
