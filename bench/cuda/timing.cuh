// Timing of work on a GPU: a piece of work is recorded as a graph and replayed between two events.
//
// Formula: time = median over rounds of (events' distance / replays of a round).
// Shapes:  none.
// Units:   milliseconds, bytes, operations; powers of ten.
// Errors:  those of the backend.
// Not supported: work that waits for the GPU.
// Source:  CUDA Runtime API, events. Peaks of one NVIDIA H200: bench/NOTES.md.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/cuda.cuh"

namespace bench {

/// What one H200 reaches: a product of bf16 at 8192^3 by cuBLAS, and the memory's speed as it is sold.
inline constexpr double peak_flops = 790e12, peak_bytes = 4.8e12;

class Event {
 public:
  Event() { mttt::detail::check(cudaEventCreate(&event_), "creating an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record(cudaStream_t stream) { mttt::detail::check(cudaEventRecord(event_, stream), "an event"); }
  float since(const Event& start) const {
    float ms = 0;
    mttt::detail::check(cudaEventSynchronize(event_), "waiting for an event");
    mttt::detail::check(cudaEventElapsedTime(&ms, start.event_, event_), "reading a clock");
    return ms;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Numbers evenly distributed within `scale` of `mean`, the same in every run.
template <class T>
struct Fill {
  T* to;
  float scale, mean = 0;
  MTTT_HD void operator()(mttt::Index i) const {
    const auto random = mttt::philox(7, static_cast<std::uint64_t>(i), 0);
    to[i] = T(mean + scale * (static_cast<float>(mttt::uniform_from(random.word[0])) * 2 - 1));
  }
};

/// Seconds by the host's clock.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Milliseconds of one call of f in each of `rounds`, of `calls` in a row, sorted; the first tenth of the rounds,
/// and at least one, warms up.
template <class F>
std::vector<double> times(cudaStream_t stream, int rounds, int calls, F&& f) {
  std::vector<double> result;
  Event start, end;
  const int warm = std::max(1, rounds / 10);
  for (int round = 0; round < warm + rounds; ++round) {
    start.record(stream);
    for (int i = 0; i < calls; ++i) f();
    end.record(stream);
    const double ms = static_cast<double>(end.since(start)) / calls;
    if (round >= warm) result.push_back(ms);
  }
  std::sort(result.begin(), result.end());
  return result;
}

/// Median milliseconds of one run of `work`, which is recorded and replayed.
template <class B, class F>
double milliseconds(B& be, F&& work, int replays = 10, int rounds = 7) {
  work();  // whatever is done once only: loading of kernels, growth of the arena
  be.synchronize();
  auto graph = be.capture(work);
  return times(be.stream(), rounds, replays, [&] { graph.launch(); })[static_cast<std::size_t>(rounds) / 2];
}

/// "name   ms   TFLOP/s  %   GB/s  %"; flops or bytes 0: not counted.
inline void report(const char* name, double ms, double flops, double bytes) {
  std::printf("%-46s %9.4f ms", name, ms);
  if (flops > 0) std::printf("  %7.1f TFLOP/s %3.0f%%", flops / ms * 1e-9, 100e3 * flops / ms / peak_flops);
  if (bytes > 0) std::printf("  %7.0f GB/s %3.0f%%", bytes / ms * 1e-6, 100e3 * bytes / ms / peak_bytes);
  std::printf("\n");
}

}  // namespace bench
