// Attention of whole sequences in tiles, on tensor cores: bf16 in and out, float32 softmax and sums.
//
// The forward pass walks the key tiles that a tile of queries sees and keeps a running maximum and total a
// row. The backward pass computes the probabilities again from the saved log-sum-exp, twice: one kernel walks
// over queries for dk and dv, another over keys for dq. Each sum has one owner and one order: no atomics.
//
// Formula: see nn/attention.hpp. exp(x) = exp2(x log2 e) throughout.
// Shapes:  see nn/attention.hpp; head_dim 64 or 128. Inside, `fold` and `delta` (B, heads, padded steps).
// Units:   strides in elements.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Shapes:  see nn/attention.hpp; head_dim 64 or 128. Inside, fold and delta (B, heads, padded steps).
//          of 16 bytes; inputs that are not finite, which may reach rows of their tile that do not see them.
// Source:  FlashAttention-2 (Dao 2023), algorithms 1 and 2.
#pragma once

#include <climits>
#include <cmath>

#include "mttt/backend/cuda/check.cuh"
#include "mttt/backend/cuda/mma.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt::detail {

/// What the kernels share. `window`: keys that a query sees at most.
struct FlashTask {
  const bf16 *q, *k, *v;
  Index in_batch, in_step, to_batch, to_step;
  int steps, heads, group, window;
  float scale;

  __device__ Index in(Index b, Index t, int head, int dim) const {
    return b * in_batch + t * in_step + head * dim;
  }
  __device__ Index to(Index b, Index t, int head, int dim) const {
    return b * to_batch + t * to_step + head * dim;
  }
  __device__ bool sees(int query, int key) const { return key <= query && query - key < window; }
  /// Whether all queries of a tile see all keys of another.
  __device__ bool all_see(int query, int queries, int key, int keys) const {
    return key + keys - 1 <= query && query + queries - 1 - key < window;
  }
  __device__ int first_key(int query) const { return query >= window ? query - window + 1 : 0; }
  __device__ int last_query(int key) const { return steps - 1 - key < window ? steps - 1 : key + window - 1; }
};

inline constexpr float log2_e = 1.44269504088896341f, ln_2 = 0.693147180559945309f;

/// The sum of four neighbouring lanes, which hold one row of an accumulator.
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/// Steps of sequences that are one tile.
inline constexpr int flash_short = tuning::attention_brief(64).queries;

extern __shared__ __align__(1024) unsigned char flash_memory[];

/// Pieces of 16 rows that a warp has of a tile.
constexpr int flash_pieces(int rows, int threads) { return rows / (threads / 2); }

template <int D, bool brief>
struct FlashForward {
  // Portable code: a key that was read from shared memory serves the two pieces of a warp.
  static constexpr auto tiles = brief ? tuning::attention_brief(D) : tuning::attention_forward;
  static constexpr int queries = tiles.queries, keys = tiles.keys, threads = tiles.threads;
  static constexpr int blocks = tiles.blocks, pieces = flash_pieces(queries, threads);
  static constexpr int shared = Tile<queries, D>::bytes + 2 * 2 * Tile<keys, D>::bytes;
};

