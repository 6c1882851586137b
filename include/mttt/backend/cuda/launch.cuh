// Launcher: starts kernels, on Hopper while the kernel before is still running.
//
// A kernel that is started early calls start_next() and await_inputs() before it reads or writes anything:
// its blocks are then in place when the kernel before ends. Fetching weights into the cache while they wait made
// products slower on an H200 (22528 x 4096 in float32, one row: 98 instead of 84 us). One that awaits its
// inputs first and calls start_next() then lets the next kernel read early whatever is older than itself.
//
// Shapes:  none.
// Units:   threads, bytes.
// Errors:  those of check.cuh.
// Not supported: early starts before compute capability 9.0; kernels wait there for the whole one before.
// Source:  CUDA C++ Programming Guide, Programmatic Dependent Launch.
#pragma once

#include <utility>

#include "mttt/backend/cuda/check.cuh"
#include "mttt/core/tensor.hpp"

namespace mttt::detail {

/// Lets the next kernel take the multiprocessors that this one leaves idle.
__device__ inline void start_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
/// Waits until all that was queued before has ended and is seen. Every thread of every block calls it.
__device__ inline void await_inputs() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

class Launcher {
 public:
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;
  Launcher(cudaStream_t stream, int device) : stream_(stream) {
    // Code for an older architecture, compiled again by the driver, does not wait.
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, probe_kernel<>), "opening a GPU");
    early_ = attributes.ptxVersion >= 90 && device_attribute(device, cudaDevAttrComputeCapabilityMajor) >= 9;
  }

  cudaStream_t stream() const { return stream_; }

  /// The kernel awaits its inputs itself.
  template <class... P, class... A>
  void operator()(const char* what, void (*kernel)(P...), dim3 blocks, unsigned threads, Index shared,
                  A&&... arguments) const {
    start(what, kernel, 1, blocks, threads, shared, std::forward<A>(arguments)...);
  }
  /// A kernel that lets the next one in only after it has awaited its own inputs: when the next one starts, all
  /// that was queued before this one has ended.
  template <class... P, class... A>
  void waiting(const char* what, void (*kernel)(P...), dim3 blocks, unsigned threads, Index shared,
               A&&... arguments) const {
    start(what, kernel, 1, blocks, threads, shared, std::forward<A>(arguments)...);
    previous_waits_ = true;
  }
  /// Whether the kernel that was started last is such a one: what was written before it may then be read early.
  bool previous_waits() const { return previous_waits_; }
  /// All blocks at once, so that they may wait for each other; after the whole kernel before.
  template <class... P, class... A>
  void together(const char* what, void (*kernel)(P...), unsigned blocks, unsigned threads, Index shared,
                A&&... arguments) const {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    queue(what, kernel, &attribute, 1, blocks, threads, shared, std::forward<A>(arguments)...);
  }
  /// In clusters of `cluster` blocks, which compute capability 9.0 has. The kernel awaits its inputs itself.
  template <class... P, class... A>
  void in_clusters(const char* what, void (*kernel)(P...), unsigned clusters, unsigned cluster,
                   unsigned threads, Index shared, A&&... arguments) const {
    start(what, kernel, cluster, clusters * cluster, threads, shared, std::forward<A>(arguments)...);
  }

 private:
  template <class... P, class... A>
  void start(const char* what, void (*kernel)(P...), unsigned cluster, dim3 blocks, unsigned threads,
             Index shared, A&&... arguments) const {
    cudaLaunchAttribute attributes[2]{};
    unsigned count = 0;
    if (early_) {
      attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count++].val.clusterDim = {cluster, 1, 1};
    }
    queue(what, kernel, attributes, count, blocks, threads, shared, std::forward<A>(arguments)...);
  }
  template <class... P, class... A>
  void queue(const char* what, void (*kernel)(P...), cudaLaunchAttribute* attributes, unsigned count,
             dim3 blocks, unsigned threads, Index shared, A&&... arguments) const {
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shared);
    config.stream = stream_;
    config.attrs = attributes;
    config.numAttrs = count;
    check(cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...), what);
    previous_waits_ = false;
  }

  cudaStream_t stream_;
  bool early_;
  mutable bool previous_waits_ = false;
};

}  // namespace mttt::detail
