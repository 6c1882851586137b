// Products of the windows of a sequence by TF32 tensor cores: convolutions, their gradients, and plain products.
//
// Rows may overlap, and reach out of their session, where all is 0: no window is copied, nothing is padded.
// Factors are rounded to TF32 (11 bits, halves away from 0), sums are float32 in an order that the shape alone
// decides.
//
// Formula: window_product    y[b, t, n] = alpha sum over k of a[b, t, k] w[k, n] + bias[n % bias_width]
//                                         + beta y[b, t, n]
//          window_gradient   grad[k, n] = alpha sum over b, t of a[b, t, k] d[b, t, n] + beta grad[k, n],
//                            bias[n] += sum over b, t of d[b, t, n]
// Shapes:  a: see Windows, w: see WindowWeights (backend/fused.hpp); d rows `ld` apart, those of all sessions one
//          after the other.
// Units:   elements.
// Errors:  those of check.cuh.
// Not supported: compute capability below 8.0; 2^31 windows or more, 2^30 elements a session.
// Source:  PTX ISA: mma.sync.m16n8k8 of .tf32, cp.async; CUTLASS: rounding by half a unit before truncation.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/mma.cuh"
#include "mttt/backend/fused.hpp"

namespace mttt::detail {

/// `width` floats from global to shared memory, or as many zeros.
template <int width>
__device__ void copy_floats(float* to, const float* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
               "n"(width * 4), "r"(valid ? width * 4 : 0)
               : "memory");
}

/// Tensor cores ignore the last 13 bits: half of the last one that counts is added before.
__device__ inline std::uint32_t as_tf32(float x) { return __float_as_uint(x) + 0x1000u; }

__device__ inline void multiply_tf32(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                     std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

struct WindowProduct {
  Windows<float> a;
  WindowWeights<float> w;
  float* y;
  Index n, ld, session;  // columns, distances of rows and of sessions
  const float* bias;
  Index bias_width;
  float alpha, beta;
  int copy, weight_copy;  // floats of one copy
  bool pairs;             // y takes two floats at once
};

inline constexpr int window_depth = 32, window_threads = 128, window_ld = window_depth + 4;

/// Where a row of windows lies: its first element, and that one's place in the session.
struct WindowRow {
  const float* x;
  int at;
};
__device__ inline WindowRow window_row(const Windows<float>& a, Index m, Index end) {
  const auto row = static_cast<std::uint32_t>(m), rows = static_cast<std::uint32_t>(a.rows);
  const std::uint32_t b = row / rows, t = row - b * rows;
  const Index at = a.first + t * a.step;
  // Past the end: so far out of the session that no column is inside.
  return m < end ? WindowRow{a.x + b * a.session + at, static_cast<int>(at)} : WindowRow{a.x, -(1 << 30)};
}

/// Elements [k, k + depth) of `rows` windows, and zeros up to a multiple of `whole`, into rows `ld` apart; by all
/// threads.
template <int rows, int whole, int n>
__device__ void load_windows(float* to, int ld, const WindowRow* row, int k, int depth, int length,
                             const float* anywhere) {
  const int wanted = (depth + whole - 1) / whole * whole / n;
  const int bits = 32 - __clz(wanted - 1), thread = static_cast<int>(threadIdx.x);  // threads a row: 2^bits
  const int column = (thread & ((1 << bits) - 1)) * n;
  if (column >= wanted * n) return;
#pragma unroll 4
  for (int r = thread >> bits; r < rows; r += window_threads >> bits) {
    const WindowRow from = row[r];
    const int at = from.at + k + column;
    const bool valid = column < depth && at >= 0 && at + n <= length;
    copy_floats<n>(to + r * ld + column, valid ? from.x + k + column : anywhere, valid);
  }
}
template <int rows, int whole>
__device__ void load_windows(int copy, float* to, int ld, const WindowRow* row, int k, int depth, int length,
                             const float* anywhere) {
  if (copy == 4) {
    load_windows<rows, whole, 4>(to, ld, row, k, depth, length, anywhere);
  } else if (copy == 2) {
    load_windows<rows, whole, 2>(to, ld, row, k, depth, length, anywhere);
  } else {
    load_windows<rows, whole, 1>(to, ld, row, k, depth, length, anywhere);
  }
}

/// Rows [k, k + depth) of the weights: `along`, where neighbouring columns are neighbours in memory, as
/// (depth, width), else as (width, depth), with zeros up to a multiple of 8 rows.
template <bool along, int width, int n>
__device__ void load_weights(float* to, const WindowWeights<float>& w, int k, int depth, int first_column,
                             int columns, float per_inner) {
  constexpr int per_row = (along ? width : window_depth) / n;
  const int inner = static_cast<int>(w.inner), rows = (depth + 7) / 8 * 8;
  const int all = along ? rows * per_row : width * per_row;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < all; e += window_threads) {
    const int i = along ? e / per_row : e % per_row * n, j = along ? e % per_row * n : e / per_row;
    const int row = k + i, column = first_column + j;
    const bool valid = i < depth && column < columns;
    const int outer = inner > row ? 0 : __float2int_rd((static_cast<float>(row) + 0.5f) * per_inner);
    const float* from =
        w.w + outer * w.outer_stride + (row - outer * inner) * w.inner_stride + column * w.column_stride;
    copy_floats<n>(to + (along ? i * (width + 8) + j : j * window_ld + i), valid ? from : w.w, valid);
  }
}

