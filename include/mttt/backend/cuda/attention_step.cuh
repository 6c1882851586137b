// One streaming step of attention over ring caches: the keys of a head are shared out to a cluster of blocks.
//
// The grid depends on shapes alone, so that a recorded graph serves any positions. Eight blocks take an
// eighth each of the keys that the session has, eight lanes take one key, and each group of lanes keeps a
// running maximum, total and mix of its own. They meet in a fixed order: lanes, warps, blocks. A session's
// bits depend on nothing but its own numbers. The step's own key and value are read from the input and written
// to the ring by one block; nobody reads that slot.
//
// Formula: see nn/attention.hpp.
// Shapes:  q, k, v rows of heads or kv_heads * head_dim; caches (B, kv_heads, context, head_dim).
// Units:   strides in elements.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Not supported: compute capability below 9.0 (clusters); several steps at once; head_dims whose rows are not
//          128, 256, 512 or 1024 bytes, or longer than 256; rows that are not aligned to 16 bytes.
// Source:  Flash-Decoding (Dao et al. 2023); PTX ISA: barrier.cluster, mapa.
#pragma once

#include <climits>
#include <cmath>

#include "mttt/backend/cuda/check.cuh"
#include "mttt/backend/cuda/mma.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt::detail {

/// The compute capability that this program's code for the GPU was compiled for: the kernel below is empty
/// before 90, whatever the GPU.
inline int compiled_capability() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, probe_kernel<>), "opening a GPU");
  return attributes.ptxVersion;
}

template <class T>
struct RingTask {
  const T *q, *k, *v;
  Index in_batch, out_batch, context;
  int heads, group;
  T *cache_k, *cache_v;
  const std::int64_t *positions, *contexts;
  const std::uint8_t* mask;
  T* out;
};

/// 16 bytes of T.
template <class T>
struct alignas(16) Chunk {
  static constexpr int size = 16 / sizeof(T);
  T x[size];
};

__device__ inline float exp2_of(float x) { return exp2f(x); }
__device__ inline double exp2_of(double x) { return exp2(x); }

/// A softmax under way: the largest score (in powers of two), the sum of weights, and n sums of values.
template <class A, int n>
struct Mix {
  A largest = -INFINITY, total = 0, sum[n] = {};

  /// What to subtract from scores; a mix of nothing subtracts nothing.
  __device__ static A shift(A largest) { return largest == A(-INFINITY) ? A(0) : largest; }
  __device__ void join_lane(int distance) {
    const unsigned all = 0xffffffffu;
    const A other = __shfl_xor_sync(all, largest, distance), top = largest < other ? other : largest;
    const A mine = exp2_of(largest - shift(top)), theirs = exp2_of(other - shift(top));
    total = total * mine + __shfl_xor_sync(all, total, distance) * theirs;
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] = sum[i] * mine + __shfl_xor_sync(all, sum[i], distance) * theirs;
    largest = top;
  }
};

template <int = 0>
__device__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
template <int = 0>
__device__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Where block `rank` of the cluster has the same variable.
template <class P>
__device__ P* of_block(P* mine, int rank) {
  std::uint64_t theirs;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(reinterpret_cast<std::uint64_t>(mine)), "r"(rank));
  return reinterpret_cast<P*>(theirs);
}

/// Rows of 128 C bytes, U keys a group of lanes at a time.
template <class T, int C>
__global__ void __launch_bounds__(tuning::ring_threads, C <= 4 ? 2 : 1) ring_kernel(RingTask<T> task) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using A = Wide<T>;
  constexpr int V = Chunk<T>::size, n = C * V, D = 8 * n, U = C == 1 ? 4 : C == 2 ? 2 : 1;
  constexpr int ranks = tuning::ring_blocks, warps = tuning::ring_threads / 32;
  static_assert(D % ranks == 0 && D <= tuning::ring_threads);
  const int rank = blockIdx.x % ranks, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head = blockIdx.x / ranks % task.heads, sub = lane % 8, group = lane / 8;
  const Index b = blockIdx.x / ranks / task.heads;
  T* out = task.out + b * task.out_batch + static_cast<Index>(head) * D;
  if (!active(task.mask, b)) {  // for the whole cluster alike
    if (rank == 0 && threadIdx.x < D) out[threadIdx.x] = T(0);
    return;
  }
  __shared__ A parts[warps][D], part_largest[warps], part_total[warps];
  __shared__ A sums[ranks][D / ranks], largest[ranks], totals[ranks];
  cluster_arrive();  // the others' shared memory may be written once all have come here

  const Index own = task.contexts == nullptr ? 0 : static_cast<Index>(task.contexts[b]);
  const Index context = own > 0 && own < task.context ? own : task.context;
  const std::int64_t position = task.positions[b];
  const Index filled = position + 1 < context ? static_cast<Index>(position) + 1 : context;
  const Index slot = static_cast<Index>(position % context);
  const int kv = head / task.group, kv_heads = task.heads / task.group;
  const T *new_k = task.k + b * task.in_batch + static_cast<Index>(kv) * D,
          *new_v = task.v + b * task.in_batch + static_cast<Index>(kv) * D;
  const Index ring = (b * kv_heads + kv) * task.context * D;
  T *keys = task.cache_k + ring, *values = task.cache_v + ring;
  if (rank == 0 && head % task.group == 0 && threadIdx.x < D) {
    keys[slot * D + threadIdx.x] = new_k[threadIdx.x];
    values[slot * D + threadIdx.x] = new_v[threadIdx.x];
  }

  const auto load = [&](const T* row, int c) {
    return *reinterpret_cast<const Chunk<T>*>(row + (c * 8 + sub) * V);
  };
  A q[n];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const Chunk<T> chunk = load(task.q + b * task.in_batch + static_cast<Index>(head) * D, c);
