// The backend that train and stream are compiled for: MTTT_EXAMPLES_BACKEND of CMake decides.
#pragma once

#include <sys/resource.h>

#include <string>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/backend/with_weights.hpp"
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

/// A square product that keeps the device busy.
inline constexpr mttt::Index product_size = 8192;

/// Of the GPU, other programs' included.
inline double megabytes_in_use() {
  std::size_t free = 0, total = 0;
  return cudaMemGetInfo(&free, &total) == cudaSuccess ? 1e-6 * static_cast<double>(total - free) : 0;
}

#else

template <mttt::StorageType T>
using Device = mttt::Cpu<T>;

template <mttt::StorageType T>
std::string name_of(const mttt::Cpu<T>& be) {
  return "the CPU, " + std::to_string(be.threads()) + (be.threads() == 1 ? " thread" : " threads");
}

inline constexpr mttt::Index product_size = 1024;

/// At its most so far.
inline double megabytes_in_use() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return 1024e-6 * static_cast<double>(usage.ru_maxrss);
}

#endif

/// Weights in 8 or 4 bits, beside numbers that the device computes fastest with.
#ifdef MTTT_EXAMPLES_CUDA
template <class Format>
using Quantised = mttt::WithWeights<Format, Device<mttt::bf16>>;
#else
template <class Format>
using Quantised = mttt::WithWeights<Format, Device<float>>;
#endif

/// What a backend stores weights in, as command lines call it.
template <class B>
constexpr const char* stored_in() {
  if constexpr (requires { typename B::Weights; }) {
    return B::Weights::bits == 8 ? "int8" : "int4";
  } else {
    return std::is_same_v<typename B::Scalar, mttt::bf16> ? "bf16" : "f32";
  }
}

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
