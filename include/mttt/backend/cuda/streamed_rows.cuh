// Products of one to four rows with large weights, whose weights are under way before their rows are known.
//
// One block a multiprocessor takes a range of columns. One of its threads asks for the weights, stage after
// stage of a queue in shared memory, by copies of several KB; the first stages while the kernel before still
// runs, for weights wait for nobody. The other warps hold their part of the rows in registers, so that a weight
// costs its conversion and one multiplication a row. The next kernel is let in as soon as this one's rows are
// there, for to start takes it some microseconds, and fills its own queue.
//
// Formula: y[m, n] = finish(sum over k of norm(x)(m, k) * w(n, k)), and for pairs of columns
//          y[m, n] = F(sum over k of norm(x)(m, k) * w(n, k)) * (sum over k of norm(x)(m, k) * w(cols + n, k)).
//          norm is RmsNorm, rounded to T. A warp takes P of the slices of 256 of the depth; lanes, then warps,
//          meet in a fixed order, set by the depth alone: a row has the same bits among up to four.
// Shapes:  x (rows, depth), w (cols, depth) or (2 cols, depth), y (rows, cols).
// Units:   elements; stages in bytes.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Not supported: compute capability below 9.0; other rows than of bf16; other weights than of bf16, Int8 and
//          Int4; depths that are no multiple of 256, or larger than 12288; weights that a kernel just before
//          this one still writes, if they are not to be waited for.
// Source:  PTX ISA: griddepcontrol, mbarrier, cp.async.bulk.
#pragma once

#include <algorithm>

#include "mttt/backend/cuda/barrier.cuh"
#include "mttt/backend/cuda/few_rows.cuh"
#include "mttt/backend/cuda/mma.cuh"
#include "mttt/core/quantised.hpp"

namespace mttt::detail {

/// How the eight weights of a slice that a lane takes lie in memory, and the numbers that they meet. Unpacked,
/// each is too much by `offset`.
template <class W>
struct WeightFormat;

__device__ inline void unpack_bf16(const uint4& word, float (&w)[8]) {
  const std::uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[2 * i] = __uint_as_float(words[i] << 16);
    w[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

struct ContiguousLanes {
  /// Numbers of `slice` that lane `lane` takes, past the cache of the multiprocessor.
  __device__ static void load(const bf16* slice, int lane, float (&v)[8]) {
    unpack_bf16(__ldcg(reinterpret_cast<const uint4*>(slice + lane * 8)), v);
  }
};

template <>
struct WeightFormat<bf16> : ContiguousLanes {
  static constexpr int bits = 16, offset = 0;
  static constexpr bool row_scales = false, group_scales = false;
  using Word = uint4;
  using Scale = bf16;
  __device__ static void unpack(const Word& word, float (&w)[8]) { unpack_bf16(word, w); }
};

template <>
struct WeightFormat<Int8> : ContiguousLanes {
  static constexpr int bits = 8, offset = 0;
  static constexpr bool row_scales = true, group_scales = false;
  using Word = uint2;
  using Scale = float;
  /// A byte u under the exponent of 2^23 is 2^23 + u.
  __device__ static void unpack(const Word& word, float (&w)[8]) {
    const std::uint32_t words[2] = {word.x ^ 0x80808080u, word.y ^ 0x80808080u};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      w[i] = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7440 + i % 4)) - 8388736.0f;
  }
};

template <>
struct WeightFormat<Int4> {
  static constexpr int bits = 4, offset = 136;
  static constexpr bool row_scales = false, group_scales = true;
  using Word = std::uint32_t;
  using Scale = bf16;
  /// Four bytes of a group's sixteen: weights i and i + 16.
  __device__ static void load(const bf16* slice, int lane, float (&v)[8]) {
    const bf16* from = slice + lane / 4 * 32 + lane % 4 * 4;
    const uint2 low = __ldcg(reinterpret_cast<const uint2*>(from)),
                high = __ldcg(reinterpret_cast<const uint2*>(from + 16));
    unpack_bf16({low.x, low.y, high.x, high.y}, v);
  }
  /// A nibble n under the exponent of 128 is 128 + n, the weight n - 8.
  __device__ static void unpack(const Word& word, float (&w)[8]) {
    const std::uint32_t halves[2] = {word & 0x0f0f0f0fu, word >> 4 & 0x0f0f0f0fu};
#pragma unroll
    for (int i = 0; i < 8; ++i)
      w[i] = __uint_as_float(__byte_perm(halves[i / 4], 0x43000000u, 0x7044 + (i % 4 << 8)));
  }
};

/// Weights (cols, depth) in memory.
template <class W>
struct WeightRows {
  const std::byte* values;
  const typename WeightFormat<W>::Scale* scales;

