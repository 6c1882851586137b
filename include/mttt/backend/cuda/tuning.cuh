// Every launch constant of the CUDA backend, with what it was measured on.
//
// Shapes:  none.
// Units:   threads, blocks, bytes; rows of tiles.
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

/// Products of few rows: threads a block at most, and the rows up to which `matmul` takes them. An H200 reads
/// weights of 22528 x 4096 at 4.4, 4.3, 4.0 and 2.9 TB/s in float32 for 1, 2, 4 and 8 rows, at 3.7, 3.5, 2.7
/// and 1.8 TB/s in bf16.
inline constexpr int few_rows_threads = 256;
template <class T>
inline constexpr Index few_rows = sizeof(T) == 2 ? 4 : 8;

/// Products of few rows whose weights stream through shared memory: threads of a block at most, and bytes of
/// its queue, so that two blocks fit a multiprocessor. On an H200 the four products of 8 layers of Moshi 7B, 3.29 GB,
/// took 0.820 ms, the next kernel let in once the rows are there. Let in when the last stage is asked for: 0.868 ms,
/// and with queues of 64 and 48 KiB 0.866 and 0.854 ms.
inline constexpr int streamed_threads = 416, streamed_queue = 96 << 10;

/// Blocks that stay for all products of a step: warps that multiply; bytes and number of the queue's stages, and those
/// that are asked for at a time, in layers of a large transformer and in a frame of the depformer. On an H200, Moshi
/// 7B, one session, 3000 frames seen: all layers 3.42 ms in bf16, 2.15 in 8 bits, 1.71 in 4; a frame of the depformer
/// 0.87, 0.75, 0.74. Before other changes 3.60, 2.30, 2.04 ms with 2 stages at a time, 3.66, 2.37, 2.07 with 3, 3.71,
/// 2.45, 2.08 with all; with 1 bf16 loses 0.3 ms. Stages of 64 KB, or of 32 for the depformer, gain nothing.
inline constexpr int resident_warps = 16, layers_stage = 32 << 10, layers_stages = 6, layers_under_way = 2,
                     depth_stage = 16 << 10, depth_stages = 12, depth_under_way = 4;

/// Steps in float32 of so many rows, or of 128 and of so many multiplications, are products of many rows: those
/// of several sessions' codecs. An H200, microseconds by few_rows.cuh and by tiles of 32 x 32, 64 x 64 and
/// 128 x 128: 61440 x 128 x 512: 3408, 446, 360, 275; 12288 x 128 x 768: 1007, 125, 105, 130; 512 x 512 x 3072:
/// 364, 101, 190, 526; 491520 x 64 x 7 of no whole packs: 5912.
inline constexpr Index many_rows = 2048, many_rows_work = Index{1} << 25;

/// Streaming steps over a short ring: threads of a head's block, and the longest context and head it takes.
/// On an H200 a frame of Mimi came from 1.12 to 0.80 ms when blocks asked for their ring's rows before they
/// rotate, and convolutions chose their addresses before they read.
inline constexpr int rotated_threads = 512, rotated_context = 512, rotated_dim = 64;

/// Scratch of cuBLAS; the size that its manual recommends for Hopper.
inline constexpr Index cublas_workspace = Index{32} << 20;

/// Codes of residual codebooks: threads of a block, the codes it scores, the most rows.
inline constexpr int nearest_threads = 256, nearest_codes = 16;
inline constexpr Index nearest_rows = 64;

/// Attention of sequences: queries and keys of a tile, threads of a block, blocks a multiprocessor.
/// On an H200, 32 heads of 128, 2048 steps: forward 0.086 ms (128 keys by 256 threads: 0.100 ms), backward
/// 0.281 ms (dq by 64 keys and 256 threads: 0.279 ms, but 0.472 against 0.423 ms by single warps).
struct AttentionTiles {
  int queries, keys, threads, blocks;
};
inline constexpr AttentionTiles attention_forward{128, 64, 128, 2}, attention_of_keys{64, 128, 256, 1},
    attention_of_queries{128, 32, 128, 2};
