// MemoryUse: what a piece of memory is for, so that a message about memory that cannot be had says what to
// lower.
//
// Shapes:  none.   Units: none.   Errors: none.
// Not supported: accounting by block.
// Source:  none.
#pragma once

#include <string_view>

namespace mttt {

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

}  // namespace mttt