template <int D, bool brief>
__global__ void __launch_bounds__(FlashForward<D, brief>::threads, FlashForward<D, brief>::blocks)
    flash_forward(FlashTask task, bf16* out, float* lse) {
  using Shape = FlashForward<D, brief>;
  constexpr int M = Shape::queries, N = Shape::keys, P = Shape::pieces;
  const int head = blockIdx.x % task.heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Index b = blockIdx.x / task.heads;
  const int m0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * M;  // the longest rows first
  const std::uint32_t q_tile = shared_address(flash_memory), ring = q_tile + Tile<M, D>::bytes;
  const bf16* keys = task.k + task.in(b, 0, head / task.group, D);
  const bf16* values = task.v + task.in(b, 0, head / task.group, D);
  const auto load = [&](int tile, int stage) {
    const std::uint32_t to = ring + stage * 2 * Tile<N, D>::bytes;
    const int n0 = tile * N;
    load_tile<N, D, Shape::threads>(to, keys + n0 * task.in_step, task.in_step, task.steps - n0);
    load_tile<N, D, Shape::threads>(to + Tile<N, D>::bytes, values + n0 * task.in_step, task.in_step,
                                    task.steps - n0);
    commit_copies();
  };
  const int first = task.first_key(m0) / N, last = min(task.steps - 1, m0 + M - 1) / N;
  load_tile<M, D, Shape::threads>(q_tile, task.q + task.in(b, m0, head, D), task.in_step, task.steps - m0);
  load(last, 0);

  const float fold = task.scale * log2_e;
  float o[P][D / 8][4] = {}, total[P][2] = {}, largest[P][2];
#pragma unroll
  for (int i = 0; i < P; ++i) largest[i][0] = largest[i][1] = -INFINITY;
  int stage = 0;
  for (int tile = last; tile >= first; --tile, stage ^= 1) {
    await_copies();
    offer_copies<Shape::threads>();
    __syncthreads();  // all have the tile, and are done with the stage that is filled next
    if (tile > first) load(tile - 1, stage ^ 1);
    const std::uint32_t k_tile = ring + stage * 2 * Tile<N, D>::bytes, v_tile = k_tile + Tile<N, D>::bytes;
    float s[P][N / 8][4];
    rows_by_rows<Shape::threads, P, M, N, D>(s, q_tile, k_tile);
    await_products<0, Shape::threads>(s);
    if (!task.all_see(m0, M, tile * N, N)) {
#pragma unroll
      for (int i = 0; i < P; ++i) {
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int query = m0 + 64 * i + 16 * warp + lane / 4 + e / 2 * 8;
            if (!task.sees(query, tile * N + 8 * n + lane % 4 * 2 + e % 2)) s[i][n][e] = -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = largest[i][half];
#pragma unroll
        for (int n = 0; n < N / 8; ++n) top = fmaxf(top, fmaxf(s[i][n][2 * half], s[i][n][2 * half + 1]));
        top = quad_max(top);
        const float shift = top == -INFINITY ? 0 : top * fold;  // a row may not see this tile at all
        const float shrink = exp2_fast(largest[i][half] * fold - shift);
        largest[i][half] = top;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N / 8; ++n) {
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            s[i][n][e] = exp2_fast(s[i][n][e] * fold - shift);
            sum += s[i][n][e];
          }
        }
        total[i][half] = total[i][half] * shrink + sum;
#pragma unroll
        for (int d = 0; d < D / 8; ++d) o[i][d][2 * half] *= shrink, o[i][d][2 * half + 1] *= shrink;
      }
    }
    rows_by_columns<Shape::threads, P, N, D>(o, s, v_tile);
    await_products<0, Shape::threads>(o);
  }

#pragma unroll
  for (int i = 0; i < P; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(total[i][half]);
      const int query = m0 + 64 * i + 16 * warp + lane / 4 + half * 8;
      if (lane % 4 == 0 && query < task.steps)
        lse[(b * task.steps + query) * task.heads + head] = largest[i][half] * task.scale + logf(sum);
      total[i][half] = 1 / sum;
    }
  }
  store_rows<P, M, D>(o, total, q_tile, out + task.to(b, m0, head, D), task.to_step, task.steps - m0);
}

/// Rows of the two arrays below, so that tiles need no checks: a row past the end has probability 0.
MTTT_HD constexpr Index flash_padded(Index steps) {
  return steps <= flash_short ? flash_short : (steps + 127) / 128 * 128;
}
static_assert(128 % tuning::attention_of_keys.queries == 0 &&
              128 % tuning::attention_of_queries.queries == 0);

