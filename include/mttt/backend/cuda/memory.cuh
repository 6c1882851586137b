// CudaMemory: zeroed bytes on the GPU that live as long as their owner.
//
// Shapes:  none.
// Units:   bytes.
// Errors:  Error when the GPU has no room: for what, how much was wanted, how much is free, what to lower.
// Not supported: memory of several GPUs at once; allocation while a stream is being captured.
// Source:  CUDA Runtime API, cudaMalloc.
#pragma once

#include <atomic>
#include <utility>

#include "mttt/backend/cuda/check.cuh"
#include "mttt/core/memory_use.hpp"
#include "mttt/core/tensor.hpp"

namespace mttt {

namespace detail {

[[noreturn]] inline void out_of_gpu_memory(Index wanted, MemoryUse use) {
  cudaGetLastError();  // the next call must not report this one
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  fail("GPU memory for " + std::string(name_of(use)),
       binary_size(static_cast<double>(free)) + " free of " + binary_size(static_cast<double>(total)),
       binary_size(static_cast<double>(wanted)) + " more", advice_of(use));
}

}  // namespace detail

class CudaMemory {
 public:
  explicit CudaMemory(Index bytes, MemoryUse use = MemoryUse::other) {
    if (bytes == 0) return;
    const cudaError_t error =
        bytes > 0 ? cudaMalloc(&data_, static_cast<std::size_t>(bytes)) : cudaErrorMemoryAllocation;
    if (error == cudaErrorMemoryAllocation) detail::out_of_gpu_memory(bytes, use);
    detail::check(error, "allocating memory");
    bytes_ = bytes;
    held_ += bytes;
    // The zeros go through the default stream, which ours does not wait for.
    const cudaError_t filled = cudaMemset(data_, 0, static_cast<std::size_t>(bytes));
    const cudaError_t done = filled == cudaSuccess ? cudaStreamSynchronize(nullptr) : filled;
    if (done != cudaSuccess) release();
    detail::check(done, "clearing memory");
  }
  template <class B>
  CudaMemory(B&, Index bytes, MemoryUse use = MemoryUse::other) : CudaMemory(bytes, use) {}
  CudaMemory(CudaMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  CudaMemory& operator=(CudaMemory&&) = delete;
  ~CudaMemory() { release(); }

  void* data() { return data_; }
  const void* data() const { return data_; }

  /// Bytes that all objects of this process hold; what other programs take is not in it.
  static Index held() { return held_; }

 private:
  void release() {  // waits for what still uses it
    cudaFree(std::exchange(data_, nullptr));
    held_ -= std::exchange(bytes_, 0);
  }

  static inline std::atomic<Index> held_ = 0;
  void* data_ = nullptr;
  Index bytes_ = 0;
};

}  // namespace mttt
