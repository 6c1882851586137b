// Holds one block to the law that CPU and GPU agree: in float64, where any mistake stands out, in float32, and
// stored in bfloat16.
#pragma once

#include "laws/laws.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_cuda.cuh"

namespace mttt::testing {

/// `Block` is a class template over the backend.
template <template <class> class Block>
void hold_to_agreement(const laws::Options& options = {}) {
  SECTION("float64") {
    Cpu<double> cpu;
    Cuda<double> gpu;
    demand(laws::backends_agree<Block<Cpu<double>>, Block<Cuda<double>>>(cpu, gpu, options));
  }
  SECTION("float32") {
    Cpu<float> cpu;
    Cuda<float> gpu;
    demand(laws::backends_agree<Block<Cpu<float>>, Block<Cuda<float>>>(cpu, gpu, options));
  }
  SECTION("bfloat16") {
    Cpu<bf16> cpu;
    Cuda<bf16> gpu;
    demand(laws::backends_agree<Block<Cpu<bf16>>, Block<Cuda<bf16>>, typename Block<Cpu<float>>::Params>(
        cpu, gpu, options));
  }
}

}  // namespace mttt::testing
