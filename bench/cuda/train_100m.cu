// Training of moshi_100m with TTT on the GPU, in bf16. What is counted: train.cuh.
#include "mttt/presets/moshi_100m.hpp"
#include "train.cuh"

int main() {
  using namespace mttt;
  return bench::guarded([] { bench::train<presets::moshi_100m, bf16>("moshi_100m", 64, 256, 3); });
}