/// fold = lse log2 e and delta = dout . out, both (B, heads, padded). D / 8 lanes a row.
template <int D>
__global__ void flash_prepare(FlashTask task, Index rows, const bf16* out, const bf16* dout, const float* lse,
                              float* fold, float* delta) {
  constexpr int lanes = D / 8;
  const Index row = (static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes;
  if (row >= rows) return;  // whole warps: rows are a multiple of 16
  const Index padded = flash_padded(task.steps), t = row / task.heads % padded, b = row / task.heads / padded;
  const int head = static_cast<int>(row % task.heads), lane = threadIdx.x % lanes;
  float sum = 0;
  if (t < task.steps) {
    const Index at = task.to(b, t, head, D) + lane * 8;
    const uint4 x = *reinterpret_cast<const uint4*>(out + at), y = *reinterpret_cast<const uint4*>(dout + at);
    const std::uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum += __uint_as_float(xs[i] << 16) * __uint_as_float(ys[i] << 16);
      sum += __uint_as_float(xs[i] & 0xffff0000u) * __uint_as_float(ys[i] & 0xffff0000u);
    }
  }
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (lane != 0) return;
  const Index to = (b * task.heads + head) * padded + t;
  fold[to] = t < task.steps ? lse[(b * task.steps + t) * task.heads + head] * log2_e : INFINITY;
  delta[to] = sum;
}

template <int D, bool brief>
struct FlashKeys {
  static constexpr auto tiles = brief ? tuning::attention_brief(D) : tuning::attention_of_keys;
  static constexpr int queries = tiles.queries, keys = tiles.keys, threads = tiles.threads;
  static constexpr int blocks = tiles.blocks;
  static_assert(flash_pieces(keys, threads) == 1);
  static constexpr int shared =
      2 * Tile<keys, D>::bytes + 2 * (2 * Tile<queries, D>::bytes + 2 * queries * 4);
};

/// dk and dv of a tile of keys. Rows of the products are keys, so that p and ds are left factors as they are.
template <int D, bool brief>
__global__ void __launch_bounds__(FlashKeys<D, brief>::threads, FlashKeys<D, brief>::blocks)
    flash_keys(FlashTask task, const bf16* dout, const float* fold, const float* delta, bf16* dk, bf16* dv) {
  using Shape = FlashKeys<D, brief>;
  constexpr int N = Shape::keys, M = Shape::queries;
  const int kv_heads = task.heads / task.group, kv = blockIdx.x % kv_heads;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n0 = blockIdx.y * N;
  const Index b = blockIdx.x / kv_heads, padded = flash_padded(task.steps);
  const std::uint32_t k_tile = shared_address(flash_memory), v_tile = k_tile + Tile<N, D>::bytes;
  const std::uint32_t ring = v_tile + Tile<N, D>::bytes, rows = ring + 2 * 2 * Tile<M, D>::bytes;
  const int first = n0 / M, tiles = task.last_query(min(task.steps, n0 + N) - 1) / M - first + 1;
  const auto load = [&](int i, int stage) {
    const int head = kv * task.group + i / tiles, m0 = (first + i % tiles) * M;
    const std::uint32_t to = ring + stage * 2 * Tile<M, D>::bytes;
    load_tile<M, D, Shape::threads>(to, task.q + task.in(b, m0, head, D), task.in_step, task.steps - m0);
    load_tile<M, D, Shape::threads>(to + Tile<M, D>::bytes, dout + task.to(b, m0, head, D), task.to_step,
                                    task.steps - m0);
    if (threadIdx.x < 2 * M / 4) {
      const int of = threadIdx.x % (M / 4) * 4;
      const float* from = threadIdx.x < M / 4 ? fold : delta;
      copy_async(rows + stage * 2 * M * 4 + threadIdx.x * 16,
                 from + (b * task.heads + head) * padded + m0 + of, true);
    }
    commit_copies();
  };
  load_tile<N, D, Shape::threads>(k_tile, task.k + task.in(b, n0, kv, D), task.in_step, task.steps - n0);
  load_tile<N, D, Shape::threads>(v_tile, task.v + task.in(b, n0, kv, D), task.in_step, task.steps - n0);
  load(0, 0);

  const float scale = task.scale * log2_e;
  float k_sum[1][D / 8][4] = {}, v_sum[1][D / 8][4] = {};
  int stage = 0;
  for (int i = 0; i < tiles * task.group; ++i, stage ^= 1) {
    await_copies();
    offer_copies<Shape::threads>();
    __syncthreads();
    if (i + 1 < tiles * task.group) load(i + 1, stage ^ 1);
    const int m0 = (first + i % tiles) * M;
    const std::uint32_t q_tile = ring + stage * 2 * Tile<M, D>::bytes, up_tile = q_tile + Tile<M, D>::bytes;
    const unsigned char* numbers = flash_memory + (rows - k_tile) + stage * 2 * M * 4;
    const float2* row_fold = reinterpret_cast<const float2*>(numbers) + lane % 4;
    const float2* row_delta = row_fold + M / 2;
    float p[1][M / 8][4], ds[1][M / 8][4];
    rows_by_rows<Shape::threads, 1, N, M, D>(p, k_tile, q_tile);
    rows_by_rows<Shape::threads, 1, N, M, D>(ds, v_tile, up_tile);
    await_products<1, Shape::threads>(p);
    const bool masked = !task.all_see(m0, M, n0, N);
#pragma unroll
    for (int j = 0; j < M / 8; ++j) {
      const float2 folds = row_fold[j * 4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        p[0][j][e] = exp2_fast(p[0][j][e] * scale - (e % 2 == 0 ? folds.x : folds.y));
        if (masked && !task.sees(m0 + 8 * j + lane % 4 * 2 + e % 2, n0 + 16 * warp + lane / 4 + e / 2 * 8))
          p[0][j][e] = 0;
      }
    }
    rows_by_columns<Shape::threads, 1, M, D>(v_sum, p, up_tile);
    await_products<1, Shape::threads>(ds);
#pragma unroll
    for (int j = 0; j < M / 8; ++j) {
      const float2 deltas = row_delta[j * 4];
#pragma unroll
      for (int e = 0; e < 4; ++e)
        ds[0][j][e] = p[0][j][e] * (ds[0][j][e] - (e % 2 == 0 ? deltas.x : deltas.y));
    }
    rows_by_columns<Shape::threads, 1, M, D>(k_sum, ds, q_tile);
    await_products<0, Shape::threads>(k_sum);
    await_products<0, Shape::threads>(v_sum);
  }
  const Index to = task.in(b, n0, kv, D);
  const float one[1][2] = {{1, 1}}, scales[1][2] = {{task.scale, task.scale}};
  store_rows<1, N, D>(k_sum, scales, k_tile, dk + to, task.in_step, task.steps - n0);
  store_rows<1, N, D>(v_sum, one, v_tile, dv + to, task.in_step, task.steps - n0);
}

