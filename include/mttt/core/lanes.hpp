// Lanes: neighbours in memory that are read and written in one access, 16 bytes where W says so.
//
// Formula: none.
// Shapes:  W elements that start at a multiple of W * sizeof(T) bytes, or of 16 if that is more.
// Units:   elements.
// Errors:  none: who calls has seen to the alignment.
// Not supported: none.
// Source:  CUDA C++ Best Practices Guide, vectorised memory access.
#pragma once

#include "mttt/core/tensor.hpp"

namespace mttt::detail {

template <class T, Index W>
struct alignas(W * sizeof(T) < 16 ? W * sizeof(T) : 16) Lanes {
  T of[W];
};

template <Index W, class T>
MTTT_HD Lanes<T, W> load_lanes(const T* from) {
  return *reinterpret_cast<const Lanes<T, W>*>(from);
}
template <class T, Index W>
MTTT_HD void store_lanes(T* to, const Lanes<T, W>& lanes) {
  *reinterpret_cast<Lanes<T, W>*>(to) = lanes;
}

}  // namespace mttt::detail
