// One frame of Moshi 7B with weights in 4 bits.
#include "frame.cuh"
#include "mttt/backend/with_weights.hpp"

int main() {
  return bench::guarded([] {
    mttt::WithWeights<mttt::Int4, mttt::Cuda<mttt::bf16>> be;
    bench::frame(be, "4-bit");
  });
}