/// Sequences of one such tile have blocks of one warp: a depformer's, thousands at once. On an H200, 2048
/// times 16 heads of 64, 16 steps: forward 0.066 ms (in tiles as above 0.498), backward 0.236 ms (1.448).
constexpr AttentionTiles attention_brief(int head_dim) { return {16, 16, 32, 1024 / head_dim}; }

/// A step over a ring cache: parts that a session's keys are cut into at most, keys of a part that make
/// another worth while, threads of a block, and blocks a multiprocessor below which parts have blocks of
/// their own; bytes of keys and values under way in a block. On an H200, 32 heads of 128 in bf16, 3000 keys
/// of one session: 17.1 us; 8 parts 21.6 us, a queue of 80 KiB 17.6 us, of 160 KiB 24.5 us.
inline constexpr int ring_parts = 4, ring_part = 128, ring_threads = 256, ring_fill = 2;
inline constexpr int ring_queue = 64 << 10;

/// Scans of TTT-Linear: blocks that a multiprocessor is to hold, forward and backward. On an H200, 64 heads of 64,
/// mini-batches of 16, 2048 tokens of 8 sessions: backward 1.53 ms with 3, 1.84 ms with 4 (which at one session
/// made it 1.73 instead of 0.74 ms, other changes included).
constexpr int ttt_linear_blocks(int width) { return width == 128 ? 1 : 2; }
/// Registers of a thread that learns, of 256 that it shares with one that answers; multiples of 8. On an H200,
/// mini-batches of 64: 64 heads of 64, 32768 tokens of 4 sessions 1.519 ms, with 144 1.544 ms (before the last
/// changes 1.544, and 1.591 ms without an exchange); 32 heads of 128, 3750 tokens 0.263, with 144 0.319 ms.
constexpr int ttt_linear_learning_registers(int width) { return width == 128 ? 152 : 136; }
constexpr int ttt_linear_backward_blocks(int width, int mini_batch) {
  return width == 128 ? 1 : mini_batch == 16 ? 3 : 2;
}

/// A stream's step of a TTT layer: blocks that share a head (a cluster), threads of one, and blocks that a
/// multiprocessor is to hold; tokens that are prepared at a time. On an H200, 64 sessions of 32 heads of 128,
/// TTT-Linear: 135 us; 5 blocks 151 us, 4 with all of W and G in registers 163 us, 3 that go from head to
/// head and fetch the next one ahead 180 us. TTT-MLP, 16 sessions of 32 heads of 64: 88 us; the last 120 us;
/// of 128: 393 us with 2 blocks, 442 us with one.
struct TttStepShape {
  unsigned cluster, threads, blocks;
};
constexpr TttStepShape ttt_linear_step(int width) { return {width == 64 ? 1u : 4u, 128, 6}; }
constexpr TttStepShape ttt_mlp_step(int width) {
  return width == 64 ? TttStepShape{8, 128, 6} : TttStepShape{8, 512, 2};
}
inline constexpr int ttt_step_tokens = 4;

/// Warps of a block of TTT-MLP's scans, for mini-batches of C tokens. On an H200, 64 heads of 64, 2048
/// tokens, ms with 8 and with 16: forward C = 64, by groups of four that multiply together, 0.359 and 0.291
/// (0.398 before products were started ahead of their use), C = 32 0.464 and 0.518; backward C = 64 2.16 and
/// 1.91, C = 32 2.03 and 2.22. 32 heads of 128, C = 16: forward 1.95 and 2.22 (two blocks of 8 on a multiprocessor,
/// whose registers then spill: 2.19; backward 7.9 against 8.8).
constexpr int ttt_mlp_forward_warps(int mini_batch) { return mini_batch == 64 ? 16 : 8; }
constexpr int ttt_mlp_backward_warps(int mini_batch) { return mini_batch == 64 ? 16 : 8; }

}  // namespace mttt::tuning
