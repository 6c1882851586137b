// Training of moshi_1b without TTT on the GPU, in bf16. What is counted: train.cuh.
#include "mttt/presets/moshi_1b.hpp"
#include "train.cuh"

int main() {
  using namespace mttt;
  return bench::guarded(
      [] { bench::train<presets::moshi_1b_without_ttt, bf16>("moshi_1b_without_ttt", 64, 256, 3); });
}
