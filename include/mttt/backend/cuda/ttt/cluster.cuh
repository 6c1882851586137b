// Clusters: blocks that share a head, run at the same time, and reach each other's shared memory.
//
// Shapes:  none.
// Units:   addresses in bytes of the shared window.
// Errors:  none.
// Not supported: compute capability below 9.0; there these functions do nothing, and must not be reached.
// Source:  PTX ISA: barrier.cluster, mapa.
#pragma once

#include <cstdint>

namespace mttt::detail {

/// Whether all GPUs that this program is compiled for have clusters. nvcc names them for the host's code,
/// too.
constexpr bool compiled_for_clusters() {
#ifdef __CUDA_ARCH_LIST__
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture < 900) return false;
  }
#endif
  return true;
}

__device__ inline int cluster_rank() {
  int rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
/// Every thread of every block arrives and waits; what any of them wrote before is then seen by all.
__device__ inline void arrive_at_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void await_cluster() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ inline void meet() {
  arrive_at_cluster();
  await_cluster();
}

/// The place in block `rank` of the cluster that `at` is in this one.
__device__ inline std::uint32_t address_in_block(std::uint32_t at, int rank) {
  std::uint32_t there = at;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
#endif
  return there;
}

}  // namespace mttt::detail