/// A block: 64 * tall windows by `width` columns; a warp 16 * tall of these windows.
template <int tall, int width, bool along>
__global__ void __launch_bounds__(window_threads) window_product_kernel(WindowProduct p, int stages) {
  constexpr int rows = 64 * tall, tiles = width / 8,
                stage = rows * window_ld + (along ? window_depth * (width + 8) : width * window_ld);
  extern __shared__ double2 shared[];
  float* const slots = reinterpret_cast<float*>(shared);
  __shared__ WindowRow row[rows];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Index first_row = static_cast<Index>(blockIdx.x) * rows;
  const int first_column = static_cast<int>(blockIdx.y) * width, columns = static_cast<int>(p.n);
  const int depth = static_cast<int>(p.a.cols), chunks = (depth + window_depth - 1) / window_depth;
  const int length = static_cast<int>(p.a.length);
  const float per_inner = 1.0f / static_cast<float>(p.w.inner);
  const Index all = p.a.sessions * p.a.rows;
  start_next();
  if (thread < rows) row[thread] = window_row(p.a, first_row + thread, all);
  await_inputs();
  __syncthreads();

  const auto load = [&](int chunk) {
    if (chunk < chunks) {
      float* to = slots + chunk % stages * stage;
      const int k = chunk * window_depth, left = min(window_depth, depth - k);
      load_windows<rows, 8>(p.copy, to, window_ld, row, k, left, length, p.a.x);
      to += rows * window_ld;
      if (p.weight_copy == 4) {
        load_weights<along, width, 4>(to, p.w, k, left, first_column, columns, per_inner);
      } else if (p.weight_copy == 2) {
        load_weights<along, width, 2>(to, p.w, k, left, first_column, columns, per_inner);
      } else {
        load_weights<along, width, 1>(to, p.w, k, left, first_column, columns, per_inner);
      }
    }
    commit_copies();
  };

  float sum[tall][tiles][4]{};
  for (int chunk = 0; chunk + 1 < stages; ++chunk) load(chunk);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (stages == 4) {
      await_copies_but<2>();
    } else if (stages == 3) {
      await_copies_but<1>();
    } else {
      await_copies();
    }
    __syncthreads();
    load(chunk + stages - 1);
    const float *a = slots + chunk % stages * stage, *weights = a + rows * window_ld;
    const int matrix = lane / 8, r = lane % 8;
    const std::uint32_t a_at = shared_address(a + (warp * 16 * tall + r + matrix % 2 * 8) * window_ld +
                                              matrix / 2 * 4),
                        w_at = shared_address(weights + (r + matrix / 2 * 8) * window_ld + matrix % 2 * 4);
    const float* const w_from = weights + lane % 4 * (width + 8) + lane / 4;
    const int left = min(window_depth, depth - chunk * window_depth);
    const auto multiply = [&](int k) {
      std::uint32_t windows[tall][4];
#pragma unroll
      for (int i = 0; i < tall; ++i) {
        load_matrices(windows[i], a_at + static_cast<std::uint32_t>(4 * (i * 16 * window_ld + k)));
#pragma unroll
        for (int j = 0; j < 4; ++j) windows[i][j] = as_tf32(__uint_as_float(windows[i][j]));
      }
#pragma unroll
      for (int j = 0; j < tiles; j += 2) {
        std::uint32_t w[4];
        if constexpr (along) {
          const float* from = w_from + k * (width + 8) + j * 8;
          w[0] = as_tf32(from[0]), w[1] = as_tf32(from[4 * (width + 8)]);
          w[2] = as_tf32(from[8]), w[3] = as_tf32(from[4 * (width + 8) + 8]);
        } else {
          load_matrices(w, w_at + static_cast<std::uint32_t>(4 * (j * 8 * window_ld + k)));
#pragma unroll
          for (int i = 0; i < 4; ++i) w[i] = as_tf32(__uint_as_float(w[i]));
        }
#pragma unroll
        for (int i = 0; i < tall; ++i) {
          multiply_tf32(sum[i][j], windows[i], w[0], w[1]);
          multiply_tf32(sum[i][j + 1], windows[i], w[2], w[3]);
        }
      }
    };
    if (left == window_depth) {
#pragma unroll
      for (int k = 0; k < window_depth; k += 8) multiply(k);
    } else {
      for (int k = 0; k < left; k += 8) multiply(k);
    }
  }

  const auto all_rows = static_cast<std::uint32_t>(all), a_session = static_cast<std::uint32_t>(p.a.rows);
  float* to[tall][2];
