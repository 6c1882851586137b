// Products of few rows with large weights, as streaming steps make them, and convolutions as such products.
//
// Formula: y[m, n] = finish(sum over k of in(m, k) * w(n, k)). A warp takes TM rows by TN columns and every
//          k_warps-th slice of 32 packs of 16 bytes of the depth; lanes, then warps, meet in a fixed tree.
//          The order of a sum is set by the depth and the type alone: a row has the same bits in any batch,
//          at any leading dimension.
// Shapes:  in (rows, depth), w (cols, depth), y (rows, cols). Rows and columns past the end are computed from
//          the last ones and dropped.
// Units:   elements.
// Errors:  none.
// Not supported: tensor cores: a step of few rows takes as long as its weights take to be read.
// Source:  none.
#pragma once

#include <algorithm>

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/pack.cuh"
#include "mttt/backend/cuda/tuning.cuh"
#include "mttt/backend/fused.hpp"
#include "mttt/core/bf16.hpp"

namespace mttt::detail {

/// What a thread reads at once, 16 bytes.
template <class T>
using Packed = Pack<T, pack_width<T>>;

template <class T>
bool whole_packs(const T* data, Index stride) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && stride % pack_width<T> == 0;
}

/// `left` elements of a pack, zeros for the rest. If not `aligned`, one by one.
template <bool aligned, class T>
__device__ Packed<T> load_pack(const T* from, int left) {
  if constexpr (aligned) {
    uint4 bits{};
    if (left > 0) bits = *reinterpret_cast<const uint4*>(from);
    return reinterpret_cast<const Packed<T>&>(bits);
  } else {
    Packed<T> pack;
#pragma unroll
    for (int j = 0; j < pack_width<T>; ++j) pack.of[j] = j < left ? from[j] : T(0);
    return pack;
  }
}

/// The same for weights, each of which a multiprocessor reads once: they leave its cache to the rows.
template <bool aligned, class T>
__device__ Packed<T> load_weights(const T* from, int left) {
  if constexpr (aligned) {
    uint4 bits{};
    if (left > 0) {
      asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
                   : "l"(from));
    }
    return reinterpret_cast<const Packed<T>&>(bits);
  } else {
    return load_pack<false>(from, left);
  }
}

template <class T>
struct RowStatistics {
  Wide<T> mean, scale;
};

/// Weights (cols, depth), the depth in segments that lie `jump` elements further apart than their length.
template <class T>
struct RowWeights {
  const T* data;
  Index ld, jump = 0;
  int segment;
  __device__ Index at(int k) const { return jump == 0 ? k : k + k / segment * jump; }
  /// The pack of `row` from depth k on, which lies at `first` = at(k). One that is not aligned may reach over
  /// the end of a segment.
  template <bool aligned>
  __device__ Packed<T> load(const T* row, int k, Index first, int depth) const {
    if constexpr (!aligned) {
      if (jump != 0) {
        Packed<T> pack;
#pragma unroll
        for (int j = 0; j < pack_width<T>; ++j) pack.of[j] = k + j < depth ? row[at(k + j)] : T(0);
        return pack;
      }
    }
    return load_weights<aligned>(row + first, depth - k);
  }
};

/// Rows as they are, or through a LayerNorm; without a bias, through an RmsNorm.
template <class T, bool normed>
struct PlainRows {
  using Row = const T*;
  const T* x;
  Index ld;
  int depth;
  const T *weight, *bias;
  Wide<T> eps;

