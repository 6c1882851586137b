// One frame of Moshi 7B with weights in 8 bits.
#include "frame.cuh"
#include "mttt/backend/with_weights.hpp"

int main() {
  return bench::guarded([] {
    mttt::WithWeights<mttt::Int8, mttt::Cuda<mttt::bf16>> be;
    bench::frame(be, "8-bit");
  });
}
