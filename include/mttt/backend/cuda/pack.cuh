// Packs: several neighbouring elements read or written by one instruction of 16 bytes.
//
// A thread that reads 2 bytes at a time cannot keep the memory of a GPU busy; one that reads 16 can. Packs are
// used where the arrays start at multiples of 16 bytes and their length is a multiple of a pack, so that the
// order of a sum depends on the row's length alone, not on its place.
//
// Shapes:  arrays of n elements.
// Units:   elements.
// Errors:  none.
// Not supported: strides.
// Source:  CUDA C++ Best Practices Guide, coalesced access; vector loads.
#pragma once

#include "mttt/core/bf16.hpp"
#include "mttt/core/lanes.hpp"

namespace mttt::detail {

/// Elements of a pack: 16 bytes of the smallest of the types.
template <class... T>
inline constexpr int pack_width = [] {
  int width = 1;
  ((width = 16 / static_cast<int>(sizeof(T)) > width ? 16 / static_cast<int>(sizeof(T)) : width), ...);
  return width;
}();

template <class T, int width>
using Pack = Lanes<T, width>;

template <int width, class T>
__device__ Pack<T, width> pack(const T* array, Index i) {
  return load_lanes<width>(array + i * width);
}

template <int width, class... T>
__device__ bool in_packs(Index n, const T*... arrays) {
  return n % width == 0 && ((reinterpret_cast<std::uintptr_t>(arrays) % 16 == 0) && ...);
}

/// out[i] = f(in[i]...) for thread `first` of `count`.
template <class F, class Out, class... In>
__device__ void map_packs(Index n, Index first, Index count, const F& f, Out* out, const In*... in) {
  constexpr int width = pack_width<Out, In...>;
  if (in_packs<width>(n, out, in...)) {
    for (Index i = first; i < n / width; i += count) {
      Pack<Out, width> result;
      [&](const Pack<In, width>&... packs) {
#pragma unroll
        for (int k = 0; k < width; ++k) result.of[k] = static_cast<Out>(f(wide(packs.of[k])...));
      }(pack<width>(in, i)...);
      store_lanes(out + i * width, result);
    }
  } else {
    for (Index i = first; i < n; i += count) out[i] = static_cast<Out>(f(wide(in[i])...));
  }
}

}  // namespace mttt::detail