  MTTT_HD static constexpr int value_bytes(int depth) { return depth / 8 * WeightFormat<W>::bits; }
  MTTT_HD static constexpr int scale_bytes(int depth) {
    return WeightFormat<W>::group_scales ? depth / 16 : 0;
  }
  MTTT_HD static constexpr int row_bytes(int depth) { return value_bytes(depth) + scale_bytes(depth); }
  __device__ float row_scale(int row) const {
    if constexpr (WeightFormat<W>::row_scales) return scales[row];
    return 1;
  }
  /// Asks for `n` rows from `row` on, to be rows `to_row` and on of a stage of `stage_rows`.
  __device__ void ask(std::uint32_t stage, int stage_rows, int to_row, int row, int n, int depth,
                      std::uint32_t barrier) const {
    const int bytes = value_bytes(depth);
    copy_bulk(stage + to_row * bytes, values + static_cast<Index>(row) * bytes, n * bytes, barrier);
    if constexpr (WeightFormat<W>::group_scales) {
      const int few = scale_bytes(depth);
      copy_bulk(stage + stage_rows * bytes + to_row * few,
                reinterpret_cast<const std::byte*>(scales) + static_cast<Index>(row) * few, n * few, barrier);
    }
  }
};

template <class Matrix>
struct FormatOfMatrix {
  using type = bf16;
};
template <class Format>
struct FormatOfMatrix<QuantisedMatrix<Format>> {
  using type = Format;
};
/// The format of what matrix() of a weight gives.
template <class Matrix>
using FormatOf = typename FormatOfMatrix<Matrix>::type;

inline WeightRows<bf16> weight_rows(const Matrix<const bf16>& w) {
  return {reinterpret_cast<const std::byte*>(w.data), nullptr};
}
template <class Format>
WeightRows<Format> weight_rows(const QuantisedMatrix<Format>& w) {
  return {reinterpret_cast<const std::byte*>(w.values), w.scales};
}

/// A lane's part of one row times its part of M rows x, added to sums[0 .. M): P slices from `slice` on of
/// row `row` of a stage.
template <int M, int P, class W>
struct LaneSums {
  using Format = WeightFormat<W>;
  float x[M][P * 8];
  float totals[Format::offset == 0 ? 1 : M][P];  // of x, times offset

  __device__ void prepare() {
    if constexpr (Format::offset != 0) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
          float total = 0;
#pragma unroll
          for (int j = 0; j < 8; ++j) total += x[m][p * 8 + j];
          totals[m][p] = total * Format::offset;
        }
      }
    }
  }
  template <int RW>
  __device__ __forceinline__ void add(const unsigned char* stage, int stage_rows, const int* rows, int slice,
                                      int depth, int lane, float* sums) const {
    constexpr int slice_bytes = 256 / 8 * Format::bits;
    const int bytes = WeightRows<W>::value_bytes(depth);
    typename Format::Word words[RW][P];
    float scales[RW][P];
#pragma unroll
    for (int r = 0; r < RW; ++r) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        words[r][p] = *reinterpret_cast<const typename Format::Word*>(
            stage + rows[r] * bytes + (slice + p) * slice_bytes + lane * Format::bits);
        if constexpr (Format::group_scales) {
          const auto* of_row =
              reinterpret_cast<const bf16*>(stage + stage_rows * bytes) + rows[r] * (depth / 32);
          scales[r][p] = wide(of_row[(slice + p) * 8 + lane / 4]);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < P; ++p) {
#pragma unroll
      for (int r = 0; r < RW; ++r) {
        float w[8];
        Format::unpack(words[r][p], w);
#pragma unroll
        for (int m = 0; m < M; ++m) {
          float& sum = sums[r * M + m];
          if constexpr (Format::group_scales) {
            float part = -totals[m][p];
#pragma unroll
            for (int j = 0; j < 8; ++j) part = fma(x[m][p * 8 + j], w[j], part);
            sum = fma(part, scales[r][p], sum);
          } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) sum = fma(x[m][p * 8 + j], w[j], sum);
          }
        }
      }
    }
  }
};

