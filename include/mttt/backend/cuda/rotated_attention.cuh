// A few streaming steps of attention over a short ring cache, rotation included: one kernel, a block a head.
//
// A chunk's own keys and values are attended to from shared memory and written to the ring at the end, when
// no step needs what they overwrite. The order of every sum depends on the positions of its session alone.
//
// Formula: see nn/rope.hpp and nn/attention.hpp.
// Shapes:  q, k, v rows of heads * head_dim, not rotated yet; caches (B, heads, context, head_dim).
// Units:   strides in elements.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Not supported: heads that share keys; contexts above 512; head_dims above 64 or whose rows are not 16, 128
//          or 256 bytes.
// Source:  none.
#pragma once

#include <cmath>

#include "mttt/backend/cuda/few_rows.cuh"
#include "mttt/core/tensor.hpp"
#include "mttt/math/scalar.hpp"

namespace mttt::detail {

inline constexpr int rotated_steps = 2;  // that a launch takes at most

template <class T>
struct RotatedTask {
  const T *q, *k, *v;
  Index in_batch, in_step, out_batch, out_step;
  T *cache_k, *cache_v;
  const std::int64_t *positions, *contexts;
  const std::uint8_t* mask;
  T* out;
  int heads, context, steps;
  std::int64_t before;  // steps of this chunk that earlier launches took
  double log_period;
};

/// One or two steps; `lanes` lanes share a row of head_dim elements.
template <int lanes, class T>
__global__ void __launch_bounds__(tuning::rotated_threads) rotated_attention_kernel(RotatedTask<T> task) {
  using A = Wide<T>;
  constexpr int width = pack_width<T>, dim = lanes * width, half = dim / 2, S = rotated_steps;
  constexpr int threads = tuning::rotated_threads, warps = threads / 32, groups = threads / lanes, unroll = 8;
  const int h = blockIdx.x % task.heads, thread = threadIdx.x, lane = thread % lanes, group = thread / lanes;
  const Index b = blockIdx.x / task.heads;
  T* keys = task.cache_k + static_cast<Index>(blockIdx.x) * task.context * dim;
  T* values = task.cache_v + static_cast<Index>(blockIdx.x) * task.context * dim;
  start_next();
  await_inputs();
  T* out = task.out + b * task.out_batch + h * dim;
  if (!active(task.mask, b)) {  // defined, if meaningless, numbers for the layers above
    for (int i = thread; i < task.steps * dim; i += threads) out[i / dim * task.out_step + i % dim] = T(0);
    return;
  }
  const int own = task.contexts == nullptr ? 0 : static_cast<int>(task.contexts[b]);
  const int context = own > 0 && own < task.context ? own : task.context;
  const std::int64_t position = task.positions[b] + task.before;
  const int old = position < context - 1 ? static_cast<int>(position) : context - 1, total = old + task.steps;
  const int first_slot = static_cast<int>((position - old) % context);

  // The rings' rows are asked for before the rotation, whose arithmetic takes as long as they do.
  const auto load = [&](const T* ring, int first, Packed<T>(&rows)[unroll]) {
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int j = first + u * groups + group, s = first_slot + j;
      rows[u] = load_pack<true>(ring + (s < context ? s : s - context) * dim + lane * width, old - j);
    }
  };
  Packed<T> key[unroll], value[unroll];
  load(keys, 0, key);
  load(values, 0, value);

  __shared__ __align__(16) T q[S][dim], new_k[S][dim], new_v[S][dim];
  __shared__ A weight[S][tuning::rotated_context + S], share[S], parts[warps][S][dim];
  if (thread < S * half && thread / half < task.steps) {
    const int t = thread / half, pair = thread % half, c = 2 * pair;
    const Index at = b * task.in_batch + t * task.in_step + h * dim + c;
    const A q_re = wide(task.q[at]), q_im = wide(task.q[at + 1]);
    const A k_re = wide(task.k[at]), k_im = wide(task.k[at + 1]);
    new_v[t][c] = task.v[at];
    new_v[t][c + 1] = task.v[at + 1];
    const double frequency = exp(-task.log_period * static_cast<double>(pair) / static_cast<double>(half));
    double sine, cosine;
    sincos(frequency * static_cast<double>(position + t), &sine, &cosine);
    const A re = static_cast<A>(cosine), im = static_cast<A>(sine);
    q[t][c] = static_cast<T>(q_re * re - q_im * im);
    q[t][c + 1] = static_cast<T>(q_re * im + q_im * re);
    new_k[t][c] = static_cast<T>(k_re * re - k_im * im);
    new_k[t][c + 1] = static_cast<T>(k_re * im + k_im * re);
  }
  __syncthreads();

