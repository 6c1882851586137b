// Training of moshi_1b with TTT on the GPU, in bf16. What is counted: train.cuh.
#include "mttt/presets/moshi_1b.hpp"
#include "train.cuh"

int main() {
  using namespace mttt;
  return bench::guarded([] { bench::train<presets::moshi_1b, bf16>("moshi_1b", 64, 256, 3); });
}
