// One streaming step of attention over ring caches, which runs at the speed of memory.
//
// A session's keys are cut into parts, whose number depends on the number of keys alone. The parts of a head
// are shared out to a cluster of blocks: one a part where sessions are few, one for all where they are many.
// Each warp of a part keeps a running maximum, total and mix of its own, and they meet in a fixed order:
// lanes, warps, parts. So a session's bits depend on nothing but its own numbers, and the grid on shapes
// alone: a recorded graph serves any positions. Keys and values pass through shared memory as through a long
// queue of registers: each lane reads back what it has asked for itself. The step's own key and value are
// read from the input and written to the ring by one block; nobody reads that slot.
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
  int heads, group, ranks;
  T *cache_k, *cache_v;
  const std::int64_t *positions, *contexts;
  const std::uint8_t* mask;
  T* out;
};

/// What a kernel for rows of 128 C bytes keeps in shared memory.
template <class T, int C>
struct RingShape {
  using A = Wide<T>;
  static constexpr int V = 16 / sizeof(T), n = C * V, D = 8 * n;  // numbers in 16 bytes, of a lane, of a row
  static constexpr int warps = tuning::ring_threads / 32, parts = tuning::ring_parts;
  static constexpr int stage = 2 * C * tuning::ring_threads * 16;
  static constexpr int stages = tuning::ring_queue > 2 * stage ? tuning::ring_queue / stage : 2;
  static_assert(D <= tuning::ring_threads);
  /// One warp's share of a part, one part: sums of values, then the largest score and the total.
  static constexpr int mix = D + 2;
  static int bytes(int ranks) {
    return stages * stage + parts * mix * static_cast<int>(sizeof(A)) * (1 + warps / ranks);
  }
};

__device__ inline float exp2_of(float x) { return exp2f(x); }
__device__ inline double exp2_of(double x) { return exp2(x); }
/// What to subtract from scores whose largest is this: nothing where there are none.
template <class A>
__device__ A exp2_shift(A largest) {
  return largest == A(-INFINITY) ? A(0) : largest;
}

/// Number i of the 16 bytes.
template <class T>
__device__ Wide<T> from_chunk(const uint4& raw, int i) {
  const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (std::is_same_v<T, bf16>) {
    return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
  } else if constexpr (std::is_same_v<T, float>) {
    return __uint_as_float(words[i]);
  } else {
    return __hiloint2double(static_cast<int>(words[2 * i + 1]), static_cast<int>(words[2 * i]));
  }
}

/// A softmax under way: the largest score (in powers of two), the sum of weights, and n sums of values.
template <class A, int n>
struct Mix {
  A largest = -INFINITY, total = 0, sum[n] = {};

  /// A key of eight neighbouring lanes, and its value: C pieces of 16 bytes a lane, `stride` bytes apart.
  template <class T, int C>
  __device__ __forceinline__ void take(const A (&q)[n], const unsigned char* key, const unsigned char* value,
                                       int stride, bool valid) {
    constexpr int V = n / C;
    A products[4] = {};  // four sums at once: one alone would wait for each product
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const uint4 raw = *reinterpret_cast<const uint4*>(key + c * stride);
#pragma unroll
      for (int i = 0; i < V; ++i) products[(c * V + i) % 4] += q[c * V + i] * from_chunk<T>(raw, i);
    }
    A score = (products[0] + products[1]) + (products[2] + products[3]);
#pragma unroll
    for (int distance = 1; distance < 8; distance *= 2)
      score += __shfl_xor_sync(0xffffffffu, score, distance);
    if (!valid) score = -INFINITY;
    raise(largest < score ? score : largest);
    const A weight = exp2_of(score - exp2_shift(largest));
    total += weight;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const uint4 raw = *reinterpret_cast<const uint4*>(value + c * stride);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[c * V + i] += weight * from_chunk<T>(raw, i);
    }
  }

  __device__ void raise(A top) {
    const A shrink = exp2_of(largest - exp2_shift(top));
    largest = top;
    total *= shrink;
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] *= shrink;
  }
  __device__ void join_lane(int distance) {
    const unsigned all = 0xffffffffu;
    const A other = __shfl_xor_sync(all, largest, distance);
    raise(largest < other ? other : largest);
    total += __shfl_xor_sync(all, total, distance);  // the other has been raised to the same
#pragma unroll
    for (int i = 0; i < n; ++i) sum[i] += __shfl_xor_sync(all, sum[i], distance);
  }
};