template <class W>
struct StreamedTask {
  const bf16* x;
  Index x_ld;
  const bf16* norm;  // null: none
  float eps;
  WeightRows<W> weights;
  int first_row, rows, depth, cols;
  int k_warps, groups, stages, stage_bytes;
  bool early;  // weights may be read before the kernel before has ended
};

inline constexpr int streamed_slice = 256, streamed_stages = 32;

/// y = F(a) * b
template <class F>
struct WriteGated {
  bf16* y;
  Index ld;
  __device__ float given(int, int) const { return 0; }
  __device__ void operator()(int m, int n, float a, float b, float) const {
    y[m * ld + n] = static_cast<bf16>(F::f(a) * b);
  }
};
/// WriteRows of which the addend is known before.
template <class F, class V>
struct WriteStreamed {
  V* y;
  Index ld, addend_ld;
  Finish<V> finish;
  float alpha;
  __device__ float given(int m, int n) const {
    return finish.addend == nullptr ? 0 : wide(finish.addend[m * addend_ld + n]);
  }
  __device__ void operator()(int m, int n, float product, float given) const {
    float value = alpha * product;
    if (finish.bias != nullptr) value += wide(finish.bias[n]);
    value = F::f(value);
    if (finish.scale != nullptr) value *= wide(finish.scale[n]);
    y[m * ld + n] = static_cast<V>(value + given);
  }
};

extern __shared__ __align__(128) unsigned char streamed_memory[];

/// M rows, P slices a warp, RW columns of a stage a warp.
template <int M, int P, int RW, bool gated, class W, class Out>
__global__ void __launch_bounds__(tuning::streamed_threads, M* P <= 4 ? 2 : 1)
    streamed_kernel(StreamedTask<W> task, Out out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Format = WeightFormat<W>;
  constexpr int halves = gated ? 2 : 1, RH = RW / halves, tile = RW * M;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int consumers = static_cast<int>(blockDim.x) - 32;
  // A stage holds `pairs` columns, or as many pairs of columns.
  const int pairs = RH * task.groups;
  const int first = static_cast<int>(static_cast<Index>(task.cols) * blockIdx.x / gridDim.x);
  const int count = static_cast<int>(static_cast<Index>(task.cols) * (blockIdx.x + 1) / gridDim.x) - first;
  const int steps = (count + pairs - 1) / pairs;

  __shared__ std::uint64_t full[streamed_stages], empty[streamed_stages];
  __shared__ float squares[tuning::streamed_threads / 32][M];
  if (threadIdx.x == 0) {
    for (int s = 0; s < task.stages; ++s) {
      barrier_init(shared_address(full + s), 1);
      barrier_init(shared_address(empty + s), consumers / 32);
    }
    barrier_publish();
  }
  __syncthreads();

  if (warp == consumers / 32) {  // the one that asks for the weights
    if (lane != 0) return;
    if (!task.early) await_inputs();
    for (int i = 0; i < steps; ++i) {
      const int s = i % task.stages;
      if (i == task.stages) {
        if (task.early) await_inputs();
        start_next();
      }
      if (i >= task.stages) barrier_wait(shared_address(empty + s), (i / task.stages + 1) & 1);
      const int n = min(pairs, count - i * pairs);
      const std::uint32_t barrier = shared_address(full + s),
                          to = shared_address(streamed_memory) + s * task.stage_bytes;
      barrier_expect(barrier, halves * n * WeightRows<W>::row_bytes(task.depth));
#pragma unroll
      for (int h = 0; h < halves; ++h) {
        task.weights.ask(to, halves * pairs, h * pairs, h * task.cols + first + i * pairs, n, task.depth,
                         barrier);
      }
    }
    if (steps <= task.stages) {
      if (task.early) await_inputs();
      start_next();
    }
    return;
  }

  const int k_warp = warp % task.k_warps, group = warp / task.k_warps, slice = k_warp * P;
  const int own_m = static_cast<int>(threadIdx.x) % M, own_n = static_cast<int>(threadIdx.x) / M;
  const bool owns = own_m < task.rows && own_n < count;
  await_inputs();
  LaneSums<M, P, W> lanes;
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const bf16* row = task.x + min(m, task.rows - 1) * task.x_ld;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      float values[8];
      Format::load(row + (slice + p) * streamed_slice, lane, values);
#pragma unroll
      for (int j = 0; j < 8; ++j) lanes.x[m][p * 8 + j] = values[j];
    }
  }
  const float own_given = owns ? out.given(task.first_row + own_m, first + own_n) : 0.0f;
  float own_scale[halves];
