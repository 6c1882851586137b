// Every launch constant of the CUDA backend, with what it was measured on.
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
/// y = a + b in bf16, H200 (bench/cuda/launch.cu): 2^27 elements 0.197 ms, 4.1 TB/s; from 128 to 512 threads and
/// 8 to 32 blocks all lie within 4% of each other, 128 threads with 4 blocks lose a fifth.
inline constexpr int map_threads = 256, map_blocks = 16;

/// Rows: blocks a multiprocessor at most, with scratch in shared memory and in global memory. RmsNorm of 65536
/// rows of 64, H200: 0.046 ms with 8, 0.027 with 16, 0.021 with 32.
inline constexpr int row_blocks = 32, row_blocks_global = 2;

/// Threads of a row's team, a multiple of 32. It depends on the cost of one row alone, never on their number:
/// the order of a sum must not change with the batch. RmsNorm (cost 3 a channel) in bf16, H200, microseconds at
/// 32, 64, 128, 256 threads: 65536 x 64: 21, 39, 53, 106; 8192 x 512: 7.2, 7.1, 9.8, 16.8; 2048 x 4096: 11.4,
/// 9.7, 9.3, 9.9; one row of 4096: 8.6, 5.6, 3.9, 3.3. Rows of the last kind (sampling from 32000) take all.
constexpr int row_threads(Index cost) {
  return cost <= 512 ? 32 : cost <= 2048 ? 64 : cost <= 8192 ? 128 : cost <= 1 << 18 ? 256 : 1024;
}

/// Scratch of cuBLAS; the size that its manual recommends for Hopper.
inline constexpr Index cublas_workspace = Index{32} << 20;

/// A step over a ring cache: parts that a session's keys are cut into at most, keys of a part that make
/// another worth while, threads of a block, and blocks a multiprocessor below which parts have blocks of
/// their own.
inline constexpr int ring_parts = 8, ring_part = 128, ring_threads = 256, ring_fill = 2;

}  // namespace mttt::tuning