template <int D, bool brief>
struct FlashQueries {
  static constexpr auto tiles = brief ? tuning::attention_brief(D) : tuning::attention_of_queries;
  static constexpr int queries = tiles.queries, keys = tiles.keys, threads = tiles.threads;
  static constexpr int blocks = tiles.blocks, pieces = flash_pieces(queries, threads);
  static constexpr int shared = 2 * Tile<queries, D>::bytes + 2 * 2 * Tile<keys, D>::bytes;
};

/// dq of a tile of queries.
template <int D, bool brief>
__global__ void __launch_bounds__(FlashQueries<D, brief>::threads, FlashQueries<D, brief>::blocks)
    flash_queries(FlashTask task, const bf16* dout, const float* fold, const float* delta, bf16* dq) {
  using Shape = FlashQueries<D, brief>;
  constexpr int M = Shape::queries, N = Shape::keys, P = Shape::pieces;
  const int head = blockIdx.x % task.heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Index b = blockIdx.x / task.heads;
  const int m0 = static_cast<int>(gridDim.y - 1 - blockIdx.y) * M;
  const std::uint32_t q_tile = shared_address(flash_memory), up_tile = q_tile + Tile<M, D>::bytes;
  const std::uint32_t ring = up_tile + Tile<M, D>::bytes;
  const bf16* keys = task.k + task.in(b, 0, head / task.group, D);
  const bf16* values = task.v + task.in(b, 0, head / task.group, D);
  const auto load = [&](int tile, int stage) {
    const std::uint32_t to = ring + stage * 2 * Tile<N, D>::bytes;
    const int n0 = tile * N;
    load_tile<N, D, Shape::threads>(to, keys + n0 * task.in_step, task.in_step, task.steps - n0);
    load_tile<N, D, Shape::threads>(to + Tile<N, D>::bytes, values + n0 * task.in_step, task.in_step,
                                    task.steps - n0);
    commit_copies();
  };
  const int first = task.first_key(m0) / N, last = min(task.steps - 1, m0 + M - 1) / N;
  load_tile<M, D, Shape::threads>(q_tile, task.q + task.in(b, m0, head, D), task.in_step, task.steps - m0);
  load_tile<M, D, Shape::threads>(up_tile, dout + task.to(b, m0, head, D), task.to_step, task.steps - m0);
  load(last, 0);
  float row_fold[P][2], row_delta[P][2], scales[P][2];
#pragma unroll
  for (int i = 0; i < P; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Index at =
          (b * task.heads + head) * flash_padded(task.steps) + m0 + 64 * i + 16 * warp + lane / 4 + half * 8;
      row_fold[i][half] = fold[at], row_delta[i][half] = delta[at], scales[i][half] = task.scale;
    }
  }

  const float scale = task.scale * log2_e;
  float sum[P][D / 8][4] = {};
  int stage = 0;
  for (int tile = last; tile >= first; --tile, stage ^= 1) {
    await_copies();
    offer_copies<Shape::threads>();
    __syncthreads();
    if (tile > first) load(tile - 1, stage ^ 1);
    const std::uint32_t k_tile = ring + stage * 2 * Tile<N, D>::bytes, v_tile = k_tile + Tile<N, D>::bytes;
    float p[P][N / 8][4], ds[P][N / 8][4];
    rows_by_rows<Shape::threads, P, M, N, D>(p, q_tile, k_tile);
    rows_by_rows<Shape::threads, P, M, N, D>(ds, up_tile, v_tile);
    await_products<1, Shape::threads>(p);
    const bool masked = !task.all_see(m0, M, tile * N, N);
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[i][n][e] = exp2_fast(p[i][n][e] * scale - row_fold[i][e / 2]);
          if (masked && !task.sees(m0 + 64 * i + 16 * warp + lane / 4 + e / 2 * 8,
                                   tile * N + 8 * n + lane % 4 * 2 + e % 2))
            p[i][n][e] = 0;
        }
      }
    }
    await_products<0, Shape::threads>(ds);