#pragma unroll
  for (int h = 0; h < halves; ++h)
    own_scale[h] = owns ? task.weights.row_scale(h * task.cols + first + own_n) : 0.0f;
  if (task.norm != nullptr) {
    float alpha[P * 8];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      float values[8];
      Format::load(task.norm + (slice + p) * streamed_slice, lane, values);
#pragma unroll
      for (int j = 0; j < 8; ++j) alpha[p * 8 + j] = values[j];
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float square = 0;
#pragma unroll
      for (int j = 0; j < P * 8; ++j) square = fma(lanes.x[m][j], lanes.x[m][j], square);
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2)
        square += __shfl_xor_sync(0xffffffffu, square, distance);
      if (lane == 0) squares[warp][m] = square;
    }
    sync_consumers(consumers);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float square = 0;
      for (int k = 0; k < task.k_warps; ++k) square += squares[group * task.k_warps + k][m];
      const float scale = 1.0f / std::sqrt(square / static_cast<float>(task.depth) + task.eps);
#pragma unroll
      for (int j = 0; j < P * 8; ++j)
        lanes.x[m][j] = wide(static_cast<bf16>(lanes.x[m][j] * scale * alpha[j]));
    }
  }
  lanes.prepare();

  float* parts = reinterpret_cast<float*>(streamed_memory + task.stages * task.stage_bytes);
  const int parts_ld = count * halves * M;
  for (int i = 0, s = 0, parity = 0; i < steps; ++i) {
    barrier_wait(shared_address(full + s), parity);
    int stage_row[RW];
#pragma unroll
    for (int r = 0; r < RW; ++r) stage_row[r] = r / RH * pairs + group * RH + r % RH;
    float sums[tile] = {};
    lanes.template add<RW>(streamed_memory + s * task.stage_bytes, halves * pairs, stage_row, slice,
                           task.depth, lane, sums);
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(empty + s));
    if (++s == task.stages) s = 0, parity ^= 1;
    sum_lanes<tile, 16>(sums, lane);
    constexpr int owners = 32 / tile;
    const int number = lane / owners, r = number / M, m = number % M;
    const int pair = i * pairs + group * RH + r % RH;
    if (lane % owners == 0 && pair < count)
      parts[k_warp * parts_ld + (pair * halves + r / RH) * M + m] = sums[0];
  }
  sync_consumers(consumers);
  for (int i = threadIdx.x; i < count * M; i += consumers) {
    const int n = i / M, m = i % M;
    if (m >= task.rows) continue;
    const bool own = i == static_cast<int>(threadIdx.x);
    const float given = own ? own_given : out.given(task.first_row + m, first + n);
    float total[halves] = {};
    for (int k = 0; k < task.k_warps; ++k) {
#pragma unroll
      for (int h = 0; h < halves; ++h) total[h] += parts[k * parts_ld + (n * halves + h) * M + m];
    }
    if constexpr (Format::row_scales) {
#pragma unroll
      for (int h = 0; h < halves; ++h)
        total[h] *= own ? own_scale[h] : task.weights.row_scale(h * task.cols + first + n);
    }
    if constexpr (gated) {
      out(task.first_row + m, first + n, total[0], total[1], given);
    } else {
      out(task.first_row + m, first + n, total[0], given);
    }
  }
#endif
}