  __device__ Row row(int m) const { return x + m * ld; }
  template <bool aligned>
  __device__ void prepare(int first, int count, int rows, RowStatistics<T>* statistics) const {
    if constexpr (normed) {
      constexpr int width = pack_width<T>;
      const int lane = threadIdx.x % 32;
      for (int m = threadIdx.x / 32; m < count; m += blockDim.x / 32) {
        const T* from = row(min(first + m, rows - 1));
        const auto mean_of = [&](auto f) {
          Wide<T> sum = 0;
          for (int k = lane * width; k < depth; k += 32 * width) {
            const Packed<T> pack = load_pack<aligned>(from + k, depth - k);
#pragma unroll
            for (int j = 0; j < width; ++j) sum += k + j < depth ? f(wide(pack.of[j])) : Wide<T>(0);
          }
#pragma unroll
          for (int distance = 16; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
          return sum / static_cast<Wide<T>>(depth);
        };
        const Wide<T> mean = bias == nullptr ? Wide<T>(0) : mean_of([](Wide<T> v) { return v; });
        const Wide<T> variance = mean_of([mean](Wide<T> v) { return (v - mean) * (v - mean); });
        if (lane == 0) statistics[m] = {mean, Wide<T>(1) / std::sqrt(variance + eps)};
      }
      __syncthreads();
    }
  }
  template <bool aligned>
  __device__ void load(Row from, const RowStatistics<T>& s, int k, Wide<T>* to) const {
    const Packed<T> pack = load_pack<aligned>(from + k, depth - k);
#pragma unroll
    for (int j = 0; j < pack_width<T>; ++j) to[j] = wide(pack.of[j]);
    if constexpr (normed) {
      const Packed<T> w = load_pack<aligned>(weight + k, depth - k);
#pragma unroll
      for (int j = 0; j < pack_width<T>; ++j) to[j] = (to[j] - s.mean) * s.scale * wide(w.of[j]);
      if (bias != nullptr) {
        const Packed<T> b = load_pack<aligned>(bias + k, depth - k);
#pragma unroll
        for (int j = 0; j < pack_width<T>; ++j) to[j] += wide(b.of[j]);
      }
    }
  }
};

/// Windows of the samples before the chunk and of F of the chunk's.
template <class F, class T>
struct WindowRows {
  struct Row {
    const T *x, *previous;  // of the window's first sample
    int before;             // elements of the window that lie before the chunk
  };
  ConvStep<T> conv;
  int depth;

  __device__ Row row(int m) const {
    const int steps = static_cast<int>(conv.steps);
    const Index b = m / steps, first = m % steps * conv.stride * conv.in;
    const Index context = conv.context() * conv.in;
    const T* x = conv.x + b * conv.steps * conv.stride * conv.in;
    Row row{x + first - context, conv.previous + b * context + first, static_cast<int>(context - first)};
    if (row.before > 0 && conv.started != nullptr && conv.started[b] == 0) {
      row.previous = nullptr;
      row.before = static_cast<int>(context - first);
    }
    return row;
  }
  template <bool>
  __device__ void prepare(int, int, int, RowStatistics<T>*) const {}
  // Addresses are chosen and then read, so that no read waits for another.
  template <bool aligned>
  __device__ void load(const Row& from, const RowStatistics<T>&, int k, Wide<T>* to) const {
    constexpr int width = pack_width<T>;
    const int in = static_cast<int>(conv.in);
    if constexpr (aligned) {  // no pack holds samples of both sides
      const bool before = k < from.before, kept = before && from.previous != nullptr;
      const T* source = kept ? from.previous + k : from.x + (before ? from.before + k % in : k);
      const Packed<T> pack = load_pack<true>(source, depth - k);
#pragma unroll
      for (int j = 0; j < width; ++j) to[j] = kept ? wide(pack.of[j]) : F::f(wide(pack.of[j]));
    } else {
      T sample[width];
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const int at = k + j;
        const bool before = at < from.before;
        const T* source = before && from.previous != nullptr ? from.previous + at
                                                             : from.x + (before ? from.before + at % in : at);
        sample[j] = at < depth ? *source : T(0);
      }
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const bool kept = k + j < from.before && from.previous != nullptr;
        to[j] = kept ? wide(sample[j]) : F::f(wide(sample[j]));
      }
    }
  }
};

/// The inputs that meet in the samples of one step, the last first; steps + taps - 1 rows a session.
template <class F, class T>
struct TapRows {
  struct Row {
    const T* x;
    int step;
  };
  const T* x;
  int steps, in, rows_a_session, depth;

