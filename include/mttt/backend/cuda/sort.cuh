// sort_pairs: small whole numbers in order, each with a value, by CUB's radix sort.
//
// Formula: a stable sort by key; the bits of `largest` are all it looks at.
// Shapes:  keys, values (n), left as they are; the sorted ones lie in the arena.
// Units:   elements.
// Errors:  those of check.cuh.
// Not supported: more than 2^31 pairs.
// Source:  cub::DeviceRadixSort.
#pragma once

#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "mttt/backend/arena.hpp"
#include "mttt/backend/cuda/check.cuh"

namespace mttt::detail {

template <class Pairs, class Memory>
Pairs sort_pairs(cudaStream_t stream, Arena<Memory>& arena, const std::int32_t* keys,
                 const std::int32_t* values, Index n, Index largest) {
  auto* sorted_keys = make_tensor<std::int32_t, dyn>(arena, n).data();
  auto* sorted_values = make_tensor<std::int32_t, dyn>(arena, n).data();
  const int bits = std::bit_width(static_cast<std::uint64_t>(largest));
  std::size_t bytes = 0;
  const auto sort = [&](void* scratch) {
    check(cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, sorted_keys, values, sorted_values,
                                          static_cast<int>(n), 0, bits, stream),
          "sorting");
  };
  sort(nullptr);  // asks for the size of its scratch
  sort(arena.alloc(static_cast<Index>(bytes)));
  return {sorted_keys, sorted_values};
}

}  // namespace mttt::detail
