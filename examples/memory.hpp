// Whether a model fits into memory, asked before anything is allocated or read: on Linux a program that takes
// more than there is ends without a word.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>

#include "backend.hpp"
#include "mttt/core/memory_use.hpp"
#include "mttt/core/visit.hpp"

/// Bytes of an aggregate of tensors for one session.
template <class P>
double bytes_of() {
  double bytes = 0;
  mttt::for_each_tensor(
      [&](std::string_view, const auto& tensor) {
        using Tens = std::remove_cvref_t<decltype(tensor)>;
        double count = 1;
        for (const auto extent : Tens::static_extents)
          count *= extent == mttt::dyn ? 1.0 : static_cast<double>(extent);
        bytes += count * sizeof(typename Tens::value_type);
      },
      *std::make_unique<P>());  // on the heap: thousands of tensors
  return bytes;
}

namespace host_memory {

inline std::optional<double> number_in(const char* path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;  // "max" is no number
  return std::nullopt;
}

/// What programs may still take of the machine, and of the container, if there is one; nothing if nobody
/// says.
inline std::optional<double> available() {
  std::optional<double> least;
  std::ifstream file("/proc/meminfo");
  double swap = 0;
  for (std::string line; std::getline(file, line);) {
    double kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lf", &kib) == 1) least = 1024 * kib;
    if (std::sscanf(line.c_str(), "SwapFree: %lf", &kib) == 1) swap = 1024 * kib;
  }
  if (least) *least += swap;
  const auto limit = number_in("/sys/fs/cgroup/memory.max"),
             used = number_in("/sys/fs/cgroup/memory.current");
  if (limit && used) least = std::min(least.value_or(*limit), *limit - *used);
  return least;
}

}  // namespace host_memory

/// Refuses what does not fit. `what` is the model, `dtype` what it is stored in.
template <class B>
void expect_memory(const std::string& what, double bytes, const std::string& dtype) {
  const bool on_host = requires { typename B::Memory; }
  &&std::is_same_v<typename B::Memory, mttt::CpuMemory>;
  std::optional<double> left;
  if (on_host) left = host_memory::available();
#ifdef MTTT_EXAMPLES_CUDA
  std::size_t free = 0, total = 0;
  if (!on_host && cudaMemGetInfo(&free, &total) == cudaSuccess) left = static_cast<double>(free);
#endif
  if (!left || bytes <= *left) return;
  using mttt::detail::binary_size;
  const char* smaller = dtype == "f32" ? "bf16" : dtype == "bf16" ? "int8" : dtype == "int8" ? "int4" : "";
  mttt::fail(
      on_host ? "memory of this machine" : "memory of the GPU", binary_size(*left) + " available",
      binary_size(bytes) + " for " + what,
      (*smaller != 0 ? "name --dtype " + std::string(smaller) + ", which takes half, " : std::string()) +
          "end other programs, or choose a smaller model or a larger machine");
}