#pragma unroll
  for (int i = 0; i < tall; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto m = static_cast<std::uint32_t>(first_row) + (warp * tall + i) * 16 + half * 8 + lane / 4;
      const std::uint32_t b = m / a_session, t = m - b * a_session;
      to[i][half] = m < all_rows ? p.y + b * p.session + t * p.ld : nullptr;
    }
  }
#pragma unroll
  for (int j = 0; j < tiles; ++j) {
    const int column = first_column + j * 8 + lane % 4 * 2;
    if (column >= columns) continue;
    float bias[2]{};
    if (p.bias != nullptr) {
      const int bias_width = static_cast<int>(p.bias_width);
      const int at = column < bias_width ? column : column % bias_width;
      bias[0] = p.bias[at];
      if (column + 1 < columns) bias[1] = p.bias[at + 1 == bias_width ? 0 : at + 1];
    }
#pragma unroll
    for (int i = 0; i < tall; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (to[i][half] == nullptr) continue;
        float* y = to[i][half] + column;
        float left = p.alpha * sum[i][j][2 * half] + bias[0],
              right = p.alpha * sum[i][j][2 * half + 1] + bias[1];
        if (p.pairs) {
          auto* both = reinterpret_cast<float2*>(y);
          if (p.beta != 0) left += p.beta * both->x, right += p.beta * both->y;
          *both = {left, right};
        } else {
          y[0] = p.beta == 0 ? left : left + p.beta * y[0];
          if (column + 1 < columns) y[1] = p.beta == 0 ? right : right + p.beta * y[1];
        }
      }
    }
  }
}

struct WindowGradient {
  Windows<float> a;
  const float* d;
  Index n, ld;
  float* parts;      // (slices, a.cols + with_bias, n)
  Index slice;       // windows of a part, a multiple of 32
  int copy, d_copy;  // floats of one copy
  bool with_bias;    // a last column of a, all 1
};