  __device__ Row row(int m) const {
    const int step = m % rows_a_session;
    return {x + (static_cast<Index>(m / rows_a_session) * steps + step) * in, step};
  }
  template <bool>
  __device__ void prepare(int, int, int, RowStatistics<T>*) const {}
  template <bool aligned>
  __device__ void load(const Row& from, const RowStatistics<T>&, int k, Wide<T>* to) const {
    constexpr int width = pack_width<T>;
    Packed<T> pack;
    bool inside[width];
#pragma unroll
    for (int j = 0; j < (aligned ? 1 : width); ++j) {  // no pack holds inputs of two steps
      const int at = k + j, tap = at / in, step = from.step - tap;
      const T* source = from.x + at - 2 * tap * in;
      inside[j] = at < depth && step >= 0 && step < steps;
      if constexpr (aligned) {
        pack = load_pack<true>(source, inside[0] ? width : 0);
      } else {
        pack.of[j] = inside[j] ? *source : T(0);
      }
    }
#pragma unroll
    for (int j = 0; j < width; ++j) to[j] = inside[aligned ? 0 : j] ? F::f(wide(pack.of[j])) : Wide<T>(0);
  }
};

/// y = addend + scale * F(alpha * product + bias)
template <class F, class T, class V>
struct WriteRows {
  V* y;
  Index ld, addend_ld;
  Finish<V> finish;
  Wide<V> alpha;
  __device__ void operator()(int m, int n, Wide<T> product) const {
    Wide<V> value = alpha * product;
    if (finish.bias != nullptr) value += wide(finish.bias[n]);
    value = F::f(value);
    if (finish.scale != nullptr) value *= wide(finish.scale[n]);
    if (finish.addend != nullptr) value += wide(finish.addend[m * addend_ld + n]);
    y[m * ld + n] = static_cast<V>(value);
  }
};

/// Samples of this chunk go to y, with what earlier chunks left; those past its end to `tail`.
template <class T>
struct WriteSamples {
  ConvTransposeStep<T> conv;
  int rows_a_session;
  __device__ void operator()(int m, int n, Wide<T> value) const {
    const Index b = m / rows_a_session, step = m % rows_a_session;
    const Index width = conv.stride * conv.out, overlap = conv.taps() - 1;
    if (step < overlap) value += wide(conv.partial[(b * overlap + step) * width + n]);
    if (step < conv.steps) {
      if (conv.bias != nullptr) value += wide(conv.bias[n % conv.out]);
      conv.y[(b * conv.steps + step) * width + n] = static_cast<T>(value);
    } else {
      conv.tail[(b * overlap + step - conv.steps) * width + n] = static_cast<T>(value);
    }
  }
};

/// Sums `N` values over the lanes of a warp, each by the same tree whatever N is. Lane l is left with
/// max(1, N / 32) sums, the first of them number l * N / 32.
template <int N, int distance, class A>
__device__ __forceinline__ void sum_lanes(A* values, int lane) {
  if constexpr (distance > 0 && N > 1) {
    const bool upper = (lane & distance) != 0;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const A given = upper ? values[i] : values[i + N / 2], kept = upper ? values[i + N / 2] : values[i];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, given, distance);
    }
    sum_lanes<N / 2, distance / 2>(values, lane);
  } else if constexpr (distance > 0) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], distance);
    sum_lanes<1, distance / 2>(values, lane);
  }
}