/// Slices of `depth` that a warp takes, 0 where the kernel does not take such a depth.
inline int streamed_slices(Index depth) {
  constexpr int most_warps = tuning::streamed_threads / 32 - 1;
  const Index slices = depth / streamed_slice;
  if (depth == 0 || depth % streamed_slice != 0) return 0;
  for (const int a_warp : {1, 2, 4}) {
    if (slices % a_warp == 0 && slices / a_warp <= most_warps) return a_warp;
  }
  return 0;
}

/// False, and nothing done, for shapes that the kernel does not take. `known` weights were complete before the
/// kernel that was started last began.
template <bool gated, class W, class Out>
bool streamed_rows(const Launcher& launch, int capability, int processors, Matrix<const bf16> x,
                   const bf16* norm, double eps, WeightRows<W> weights, Index cols, bool known,
                   const Out& out) {
  const Index depth = x.cols, slices = depth / streamed_slice;
  if (capability < 90 || x.rows < 1 || x.rows > 4 || cols > Index{1} << 24 ||
      !copies_in_chunks(2, {x.ld}, x.data, weights.values, norm) ||
      (WeightFormat<W>::group_scales && !copies_in_chunks(2, {}, weights.scales)))
    return false;
  const int slices_a_warp = streamed_slices(depth);
  if (slices_a_warp == 0) return false;
  const auto start = [&]<int M, int P>(std::integral_constant<int, M>, std::integral_constant<int, P>,
                                       Index first_row, Index rows) {
    // Of about 16 KB a stage in 16 bits.
    constexpr int wide_columns = P == 1 ? 4 : P == 2 || gated ? 2 : 1;
    constexpr int RW = WeightFormat<W>::bits == 16 ? wide_columns : std::min(4, 2 * wide_columns),
                  halves = gated ? 2 : 1;
    StreamedTask<W> task{x.data + first_row * x.ld, x.ld, norm, static_cast<float>(eps), weights};
    task.first_row = static_cast<int>(first_row);
    task.rows = static_cast<int>(rows);
    task.depth = static_cast<int>(depth);
    task.cols = static_cast<int>(cols);
    task.k_warps = static_cast<int>(slices / P);
    task.groups = std::max(1, 8 / task.k_warps);
    task.stage_bytes = static_cast<int>(RW * task.groups * WeightRows<W>::row_bytes(task.depth));
    task.stages = std::clamp(tuning::streamed_queue / task.stage_bytes, 2, streamed_stages);
    task.early = known && launch.previous_waits();
    const Index blocks = std::min<Index>(processors, cols);
    const Index parts = task.k_warps * ((cols + blocks - 1) / blocks) * halves * M * Index{sizeof(float)};
    const Index shared = task.stages * task.stage_bytes + parts;
    const auto kernel = streamed_kernel<M, P, RW, gated, W, Out>;
    if (shared > 220 << 10) return false;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "asking for shared memory");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          "asking for shared memory");
    launch.waiting("a product of few rows", kernel, static_cast<unsigned>(blocks),
                   static_cast<unsigned>(32 * (task.k_warps * task.groups + 1)), shared, task, out);
    return true;
  };
  using std::integral_constant;
  const auto with_rows = [&](auto p) {
    return x.rows == 1   ? start(integral_constant<int, 1>{}, p, 0, 1)
           : x.rows == 2 ? start(integral_constant<int, 2>{}, p, 0, 2)
                         : start(integral_constant<int, 4>{}, p, 0, x.rows);
  };
  if (slices_a_warp == 1) return with_rows(integral_constant<int, 1>{});
  if (slices_a_warp == 2) return with_rows(integral_constant<int, 2>{});
  // Four rows of such a depth do not fit a thread's registers: twice two took 46 us on an H200, four 74.
  const auto two = [&](Index first) {
    const Index rows = std::min<Index>(2, x.rows - first);
    return rows == 1 ? start(integral_constant<int, 1>{}, integral_constant<int, 4>{}, first, 1)
                     : start(integral_constant<int, 2>{}, integral_constant<int, 4>{}, first, 2);
  };
  return two(0) && (x.rows <= 2 || two(2));
}

}  // namespace mttt::detail