/// A block: 64 columns of a by `width` of d, over a slice of the windows; a warp 16 of these columns.
template <int width>
__global__ void __launch_bounds__(window_threads) window_gradient_kernel(WindowGradient p) {
  constexpr int rows = 32, columns = 64, a_ld = columns + 8, d_ld = width + 8, tiles = width / 8, stages = 3,
                stage = rows * (a_ld + d_ld);
  extern __shared__ double2 shared[];
  float* const slots = reinterpret_cast<float*>(shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  __shared__ WindowRow row[2][rows];
  const int first_k = static_cast<int>(blockIdx.y) * columns, first_n = static_cast<int>(blockIdx.z) * width;
  const int depth = static_cast<int>(p.a.cols), width_of_d = static_cast<int>(p.n);
  const int length = static_cast<int>(p.a.length), left = min(columns, depth - first_k);
  const Index all = p.a.sessions * p.a.rows, begin = static_cast<Index>(blockIdx.x) * p.slice,
              end = min(all, begin + p.slice);
  const int chunks = static_cast<int>((end - begin + rows - 1) / rows);
  start_next();
  // No copy reaches the columns past the last: they stay as they are set here.
  for (int e = thread; e < stages * rows; e += window_threads) {
    float* to = slots + e / rows * stage + e % rows * a_ld;
    for (int c = max(0, depth - first_k); c < columns; ++c)
      to[c] = p.with_bias && first_k + c == depth ? 1.0f : 0.0f;
    to = slots + e / rows * stage + rows * a_ld + e % rows * d_ld;
    for (int c = max(0, width_of_d - first_n); c < width; ++c) to[c] = 0;
  }
  const auto place = [&](int chunk) {
    if (thread < rows) row[chunk % 2][thread] = window_row(p.a, begin + chunk * rows + thread, end);
  };
  const auto load_rows = [&]<int n>(float* to, Index from) {
    constexpr int a_row = width / n;
    const float* d = p.d + from * p.ld + first_n;
    const int ld = static_cast<int>(p.ld), last = static_cast<int>(min(static_cast<Index>(rows), end - from));
#pragma unroll
    for (int e = thread; e < rows * a_row; e += window_threads) {
      const int r = e / a_row, column = e % a_row * n;
      if (first_n + column < width_of_d)
        copy_floats<n>(to + r * d_ld + column, r < last ? d + r * ld + column : p.d, r < last);
    }
  };
  const auto load = [&](int chunk) {
    if (chunk < chunks) {
      float* to = slots + chunk % stages * stage;
      const Index from = begin + static_cast<Index>(chunk) * rows;
      if (left > 0) load_windows<rows, 1>(p.copy, to, a_ld, row[chunk % 2], first_k, left, length, p.a.x);
      to += rows * a_ld;
      if (p.d_copy == 4) {
        load_rows.template operator()<4>(to, from);
      } else if (p.d_copy == 2) {
        load_rows.template operator()<2>(to, from);
      } else {
        load_rows.template operator()<1>(to, from);
      }
    }
    commit_copies();
  };
  place(0);
  place(1);
  await_inputs();
  __syncthreads();

  float sum[tiles][4]{};
  for (int chunk = 0; chunk + 1 < stages; ++chunk) load(chunk);
  __syncthreads();  // the places of both are read
  place(stages - 1);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    await_copies_but<stages - 2>();
    __syncthreads();
    load(chunk + stages - 1);
    place(chunk + stages);
    const float* a = slots + chunk % stages * stage + warp * 16 + lane / 4 + lane % 4 * a_ld;
    const float* d = slots + chunk % stages * stage + rows * a_ld + lane / 4 + lane % 4 * d_ld;
#pragma unroll
    for (int k = 0; k < rows; k += 8, a += 8 * a_ld, d += 8 * d_ld) {
      const std::uint32_t windows[4]{as_tf32(a[0]), as_tf32(a[8]), as_tf32(a[4 * a_ld]),
                                     as_tf32(a[4 * a_ld + 8])};
#pragma unroll
      for (int j = 0; j < tiles; ++j)
        multiply_tf32(sum[j], windows, as_tf32(d[j * 8]), as_tf32(d[j * 8 + 4 * d_ld]));
    }
  }
  const int wanted = depth + p.with_bias;
  float* parts = p.parts + static_cast<Index>(blockIdx.x) * wanted * p.n;
#pragma unroll
  for (int j = 0; j < tiles; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = first_k + warp * 16 + lane / 4 + i / 2 * 8, n = first_n + j * 8 + lane % 4 * 2 + i % 2;
      if (k < wanted && n < width_of_d) parts[static_cast<Index>(k) * p.n + n] = sum[j][i];
    }
  }
}