#pragma unroll
    for (int i = 0; i < V; ++i)
      q[c * V + i] = wide(chunk.x[i]) * (A(1.4426950408889634) / sqrt(static_cast<A>(D)));
  }
  Mix<A, n> mix;
  const Index end = filled * (rank + 1) / ranks;
  for (Index first = filled * rank / ranks + warp * 4 * U; first < end; first += warps * 4 * U) {
    Chunk<T> k[U][C], v[U][C];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const Index s = first + u * 4 + group;
      if (s < end) {
        const T *k_row = s == slot ? new_k : keys + s * D, *v_row = s == slot ? new_v : values + s * D;
#pragma unroll
        for (int c = 0; c < C; ++c) k[u][c] = load(k_row, c), v[u][c] = load(v_row, c);
      } else {
#pragma unroll
        for (int c = 0; c < C; ++c) k[u][c] = v[u][c] = Chunk<T>{};
      }
    }
    A score[U], top = mix.largest;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      score[u] = 0;
#pragma unroll
      for (int i = 0; i < n; ++i) score[u] += q[i] * wide(k[u][i / V].x[i % V]);
#pragma unroll
      for (int distance = 1; distance < 8; distance *= 2)
        score[u] += __shfl_xor_sync(0xffffffffu, score[u], distance);
      if (first + u * 4 + group >= end) score[u] = -INFINITY;
      top = top < score[u] ? score[u] : top;
    }
    const A shift = mix.shift(top), shrink = exp2_of(mix.largest - shift);
    mix.largest = top;
    mix.total *= shrink;
#pragma unroll
    for (int i = 0; i < n; ++i) mix.sum[i] *= shrink;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const A weight = exp2_of(score[u] - shift);
      mix.total += weight;
#pragma unroll
      for (int i = 0; i < n; ++i) mix.sum[i] += weight * wide(v[u][i / V].x[i % V]);
    }
  }

  mix.join_lane(8);
  mix.join_lane(16);
  if (group == 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
#pragma unroll
      for (int i = 0; i < V; ++i) parts[warp][(c * 8 + sub) * V + i] = mix.sum[c * V + i];
    }
    if (sub == 0) part_largest[warp] = mix.largest, part_total[warp] = mix.total;
  }
  __syncthreads();
  A top = part_largest[0];
#pragma unroll
  for (int w = 1; w < warps; ++w) top = top < part_largest[w] ? part_largest[w] : top;
  A total = 0, sum = 0;
#pragma unroll
  for (int w = 0; w < warps; ++w) {
    const A weight = exp2_of(part_largest[w] - mix.shift(top));
    total += weight * part_total[w];
    if (threadIdx.x < D) sum += weight * parts[w][threadIdx.x];
  }
  cluster_wait();
  if (threadIdx.x < D) of_block(&sums[rank][threadIdx.x % (D / ranks)], threadIdx.x / (D / ranks))[0] = sum;
  if (threadIdx.x < ranks) {
    *of_block(&largest[rank], threadIdx.x) = top;
    *of_block(&totals[rank], threadIdx.x) = total;
  }
  cluster_arrive();
  cluster_wait();
  if (threadIdx.x >= D / ranks) return;
  top = largest[0];
#pragma unroll
  for (int r = 1; r < ranks; ++r) top = top < largest[r] ? largest[r] : top;
  total = sum = 0;
#pragma unroll
  for (int r = 0; r < ranks; ++r) {  // a session has a key at least: top is a number
    const A weight = exp2_of(largest[r] - top);
    total += weight * totals[r];
    sum += weight * sums[r][threadIdx.x];
  }
  out[rank * (D / ranks) + threadIdx.x] = T(sum / total);
#endif
}

template <class T, int C>
void ring_launch(cudaStream_t stream, Index batch, const RingTask<T>& task) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {tuning::ring_blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch * task.heads * tuning::ring_blocks));
  config.blockDim = dim3(tuning::ring_threads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, ring_kernel<T, C>, task), "starting a step of attention");
}

/// False, and nothing done, for what the kernel does not take.
template <class T, class Shape, class Strides>
bool ring_attend(cudaStream_t stream, int capability, const Shape& shape, Index batch, Index steps,
                 const T* q, const T* k, const T* v, Strides in, T* cache_k, T* cache_v,
                 const std::int64_t* positions, const std::uint8_t* mask, T* out, Strides to,
                 const std::int64_t* contexts) {
  const Index bytes = shape.head_dim * static_cast<Index>(sizeof(T));
  if (capability < 90 || steps != 1 || batch * shape.heads > INT_MAX / tuning::ring_blocks ||
      !copies_in_chunks(sizeof(T), {in.batch}, q, k, v, cache_k, cache_v))
    return false;
  const RingTask<T> task{q,
                         k,
                         v,
                         in.batch,
                         to.batch,
                         shape.context,
                         static_cast<int>(shape.heads),
                         static_cast<int>(shape.group()),
                         cache_k,
                         cache_v,
                         positions,
                         contexts,
                         mask,
                         out};
  if (batch == 0) return true;
  switch (bytes) {
    case 128:
      ring_launch<T, 1>(stream, batch, task);
      return true;
    case 256:
      ring_launch<T, 2>(stream, batch, task);
      return true;
    case 512:
      ring_launch<T, 4>(stream, batch, task);
      return true;
    case 1024:
      if constexpr (1024 / sizeof(T) <= tuning::ring_threads) {
        ring_launch<T, 8>(stream, batch, task);
        return true;
      }
      return false;
    default:
      return false;
  }
}

}  // namespace mttt::detail