/// Parts that so many keys are cut into, a power of two.
__device__ inline int ring_log_parts(int filled) {
  int log_parts = 0;
  while (1 << log_parts < tuning::ring_parts && filled > tuning::ring_part << log_parts) ++log_parts;
  return log_parts;
}

/// Thread d's sum of the first `count` of n mixes that lie one after another, and their total; all threads
/// get the largest and the total.
template <int D, int n, class A>
__device__ A join_mixes(const A* mixes, int count, A& top, A& total) {
  A largest[n];
  top = -INFINITY, total = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    largest[i] = i < count ? mixes[i * (D + 2) + D] : A(-INFINITY);
    top = top < largest[i] ? largest[i] : top;
  }
  A sum = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    if (i >= count) continue;
    const A weight = exp2_of(largest[i] - exp2_shift(top));
    total += weight * mixes[i * (D + 2) + D + 1];
    if (threadIdx.x < D) sum += weight * mixes[i * (D + 2) + threadIdx.x];
  }
  return sum;
}

template <int = 0>
__device__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
template <int = 0>
__device__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Where block 0 of the cluster has the same variable.
template <class P>
__device__ P* of_first_block(P* mine) {
  std::uint64_t theirs;
  asm volatile("mapa.u64 %0, %1, 0;" : "=l"(theirs) : "l"(reinterpret_cast<std::uint64_t>(mine)));
  return reinterpret_cast<P*>(theirs);
}

extern __shared__ __align__(1024) unsigned char ring_memory[];

template <class T, int C>
__global__ void __launch_bounds__(tuning::ring_threads, C <= 2 && tuning::ring_threads <= 256 ? 2 : 1)
    ring_kernel(RingTask<T> task) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Shape = RingShape<T, C>;
  using A = Wide<T>;
  constexpr int V = Shape::V, n = Shape::n, D = Shape::D, warps = Shape::warps, stages = Shape::stages;
  const int rank = blockIdx.x % task.ranks, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int head = blockIdx.x / task.ranks % task.heads, sub = lane % 8, group = lane / 8;
  const Index b = blockIdx.x / task.ranks / task.heads;
  T* out = task.out + b * task.out_batch + static_cast<Index>(head) * D;
  if (!active(task.mask, b)) {  // for the whole cluster alike
    if (rank == 0 && threadIdx.x < D) out[threadIdx.x] = T(0);
    return;
  }
  // What does not depend on the position is asked for first.
  const int kv = head / task.group, kv_heads = task.heads / task.group;
  const bool writes = rank == 0 && head % task.group == 0 && threadIdx.x < D;
  const T *new_k = task.k + b * task.in_batch + static_cast<Index>(kv) * D,
          *new_v = task.v + b * task.in_batch + static_cast<Index>(kv) * D;
  const T own_k = writes ? new_k[threadIdx.x] : T(0), own_v = writes ? new_v[threadIdx.x] : T(0);
  uint4 raw_q[C];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    raw_q[c] = *reinterpret_cast<const uint4*>(task.q + b * task.in_batch + static_cast<Index>(head) * D +
                                               (c * 8 + sub) * V);
  }
  const Index own = task.contexts == nullptr ? 0 : static_cast<Index>(task.contexts[b]);
  const Index context = own > 0 && own < task.context ? own : task.context;
  const std::int64_t position = task.positions[b];
  const int filled = static_cast<int>(position + 1 < context ? position + 1 : context);
  const int log_parts = ring_log_parts(filled), parts = 1 << log_parts;
  if (rank >= parts) return;  // an exited block is waited for by none
  const bool alone = task.ranks == 1 || parts == 1;
  if (!alone) cluster_arrive();  // block 0's shared memory may be written once it has come here

  const int slot = static_cast<int>(position < context ? position : position % context);
  const Index ring = (b * kv_heads + kv) * task.context * D;
  T *keys = task.cache_k + ring, *values = task.cache_v + ring;

  // The queue: 2 C pieces of 16 bytes a lane and stage. Eight lanes take a key.
  const std::uint32_t queue = shared_address(ring_memory) + threadIdx.x * 16;
  constexpr int piece = tuning::ring_threads * 16, pass = warps * 4;
  const auto first_key = [&](int part) { return (filled * part >> log_parts) + warp * 4; };
  const auto end_key = [&](int part) { return filled * (part + 1) >> log_parts; };
  int ask_part = rank, ask = first_key(rank);
  const auto ask_next = [&](int stage) {
    while (ask_part < parts && ask >= end_key(ask_part)) {
      ask_part += task.ranks;
      ask = first_key(ask_part);
    }
    if (ask_part < parts) {
      const int s = ask + group;
      const bool valid = s < end_key(ask_part);
      const Index at = valid ? static_cast<Index>(s) * D : 0;
      const T *k_row = s == slot ? new_k : keys + at, *v_row = s == slot ? new_v : values + at;
      const std::uint32_t to = queue + stage * Shape::stage;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        copy_async(to + c * piece, k_row + (c * 8 + sub) * V, valid);
        copy_async(to + (C + c) * piece, v_row + (c * 8 + sub) * V, valid);
      }
      ask += pass;
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage + 1 < stages; ++stage) ask_next(stage);
  if (writes) {
    keys[static_cast<Index>(slot) * D + threadIdx.x] = own_k;
    values[static_cast<Index>(slot) * D + threadIdx.x] = own_v;
  }
  A q[n];