/// Adds the parts up: of n threads an element each every n-th, then these in order.
template <int threads>
__global__ void __launch_bounds__(threads)
    add_window_parts_kernel(const float* parts, Index slices, Index k_count, Index n_count, float* grad,
                            Index k_stride, Index n_stride, float* bias, float alpha, float beta) {
  constexpr int ways = threads / 32;
  __shared__ float sums[ways][32];
  const Index width = (k_count + (bias != nullptr)) * n_count;
  const int x = static_cast<int>(threadIdx.x) % 32, y = static_cast<int>(threadIdx.x) / 32;
  const Index c = static_cast<Index>(blockIdx.x) * 32 + x;
  start_next();
  await_inputs();
  float sum = 0;
  if (c < width) {
#pragma unroll 8
    for (Index s = y; s < slices; s += ways) sum += parts[s * width + c];
  }
  sums[y][x] = sum;
  __syncthreads();
  if (y != 0 || c >= width) return;
  for (int i = 1; i < ways; ++i) sum += sums[i][x];
  const Index k = c / n_count, n = c % n_count;
  if (k == k_count) {
    bias[n] += sum;
    return;
  }
  float& to = grad[k * k_stride + n * n_stride];
  to = beta == 0 ? alpha * sum : alpha * sum + beta * to;
}

/// Floats that a copy may take where addresses are multiples of all these.
template <class... P>
int window_copy(std::initializer_list<Index> multiples, P... pointers) {
  std::uintptr_t bits = 0;
  for (const Index m : multiples) bits |= static_cast<std::uintptr_t>(m * 4);
  ((bits |= reinterpret_cast<std::uintptr_t>(pointers)), ...);
  return bits % 16 == 0 ? 4 : bits % 8 == 0 ? 2 : 1;
}

/// Columns of a block: few to spare, and few blocks that read the same windows.
inline int window_width(Index n) {
  int best = 64;
  const auto cost = [&](int width) { return (n + width - 1) / width * (width + 24); };
  for (const int width : {48, 32, 16})
    if (cost(width) < cost(best)) best = width;
  return best;
}

template <int tall, int width, bool along>
void start_window_product(const Launcher& launch, const WindowProduct& p) {
  constexpr Index rows = 64 * tall,
                  stage = 4 * (rows * window_ld + (along ? window_depth * (width + 8) : width * window_ld));
  const Index chunks = (p.a.cols + window_depth - 1) / window_depth;
  const int stages = chunks <= 2 ? 2 : tall == 1 ? 4 : 3;
  const Index bytes = stage * std::min<Index>(chunks, stages);
  const auto kernel = window_product_kernel<tall, width, along>;
  if (bytes > 32 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(4 * stage)),
          "asking for shared memory");
  }
  const Index all = p.a.sessions * p.a.rows;
  launch(
      "starting a product of windows", kernel,
      dim3(static_cast<unsigned>((all + rows - 1) / rows), static_cast<unsigned>((p.n + width - 1) / width)),
      window_threads, bytes, p, stages);
}

