// Every launch constant of the CUDA backend, with what it was measured on.
//
// None is measured yet: they are safe choices for compute capability 8.0 and later.
//
// Shapes:  none.
// Units:   threads, blocks, bytes.
// Errors:  none.
// Not supported: tuning at run time.
// Source:  none.
#pragma once

#include "mttt/core/tensor.hpp"

namespace mttt::tuning {

/// Element-wise functions: threads a block, and blocks a multiprocessor at most; each strides over the rest.
inline constexpr int map_threads = 256, map_blocks = 16;

/// Rows: blocks a multiprocessor at most, with scratch in shared memory and in global memory.
inline constexpr int row_blocks = 32, row_blocks_global = 2;

/// Threads of a row's team, a multiple of 32. It depends on the cost of one row alone, never on their number:
/// the order of a sum must not change with the batch.
constexpr int row_threads(Index cost) {
  return cost <= 128 ? 32 : cost <= 1024 ? 64 : cost <= 8192 ? 128 : 256;
}

/// Scratch of cuBLAS; the size that its manual recommends for Hopper.
inline constexpr Index cublas_workspace = Index{32} << 20;

/// A step over a ring cache: parts that a session's keys are cut into at most, keys that make another part
/// worth while, threads of a block, and heads' blocks a multiprocessor below which parts get blocks of their own.
inline constexpr int ring_parts = 8, ring_part = 128, ring_threads = 256, ring_fill = 2;

}  // namespace mttt::tuning
