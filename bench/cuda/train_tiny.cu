// Training of the tiny Moshi on the GPU, in float32 and in bf16. What is counted: train.cuh.
#include "mttt/presets/tiny.hpp"
#include "train.cuh"

int main() {
  using namespace mttt;
  return bench::guarded([] {
    bench::train<presets::tiny, float>("tiny", 64, 256, 5);
    bench::train<presets::tiny, bf16>("tiny", 64, 256, 5);
  });
}