#pragma unroll
  for (int i = 0; i < n; ++i)
    q[i] = from_chunk<T>(raw_q[i / V], i % V) * (A(1.4426950408889634) / sqrt(static_cast<A>(D)));

  A* pieces = reinterpret_cast<A*>(ring_memory + stages * Shape::stage);  // [parts of the block][warps][mix]
  A* joined = pieces + Shape::parts / task.ranks * warps * Shape::mix;    // of block 0: [parts][mix]
  int stage = 0;
  for (int part = rank; part < parts; part += task.ranks) {
    Mix<A, n> mix;
    const int end = end_key(part);
    for (int first = first_key(part); first < end; first += pass) {
      ask_next(stage == 0 ? stages - 1 : stage - 1);
      await_copies_but<stages - 1>();
      const unsigned char* at = ring_memory + stage * Shape::stage + threadIdx.x * 16;
      stage = stage + 1 == stages ? 0 : stage + 1;
      mix.template take<T, C>(q, at, at + C * piece, piece, first + group < end);
    }
    mix.join_lane(8);
    mix.join_lane(16);
    if (group != 0) continue;
    A* to = pieces + (part / task.ranks * warps + warp) * Shape::mix;
#pragma unroll
    for (int i = 0; i < n; ++i) to[(i / V * 8 + sub) * V + i % V] = mix.sum[i];
    if (sub == 0) to[D] = mix.largest, to[D + 1] = mix.total;
  }
  __syncthreads();
  if (!alone) cluster_wait();
  A top, total;
  for (int part = rank; part < parts; part += task.ranks) {
    const A sum = join_mixes<D, warps>(pieces + part / task.ranks * warps * Shape::mix, warps, top, total);
    A* to = joined + part * Shape::mix;
    if (!alone) to = of_first_block(to);
    if (threadIdx.x < D) to[threadIdx.x] = sum;
    if (threadIdx.x == 0) to[D] = top, to[D + 1] = total;
  }
  if (alone) {
    __syncthreads();
  } else {
    cluster_arrive();
    if (rank != 0) return;
    cluster_wait();
  }
  const A sum = join_mixes<D, Shape::parts>(joined, parts, top, total);  // of one key or more: total > 0
  if (threadIdx.x < D) out[threadIdx.x] = T(sum / total);
#endif
}

template <class T, int C>
void ring_launch(cudaStream_t stream, Index batch, const RingTask<T>& task) {
  const int bytes = RingShape<T, C>::bytes(task.ranks);
  check(cudaFuncSetAttribute(ring_kernel<T, C>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for shared memory");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(task.ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(batch * task.heads * task.ranks));
  config.blockDim = dim3(tuning::ring_threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, ring_kernel<T, C>, task), "starting a step of attention");
}

/// Blocks that share a head's parts: enough of them in all to fill the GPU, or one a part.
inline int ring_ranks(Index heads, int processors) {
  int ranks = 1;
  while (ranks < tuning::ring_parts && heads * ranks < Index{tuning::ring_fill} * processors) ranks *= 2;
  return ranks;
}

/// False, and nothing done, for what the kernel does not take.
template <class T, class Shape, class Strides>
bool ring_attend(cudaStream_t stream, int capability, int processors, const Shape& shape, Index batch,
                 Index steps, const T* q, const T* k, const T* v, Strides in, T* cache_k, T* cache_v,
                 const std::int64_t* positions, const std::uint8_t* mask, T* out, Strides to,
                 const std::int64_t* contexts) {
  const Index bytes = shape.head_dim * static_cast<Index>(sizeof(T)), heads = batch * shape.heads;
  if (capability < 90 || steps != 1 || heads > INT_MAX / tuning::ring_parts || shape.context > INT_MAX / 16 ||
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
                         ring_ranks(heads, processors),
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
