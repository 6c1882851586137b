// CudaMemory: zeroed bytes on the GPU that live as long as their owner; and stores that travel between host
// and GPU.
//
// Shapes:  none.
// Units:   bytes.
// Errors:  Error when the GPU has no room: how much was wanted, how much is free, what to lower. Stores of
//          different layouts.
// Not supported: memory of several GPUs at once; allocation while a stream is being captured.
// Source:  CUDA Runtime API, cudaMalloc.
#pragma once

#include <cstdio>
#include <utility>

#include "mttt/backend/cuda/check.cuh"
#include "mttt/core/store.hpp"

namespace mttt {

namespace detail {

inline std::string mebibytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", bytes / (1 << 20));
  return text;
}

[[noreturn]] inline void out_of_memory(Index wanted) {
  cudaGetLastError();  // the next call must not report this one
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  fail("GPU memory",
       mebibytes(static_cast<double>(free)) + " free of " + mebibytes(static_cast<double>(total)),
       mebibytes(static_cast<double>(wanted)) + " more",
       "lower batch or steps, wrap layers in Recompute, or choose a smaller model");
}

}  // namespace detail

class CudaMemory {
 public:
  explicit CudaMemory(Index bytes) {
    if (bytes == 0) return;
    const cudaError_t error =
        bytes > 0 ? cudaMalloc(&data_, static_cast<std::size_t>(bytes)) : cudaErrorMemoryAllocation;
    if (error == cudaErrorMemoryAllocation) detail::out_of_memory(bytes);
    detail::check(error, "allocating memory");
    // The zeros go through the default stream, which ours does not wait for.
    const cudaError_t filled = cudaMemset(data_, 0, static_cast<std::size_t>(bytes));
    const cudaError_t done = filled == cudaSuccess ? cudaStreamSynchronize(nullptr) : filled;
    if (done != cudaSuccess) cudaFree(std::exchange(data_, nullptr));
    detail::check(done, "clearing memory");
  }
  template <class B>
  CudaMemory(B&, Index bytes) : CudaMemory(bytes) {}
  CudaMemory(CudaMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;
  CudaMemory& operator=(CudaMemory&&) = delete;
  ~CudaMemory() { cudaFree(data_); }  // waits for what still uses it

  void* data() { return data_; }
  const void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

namespace detail {
inline void require_same_layout(Index from, Index to) {
  if (from == to) return;
  fail("copying a Store between host and GPU", std::to_string(from) + " bytes", std::to_string(to) + " bytes",
       "use stores of the same block and batch");
}
}  // namespace detail

/// Copies a store in host memory to one on the GPU: the same block's Params or State, on either backend.
template <class P, class Host, class Q, class B>
void upload(B& be, const Store<P, Host>& from, Store<Q, B>& to) {
  detail::require_same_layout(from.bytes(), to.bytes());
  be.to_device(from.data(), to.data(), from.bytes());
}
/// And back.
template <class P, class B, class Q, class Host>
void download(B& be, const Store<P, B>& from, Store<Q, Host>& to) {
  detail::require_same_layout(from.bytes(), to.bytes());
  be.to_host(from.data(), to.data(), from.bytes());
}

}  // namespace mttt