#pragma unroll
    for (int i = 0; i < P; ++i) {
#pragma unroll
      for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[i][n][e] = p[i][n][e] * (ds[i][n][e] - row_delta[i][e / 2]);
      }
    }
    rows_by_columns<Shape::threads, P, N, D>(sum, ds, k_tile);
    await_products<0, Shape::threads>(sum);
  }
  store_rows<P, M, D>(sum, scales, q_tile, dq + task.in(b, m0, head, D), task.in_step, task.steps - m0);
}

template <class... Args>
void flash_launch(void (*kernel)(Args...), dim3 grid, int threads, int shared, cudaStream_t stream,
                  std::type_identity_t<Args>... args) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "asking for shared memory");
  kernel<<<grid, static_cast<unsigned>(threads), static_cast<std::size_t>(shared), stream>>>(args...);
  check(cudaGetLastError(), "starting an attention kernel");
}

template <class Shape, class Strides>
FlashTask flash_task(const Shape& shape, Index steps, const bf16* q, const bf16* k, const bf16* v, Strides in,
                     Strides to) {
  const Index window = shape.context > 0 ? shape.context : steps;
  return {q,
          k,
          v,
          in.batch,
          in.step,
          to.batch,
          to.step,
          static_cast<int>(steps),
          static_cast<int>(shape.heads),
          static_cast<int>(shape.group()),
          static_cast<int>(window < steps ? window : steps),
          1 / std::sqrt(static_cast<float>(shape.head_dim))};
}

/// What both passes ask of shapes: tiles of 64 or 128 columns, and grids and steps that fit into an int.
template <class Shape>
bool flash_fits(const Shape& shape, Index batch, Index steps) {
  return (shape.head_dim == 64 || shape.head_dim == 128) && steps <= Index{1} << 22 &&
         batch * shape.heads <= INT_MAX / 2;
}

