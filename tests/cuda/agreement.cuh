// Holds one block to the law that CPU and GPU agree: in float64, where any mistake stands out, in float32, and
// stored in bfloat16; or in those of the three that are named: for blocks that are not used in all of them (the
// codec is not in bfloat16), and for large ones, whose parts stand in other tests in every type.
#pragma once

#include "laws/laws.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_cuda.cuh"

namespace mttt::testing {

/// `Block` is a class template over the backend. A section a type, of the same name in all programs.
template <template <class> class Block, StorageType... T>
void hold_to_agreement_in(const laws::Options& options = {}) {
  const auto hold = [&]<class U>(U) {
    Cpu<U> cpu;
    Cuda<U> gpu;
    demand(laws::backends_agree<Block<Cpu<U>>, Block<Cuda<U>>, typename Block<Cpu<Wide<U>>>::Params>(
        cpu, gpu, options));
  };
  const auto section = [&]<class U>(U zero) {
    SECTION(std::is_same_v<U, double> ? "float64" : std::is_same_v<U, float> ? "float32" : "bfloat16") {
      hold(zero);
    }
  };
  (section(T{}), ...);
}

template <template <class> class Block>
void hold_to_agreement(const laws::Options& options = {}) {
  hold_to_agreement_in<Block, double, float, bf16>(options);
}

}  // namespace mttt::testing
