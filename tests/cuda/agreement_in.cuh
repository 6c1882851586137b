// Holds one block to the law that CPU and GPU agree, in the storage types that are named: for blocks that are
// not stored in all of them (the codec is never in bfloat16), and for large ones, whose parts stand in other
// tests in every type.
#pragma once

#include "laws/laws.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_cuda.cuh"

namespace mttt::testing {

/// `Block` is a class template over the backend.
template <template <class> class Block, StorageType... T>
void hold_to_agreement_in(const laws::Options& options = {}) {
  const auto hold = [&]<class U>(U) {
    Cpu<U> cpu;
    Cuda<U> gpu;
    demand(laws::backends_agree<Block<Cpu<U>>, Block<Cuda<U>>, typename Block<Cpu<Wide<U>>>::Params>(
        cpu, gpu, options));
  };
  // Sections of the same names as hold_to_agreement's, so that one argument selects a type in all programs.
  const auto section = [&]<class U>(U zero) {
    SECTION(std::is_same_v<U, double> ? "float64" : std::is_same_v<U, float> ? "float32" : "bfloat16") {
      hold(zero);
    }
  };
  (section(T{}), ...);
}

}  // namespace mttt::testing