inline unsigned flash_tiles(Index steps, int size) {
  return static_cast<unsigned>((steps + size - 1) / size);
}

template <int D, bool brief>
void flash_run_forward(cudaStream_t stream, Index batch, const FlashTask& task, bf16* out, float* lse) {
  using Shape = FlashForward<D, brief>;
  const dim3 grid(static_cast<unsigned>(batch * task.heads), flash_tiles(task.steps, Shape::queries));
  flash_launch(flash_forward<D, brief>, grid, Shape::threads, Shape::shared, stream, task, out, lse);
}

template <int D, bool brief, class B>
void flash_run_backward(B& be, Index batch, const FlashTask& task, const bf16* out, const bf16* dout,
                        const float* lse, bf16* dq, bf16* dk, bf16* dv) {
  const auto scope = be.scope();
  const Index rows = batch * task.heads * flash_padded(task.steps);
  float* fold = be.template make<float, dyn>(rows).data();
  float* delta = be.template make<float, dyn>(rows).data();
  constexpr int threads = 256;
  flash_launch(flash_prepare<D>, dim3(flash_tiles(rows, threads / (D / 8))), threads, 0, be.stream(), task,
               rows, out, dout, lse, fold, delta);
  using Keys = FlashKeys<D, brief>;
  const unsigned kv_heads = static_cast<unsigned>(batch * task.heads / task.group);
  flash_launch(flash_keys<D, brief>, dim3(kv_heads, flash_tiles(task.steps, Keys::keys)), Keys::threads,
               Keys::shared, be.stream(), task, dout, fold, delta, dk, dv);
  using Queries = FlashQueries<D, brief>;
  const unsigned heads = static_cast<unsigned>(batch * task.heads);
  flash_launch(flash_queries<D, brief>, dim3(heads, flash_tiles(task.steps, Queries::queries)),
               Queries::threads, Queries::shared, be.stream(), task, dout, fold, delta, dq);
}

/// f<head_dim, short sequences>().
template <class F>
void flash_choose(Index head_dim, Index steps, F&& f) {
  if (head_dim == 64) {
    steps <= flash_short ? f.template operator()<64, true>() : f.template operator()<64, false>();
  } else {
    steps <= flash_short ? f.template operator()<128, true>() : f.template operator()<128, false>();
  }
}

/// False, and nothing done, for what the kernels do not take.
template <class B, class Shape, class Strides>
bool flash_attend(B& be, const Shape& shape, Index batch, Index steps, const bf16* q, const bf16* k,
                  const bf16* v, Strides in, bf16* out, Strides to, float* lse) {
  if (!flash_fits(shape, batch, steps) ||
      !copies_in_chunks(2, {in.batch, in.step, to.batch, to.step}, q, k, v, out))
    return false;
  if (batch * steps == 0) return true;
  const FlashTask task = flash_task(shape, steps, q, k, v, in, to);
  flash_choose(shape.head_dim, steps,
               [&]<int D, bool brief>() { flash_run_forward<D, brief>(be.stream(), batch, task, out, lse); });
  return true;
}

template <class B, class Shape, class Strides>
bool flash_attend_backward(B& be, const Shape& shape, Index batch, Index steps, const bf16* q, const bf16* k,
                           const bf16* v, Strides in, const bf16* out, const bf16* dout, Strides to,
                           const float* lse, bf16* dq, bf16* dk, bf16* dv) {
  if (!flash_fits(shape, batch, steps) ||
      !copies_in_chunks(2, {in.batch, in.step, to.batch, to.step}, q, k, v, out, dout, dq, dk, dv))
    return false;
  if (batch * steps == 0) return true;
  const FlashTask task = flash_task(shape, steps, q, k, v, in, to);
  flash_choose(shape.head_dim, steps, [&]<int D, bool brief>() {
    flash_run_backward<D, brief>(be, batch, task, out, dout, lse, dq, dk, dv);
  });
  return true;
}

}  // namespace mttt::detail
