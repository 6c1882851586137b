// MemoryUse: what a piece of memory is for, so that a message about memory that cannot be had says what to
// lower.
//
// Shapes:  none.   Units: bytes.
// Errors:  counted_bytes refuses what no 64-bit number counts.
// Not supported: accounting by block.
// Source:  none.
#pragma once

#include <cstddef>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>

#include "mttt/core/error.hpp"

namespace mttt {

namespace detail {
/// "1.5 GiB", below one "512.0 MiB".
inline std::string binary_size(double bytes) {
  const bool large = bytes >= 1 << 30;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %s", bytes / (large ? 1 << 30 : 1 << 20), large ? "GiB" : "MiB");
  return text;
}
}  // namespace detail

enum class MemoryUse { other, activations, parameters, sessions, workspace };

/// "activations": completes "memory for".
constexpr std::string_view name_of(MemoryUse use) {
  constexpr std::string_view names[] = {"other data", "activations", "parameters, gradients or moments",
                                        "the state of sessions", "products (the cuBLAS workspace)"};
  return names[static_cast<int>(use)];
}

/// What makes it less.
constexpr std::string_view advice_of(MemoryUse use) {
  constexpr std::string_view advice[] = {
      "end other programs that use this memory", "lower batch or steps, or wrap layers in Recompute",
      "choose a smaller model or store it in bf16; a moment or an average takes as much as the parameters",
      "lower the number of sessions or the context of attention", "end other programs that use this memory"};
  return advice[static_cast<int>(use)];
}

/// The product of the extents and of the size of an element: a product that wrapped around would hand out a
/// piece too small, without a word.
template <class Extents>
auto counted_bytes(const Extents& extents, std::size_t element, MemoryUse use) {
  typename Extents::value_type bytes = static_cast<typename Extents::value_type>(element);
  bool counted = true;
  for (const auto extent : extents) counted = !__builtin_mul_overflow(bytes, extent, &bytes) && counted;
  if (!counted || bytes < 0 || bytes > (std::numeric_limits<decltype(bytes)>::max() >> 4)) {
    fail("memory for " + std::string(name_of(use)), "more bytes than can be counted",
         "a size that a machine may have", advice_of(use));
  }
  return bytes;
}

}  // namespace mttt
