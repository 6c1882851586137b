// Barriers of shared memory that copies of whole blocks of memory report to, and those copies.
//
// Shapes:  none.
// Units:   bytes; addresses of the shared window. Copies start at multiples of 16 bytes and are such long.
// Errors:  none.
// Not supported: compute capability below 9.0: nothing here may be called there.
// Source:  PTX ISA: mbarrier, cp.async.bulk.
#pragma once

#include <cstdint>

namespace mttt::detail {

template <int = 0>
__device__ void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes barriers that were just initialised known to the engine that copies.
template <int = 0>
__device__ void barrier_publish() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
template <int = 0>
__device__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("{\n\t.reg .b64 state;\n\tmbarrier.arrive.shared::cta.b64 state, [%0];\n\t}" ::"r"(barrier)
               : "memory");
}
/// Arrives, and lets the barrier wait for so many bytes more.
template <int = 0>
__device__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile(
      "{\n\t.reg .b64 state;\n\tmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n\t}" ::"r"(
          barrier),
      "r"(bytes)
      : "memory");
}
/// Waits for all of the first `threads` threads of a block: those that multiply, not the one that copies.
template <int = 0>
__device__ void sync_consumers(int threads) {
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}
/// Waits for the end of the phase of this parity: 0, 1, 0, ...
template <int = 0>
__device__ void barrier_wait(std::uint32_t barrier, unsigned parity) {
  unsigned done = 0;
  while (done == 0) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, "
        "p;\n\t}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}
/// Starts a copy to shared memory that reports to the barrier.
template <int = 0>
__device__ void copy_bulk(std::uint32_t to, const void* from, std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

}  // namespace mttt::detail