template <int TM, int TN, bool aligned, class T, class In, class Out>
__global__ void __launch_bounds__(tuning::few_rows_threads, TM* TN <= 32 ? 2 : 1)
    few_rows_kernel(In in, RowWeights<T> weights, int rows, int cols, int k_warps, Out out) {
  using A = Wide<T>;
  constexpr int width = pack_width<T>, slice = 32 * width, tile = TM * TN;
  constexpr int unroll = TM * TN <= 16 ? 2 : 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32 / k_warps;
  const int first_row = blockIdx.x * TM, block_col = blockIdx.y * n_warps * TN, depth = in.depth;
  const int k_first = warp % k_warps * slice + lane * width, k_step = k_warps * slice;
  const T* w[TN];
#pragma unroll
  for (int n = 0; n < TN; ++n)
    w[n] = weights.data + min(block_col + warp / k_warps * TN + n, cols - 1) * weights.ld;
  start_next();
  await_inputs();

  __shared__ RowStatistics<T> statistics[TM];
  in.template prepare<aligned>(first_row, TM, rows, statistics);
  typename In::Row row[TM];
#pragma unroll
  for (int m = 0; m < TM; ++m) row[m] = in.row(min(first_row + m, rows - 1));
  A sums[tile];
#pragma unroll
  for (int i = 0; i < tile; ++i) sums[i] = 0;
  for (int base = k_first; base - lane * width < depth; base += unroll * k_step) {
    Packed<T> factor[unroll][TN];
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      const int k = base + u * k_step;
      const Index first = weights.at(k);
#pragma unroll
      for (int n = 0; n < TN; ++n) factor[u][n] = weights.template load<aligned>(w[n], k, first, depth);
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
#pragma unroll
      for (int m = 0; m < TM; ++m) {
        A x[width];
        in.template load<aligned>(row[m], statistics[m], base + u * k_step, x);
#pragma unroll
        for (int n = 0; n < TN; ++n) {
#pragma unroll
          for (int j = 0; j < width; ++j)
            sums[m * TN + n] = fma(x[j], wide(factor[u][n].of[j]), sums[m * TN + n]);
        }
      }
    }
  }
  sum_lanes<tile, 16>(sums, lane);
  constexpr int kept = tile < 32 ? 1 : tile / 32, owners = tile < 32 ? 32 / tile : 1;
  __shared__ A parts[tuning::few_rows_threads / 32][tile];
  if (lane % owners == 0) {
#pragma unroll
    for (int i = 0; i < kept; ++i) parts[warp][lane * kept / owners + i] = sums[i];
  }
  __syncthreads();
  const int columns = n_warps * TN;
  for (int i = threadIdx.x; i < TM * columns; i += blockDim.x) {
    const int m = i / columns, c = i % columns, n_warp = c / TN;
    if (first_row + m >= rows || block_col + c >= cols) continue;
    A total = 0;
    for (int part = n_warp * k_warps; part < (n_warp + 1) * k_warps; ++part)
      total += parts[part][m * TN + c % TN];
    out(first_row + m, block_col + c, total);
  }
}

/// in (rows, depth) by weights (cols, depth).
template <class T, class In, class Out>
void few_rows(const Launcher& launch, int processors, const In& in, RowWeights<T> weights, bool aligned,
              Index rows, Index cols, const Out& out) {
  constexpr int warps = tuning::few_rows_threads / 32;
  const Index slices = (in.depth + 32 * pack_width<T> - 1) / (32 * pack_width<T>);
  // By the depth alone, so that no sum changes with the batch.
  const int k_warps = static_cast<int>(std::clamp<Index>(slices, 1, warps));
  const auto start = [&](auto kernel, Index tm, Index tn) {
    const Index tiles = (cols + tn - 1) / tn, row_tiles = (rows + tm - 1) / tm;
    int n_warps = 1;  // more only where there are blocks enough for all processors
    while (2 * n_warps * k_warps <= warps && tiles * row_tiles >= 4 * n_warps * processors) n_warps *= 2;
    launch("a product of few rows", kernel,
           dim3(static_cast<unsigned>(row_tiles), static_cast<unsigned>((tiles + n_warps - 1) / n_warps)),
           static_cast<unsigned>(32 * k_warps * n_warps), 0, in, weights, static_cast<int>(rows),
           static_cast<int>(cols), k_warps, out);
  };
  if (!aligned) {
    start(few_rows_kernel<4, 4, false, T, In, Out>, 4, 4);
  } else if (rows == 1) {
    start(few_rows_kernel<1, 4, true, T, In, Out>, 1, 4);
  } else if (rows == 2) {
    start(few_rows_kernel<2, 4, true, T, In, Out>, 2, 4);
  } else if (rows <= 4) {
    start(few_rows_kernel<4, 4, true, T, In, Out>, 4, 4);
  } else if (cols < 8 || (rows + 7) / 8 * (cols / 8) < processors) {
    start(few_rows_kernel<8, 4, true, T, In, Out>, 8, 4);
  } else {
    start(few_rows_kernel<8, 8, true, T, In, Out>, 8, 8);
  }
}

}  // namespace mttt::detail
