// The backend that train and stream are compiled for: MTTT_EXAMPLES_BACKEND of CMake decides.
#pragma once

#include <string>

#include "mttt/backend/cpu/cpu.hpp"
#ifdef MTTT_EXAMPLES_CUDA
#include "mttt/cuda.cuh"
#endif

/// Where files, recordings and random starts are: in the memory of the host.
using Host = mttt::Cpu<float>;

#ifdef MTTT_EXAMPLES_CUDA

template <mttt::StorageType T>
using Device = mttt::Cuda<T>;

template <mttt::StorageType T>
std::string name_of(const mttt::Cuda<T>& be) {
  cudaDeviceProp properties{};
  return cudaGetDeviceProperties(&properties, be.device()) == cudaSuccess ? properties.name : "a GPU";
}

#else

template <mttt::StorageType T>
using Device = mttt::Cpu<T>;

template <mttt::StorageType T>
std::string name_of(const mttt::Cpu<T>& be) {
  return "the CPU, " + std::to_string(be.threads()) + (be.threads() == 1 ? " thread" : " threads");
}

#endif

/// Waits until all work is done.
template <class B>
void wait_for(B& be) {
  if constexpr (requires { be.synchronize(); }) be.synchronize();
}

/// What does `work` when it is called, which is always the same: recorded once, where the backend can.
template <class B, class F>
auto repeatable(B& be, F work) {
  if constexpr (requires { be.stream(); }) {
    return [graph = be.capture(work)]() mutable { graph.launch(); };
  } else {
    return work;
  }
}
