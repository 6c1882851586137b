// Attention of sequences of up to 64 steps in float32, a block a head: all of it fits shared memory. Codecs train
// on such segments.
//
// Formula: nn/attention.hpp: attend, attend_backward; sums in an order of their own, which is always the same.
// Shapes:  those of nn/attention.hpp.
// Units:   elements.
// Errors:  those of check.cuh.
// Not supported: more than 64 steps or 64 dimensions a head, groups of heads, windows shorter than the sequence:
//          false, and nothing done.
// Source:  none.
#pragma once

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/core/tensor.hpp"

namespace mttt::detail {

inline constexpr int brief_side = 64, brief_ld = brief_side + 1, brief_plane = brief_side * brief_ld,
                     brief_threads = 256;

/// Rows of q, k, v and of what has their strides, of one head.
struct BriefAttention {
  const float *q, *k, *v, *dout;
  float *out, *lse, *dq, *dk, *dv;
  Index batch_stride, step_stride, out_batch_stride, out_step_stride;
  int steps, heads, dim;
};

/// write(i, j, sum over k of left(i, k) right(k, j)) for 64 x 64 (i, j); 16 of them a thread.
template <class Left, class Right, class Write>
__device__ void brief_product(int depth, const Left& left, const Right& right, const Write& write) {
  const int y = static_cast<int>(threadIdx.x) / 16, x = static_cast<int>(threadIdx.x) % 16;
  float sum[4][4]{};
#pragma unroll 4
  for (int k = 0; k < depth; ++k) {
    float a[4], b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = left(y + 16 * i, k), b[i] = right(k, x + 16 * i);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * b[j];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) write(y + 16 * i, x + 16 * j, sum[i][j]);
}

__device__ inline void load_brief(float* to, const float* from, Index stride, int steps, int dim) {
  for (int e = static_cast<int>(threadIdx.x); e < brief_side * brief_side; e += brief_threads) {
    const int t = e / brief_side, c = e % brief_side;
    to[t * brief_ld + c] = t < steps && c < dim ? from[t * stride + c] : 0.0f;
  }
}

template <bool backward>
__global__ void __launch_bounds__(brief_threads) brief_attention_kernel(BriefAttention a) {
  start_next();
  await_inputs();
  extern __shared__ double2 shared[];
  float *q = reinterpret_cast<float*>(shared), *k = q + brief_plane, *v = k + brief_plane,
        *p = v + brief_plane, *up = p + brief_plane, *ds = up + brief_plane;
  const int b = static_cast<int>(blockIdx.x) / a.heads, head = static_cast<int>(blockIdx.x) % a.heads;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const Index at = b * a.batch_stride + head * a.dim, out_at = b * a.out_batch_stride + head * a.dim;
  const Index row = static_cast<Index>(b) * a.steps * a.heads + head;  // of lse
  const float scale = 1.0f / std::sqrt(static_cast<float>(a.dim));
  load_brief(q, a.q + at, a.step_stride, a.steps, a.dim);
  load_brief(k, a.k + at, a.step_stride, a.steps, a.dim);
  load_brief(v, a.v + at, a.step_stride, a.steps, a.dim);
  if constexpr (backward) load_brief(up, a.dout + out_at, a.out_step_stride, a.steps, a.dim);
  __syncthreads();
  const auto sum_of = [](float x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
  };
  brief_product(
      a.dim, [=](int i, int c) { return q[i * brief_ld + c]; },
      [=](int c, int j) { return k[j * brief_ld + c]; },
      [=](int i, int j, float x) { p[i * brief_ld + j] = x * scale; });
  if constexpr (backward) {
    brief_product(
        a.dim, [=](int i, int c) { return up[i * brief_ld + c]; },
        [=](int c, int j) { return v[j * brief_ld + c]; },
        [=](int i, int j, float x) { ds[i * brief_ld + j] = x; });
  }
  __syncthreads();
  for (int t = warp; t < brief_side; t += brief_threads / 32) {  // a warp a row
    float *left = p + t * brief_ld + lane, *right = left + 32;
    const bool sees_left = t < a.steps && lane <= t, sees_right = t < a.steps && lane + 32 <= t;
    if constexpr (backward) {
      const float lse = t < a.steps ? a.lse[row + t * a.heads] : 0.0f;
      *left = sees_left ? expf(*left - lse) : 0.0f;
      *right = sees_right ? expf(*right - lse) : 0.0f;
      float *dleft = ds + t * brief_ld + lane, *dright = dleft + 32;
      const float delta = sum_of(*left * *dleft + *right * *dright);
      *dleft = *left * (*dleft - delta) * scale;
      *dright = *right * (*dright - delta) * scale;
    } else {
      float largest = fmaxf(sees_left ? *left : -INFINITY, sees_right ? *right : -INFINITY);
      for (int distance = 16; distance > 0; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
      const float x = sees_left ? expf(*left - largest) : 0.0f,
                  y = sees_right ? expf(*right - largest) : 0.0f;
      const float total = sum_of(x + y);
      *left = x / total;
      *right = y / total;
      if (lane == 0 && t < a.steps) a.lse[row + t * a.heads] = largest + logf(total);
    }
  }
  __syncthreads();
  const auto writer = [&](float* to, Index stride) {
    return [=, steps = a.steps, dim = a.dim](int t, int c, float x) {
      if (t < steps && c < dim) to[t * stride + c] = x;
    };
  };
  if constexpr (backward) {
    brief_product(
        a.steps, [=](int i, int s) { return ds[i * brief_ld + s]; },
        [=](int s, int c) { return k[s * brief_ld + c]; }, writer(a.dq + at, a.step_stride));
    brief_product(
        a.steps, [=](int i, int t) { return ds[t * brief_ld + i]; },
        [=](int t, int c) { return q[t * brief_ld + c]; }, writer(a.dk + at, a.step_stride));
    brief_product(
        a.steps, [=](int i, int t) { return p[t * brief_ld + i]; },
        [=](int t, int c) { return up[t * brief_ld + c]; }, writer(a.dv + at, a.step_stride));
  } else {
    brief_product(
        a.steps, [=](int i, int s) { return p[i * brief_ld + s]; },
        [=](int s, int c) { return v[s * brief_ld + c]; }, writer(a.out + out_at, a.out_step_stride));
  }
}

template <class Shape>
bool takes_brief_attention(const Shape& shape, Index steps) {
  return steps <= brief_side && shape.head_dim <= brief_side && shape.heads == shape.kv_heads &&
         (shape.context == 0 || shape.context >= steps);
}

template <bool backward>
void start_brief_attention(const Launcher& launch, Index batch, const BriefAttention& a) {
  constexpr Index bytes = (backward ? 6 : 4) * brief_plane * 4;
  const auto kernel = brief_attention_kernel<backward>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "asking for shared memory");
  launch("starting attention", kernel, dim3(static_cast<unsigned>(batch * a.heads)),
         static_cast<unsigned>(brief_threads), bytes, a);
}

}  // namespace mttt::detail