inline void window_product(const Launcher& launch, Index processors, WindowProduct p) {
  p.copy = window_copy({p.a.cols, p.a.step, p.a.first, p.a.session, p.a.length}, p.a.x);
  p.pairs = window_copy({p.n, p.ld, p.session}, p.y) > 1;
  const WindowWeights<float>& w = p.w;
  const bool upright = w.inner_stride == 1, along = !upright && w.column_stride == 1;
  const Index blocks_of = w.inner < p.a.cols ? w.inner : 0;
  p.weight_copy = along     ? window_copy({p.n, w.inner_stride, w.outer_stride}, w.w)
                  : upright ? window_copy({p.a.cols, blocks_of, w.outer_stride, w.column_stride}, w.w)
                            : 1;
  const int width = window_width(p.n);
  const Index blocks = (p.a.sessions * p.a.rows + 127) / 128 * ((p.n + width - 1) / width);
  const auto start = [&]<int tall, bool along_columns>() {
    if (width == 16) return start_window_product<tall, 16, along_columns>(launch, p);
    if (width == 32) return start_window_product<tall, 32, along_columns>(launch, p);
    if (width == 48) return start_window_product<tall, 48, along_columns>(launch, p);
    return start_window_product<tall, 64, along_columns>(launch, p);
  };
  if (blocks >= 2 * processors)
    return along ? start.template operator()<2, true>() : start.template operator()<2, false>();
  return along ? start.template operator()<1, true>() : start.template operator()<1, false>();
}

template <int width>
void start_window_gradient(const Launcher& launch, const WindowGradient& p, Index slices) {
  constexpr Index bytes = 3 * 32 * (64 + 8 + width + 8) * 4;
  const auto kernel = window_gradient_kernel<width>;
  if (bytes > 32 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "asking for shared memory");
  }
  launch("starting a gradient of windows", kernel,
         dim3(static_cast<unsigned>(slices), static_cast<unsigned>((p.a.cols + p.with_bias + 63) / 64),
              static_cast<unsigned>((p.n + width - 1) / width)),
         window_threads, bytes, p);
}

/// grad[k * k_stride + n * n_stride]; bias may be null. `room` floats at `parts` are scratch.
inline void window_gradient(const Launcher& launch, const Windows<float>& a, Matrix<const float> d,
                            float* grad, Index k_stride, Index n_stride, float* bias, float alpha, float beta,
                            float* parts, Index room) {
  const Index n = d.cols, all = a.sessions * a.rows, k = a.cols + (bias != nullptr);
  const int width = window_width(n);
  const Index tiles = (k + 63) / 64 * ((n + width - 1) / width);
  // As many blocks as an H200 holds at once, whatever the GPU: the order of a sum is that of the slices.
  const Index held = width == 16 ? 792 : width == 32 ? 660 : 528;
  const Index most = std::max<Index>(1, std::min(room / (k * n), (all + 255) / 256));
  const Index wanted = std::min(most, std::max<Index>(1, held / tiles));
  const Index slice = ((all + wanted - 1) / wanted + 31) / 32 * 32, slices = (all + slice - 1) / slice;
  const WindowGradient p{a,
                         d.data,
                         n,
                         d.ld,
                         parts,
                         slice,
                         window_copy({a.cols, a.step, a.first, a.session, a.length}, a.x),
                         window_copy({n, d.ld}, d.data),
                         bias != nullptr};
  if (width == 16) {
    start_window_gradient<16>(launch, p, slices);
  } else if (width == 32) {
    start_window_gradient<32>(launch, p, slices);
  } else if (width == 48) {
    start_window_gradient<48>(launch, p, slices);
  } else {
    start_window_gradient<64>(launch, p, slices);
  }
  const auto add = [&]<int threads>() {
    launch("adding up a gradient", add_window_parts_kernel<threads>,
           dim3(static_cast<unsigned>((k * n + 31) / 32)), static_cast<unsigned>(threads), Index{0},
           static_cast<const float*>(parts), slices, a.cols, n, grad, k_stride, n_stride, bias, alpha, beta);
  };
  if (slices > 64) return add.template operator()<1024>();
  add.template operator()<256>();
}

}  // namespace mttt::detail