  A question[S][width];
#pragma unroll
  for (int t = 0; t < S; ++t) {
#pragma unroll
    for (int i = 0; i < width; ++i)
      question[t][i] = t < task.steps ? wide(q[t][lane * width + i]) / std::sqrt(static_cast<A>(dim)) : A(0);
  }
  const auto score = [&](const Packed<T>& row, int j, int end) {
#pragma unroll
    for (int t = 0; t < S; ++t) {
      A sum = 0;
#pragma unroll
      for (int i = 0; i < width; ++i) sum = fma(question[t][i], wide(row.of[i]), sum);
#pragma unroll
      for (int distance = lanes / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      const int ago = old + t - j;  // steps
      if (lane == 0 && j < end) weight[t][j] = ago >= 0 && ago < context ? sum : -INFINITY;
    }
  };
  for (int first = 0; first < old; first += unroll * groups) {
    if (first > 0) load(keys, first, key);
#pragma unroll
    for (int u = 0; u < unroll; ++u) score(key[u], first + u * groups + group, old);
  }
  const int fresh = group < task.steps ? group : 0;  // groups are many more than steps
  score(*reinterpret_cast<const Packed<T>*>(&new_k[fresh][lane * width]), old + group, total);
  __syncthreads();
  if (const int t = thread / 32; t < task.steps) {
    A largest = -INFINITY, sum = 0;
    for (int j = thread % 32; j < total; j += 32) largest = max(largest, weight[t][j]);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    for (int j = thread % 32; j < total; j += 32) {
      const A w = math::exp(weight[t][j] - largest);
      weight[t][j] = w;
      sum += w;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (thread % 32 == 0) share[t] = A(1) / sum;
  }
  __syncthreads();

  A mixed[S][width] = {};
  const auto mix = [&](const Packed<T>& row, int j) {
#pragma unroll
    for (int t = 0; t < S; ++t) {
      const A w = t < task.steps ? weight[t][j] : A(0);
#pragma unroll
      for (int i = 0; i < width; ++i) mixed[t][i] = fma(w, wide(row.of[i]), mixed[t][i]);
    }
  };
  for (int first = 0; first < old; first += unroll * groups) {
    if (first > 0) load(values, first, value);
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int j = first + u * groups + group;
      if (j < old) mix(value[u], j);
    }
  }
  if (group < task.steps) mix(*reinterpret_cast<const Packed<T>*>(&new_v[group][lane * width]), old + group);
#pragma unroll
  for (int t = 0; t < S; ++t) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
#pragma unroll
      for (int distance = 16; distance >= lanes; distance /= 2)
        mixed[t][i] += __shfl_xor_sync(0xffffffffu, mixed[t][i], distance);
      if (thread % 32 < lanes) parts[thread / 32][t][lane * width + i] = mixed[t][i];
    }
  }
  __syncthreads();
  for (int i = thread; i < task.steps * dim; i += threads) {
    const int t = i / dim, c = i % dim;
    A sum = 0;
#pragma unroll
    for (int w = 0; w < warps; ++w) sum += parts[w][t][c];
    out[t * task.out_step + c] = static_cast<T>(sum * share[t]);
    if (t >= task.steps - context) {  // of several steps for one slot the last
      const int slot = (first_slot + old + t) % context * dim + c;
      keys[slot] = new_k[t][c];
      values[slot] = new_v[t][c];
    }
  }
}

template <class T, class Shape, class Strides>
bool rotated_attend(const Launcher& launch, const Shape& shape, Index batch, Index steps, const T* q,
                    const T* k, const T* v, Strides strides, T* cache_k, T* cache_v,
                    const std::int64_t* positions, const std::uint8_t* mask, T* out, Strides out_strides,
                    const std::int64_t* contexts, double max_period) {
  const Index row = shape.head_dim * static_cast<Index>(sizeof(T)), lanes = row / 16;
  if (shape.kv_heads != shape.heads || shape.context > tuning::rotated_context || row % 16 != 0 ||
      shape.head_dim > tuning::rotated_dim || !whole_packs(cache_k, 0) || !whole_packs(cache_v, 0))
    return false;
  const auto kernel = lanes == 1    ? rotated_attention_kernel<1, T>
                      : lanes == 8  ? rotated_attention_kernel<8, T>
                      : lanes == 16 ? rotated_attention_kernel<16, T>
                                    : nullptr;
  if (kernel == nullptr) return false;
  for (Index first = 0; first < steps; first += rotated_steps) {
    const int count = static_cast<int>(std::min<Index>(rotated_steps, steps - first));
    const Index at = first * strides.step;
    const RotatedTask<T> task{q + at,
                              k + at,
                              v + at,
                              strides.batch,
                              strides.step,
                              out_strides.batch,
                              out_strides.step,
                              cache_k,
                              cache_v,
                              positions,
                              contexts,
                              mask,
                              out + first * out_strides.step,
                              static_cast<int>(shape.heads),
                              static_cast<int>(shape.context),
                              count,
                              first,
                              std::log(max_period)};
    launch("a step of attention", kernel, static_cast<unsigned>(batch * shape.heads), tuning::rotated_threads,
           0, task);
  }
  return true;
}

}  // namespace mttt::detail
