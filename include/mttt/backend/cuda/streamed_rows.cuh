// Products of one to four rows with large weights, whose weights are under way before their rows are known.
//
// One block a multiprocessor takes a range of columns. One of its threads asks for the weights, stage after
// stage of a queue in shared memory, by copies of several KB; the first stages while the kernel before still
// runs, for weights wait for nobody. The other warps hold their part of the rows in registers, so that a weight
// costs its conversion and one multiplication a row. The next kernel is let in as soon as this one's rows are
// there, for to start takes it some microseconds, and fills its own queue.
// Weights in 8 and 4 bits meet whole numbers, which are the rows' but for what is far smaller than the largest.
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

/// How the eight weights of a slice that a lane takes lie in memory, and the numbers that they meet. Of 8 or 4 bits,
/// four at a time are bytes of a word, each too much by `offset`.
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

/// Reads of memory that other multiprocessors write, past this one's cache; reads of shared memory.
struct PastCache {
  template <class V>
  __device__ static V read(const void* from) {
    return __ldcg(static_cast<const V*>(from));
  }
};
struct InShared {
  template <class V>
  __device__ static V read(const void* from) {
    return *static_cast<const V*>(from);
  }
};

struct ContiguousLanes {
  /// Numbers of `slice` that lane `lane` takes.
  template <class Memory>
  __device__ static void load(const bf16* slice, int lane, float (&v)[8]) {
    unpack_bf16(Memory::template read<uint4>(slice + lane * 8), v);
  }
};

template <>
struct WeightFormat<bf16> : ContiguousLanes {
  static constexpr int bits = 16;
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
  __device__ static std::uint32_t four(const Word& word, int i) { return i == 0 ? word.x : word.y; }
};

template <>
struct WeightFormat<Int4> {
  static constexpr int bits = 4, offset = 8;
  static constexpr bool row_scales = false, group_scales = true;
  using Word = std::uint32_t;
  using Scale = bf16;
  /// Four bytes of a group's sixteen: weights i and i + 16.
  template <class Memory>
  __device__ static void load(const bf16* slice, int lane, float (&v)[8]) {
    const bf16* from = slice + lane / 4 * 32 + lane % 4 * 4;
    const uint2 low = Memory::template read<uint2>(from), high = Memory::template read<uint2>(from + 16);
    unpack_bf16({low.x, low.y, high.x, high.y}, v);
  }
  __device__ static std::uint32_t four(const Word& word, int i) { return word >> 4 * i & 0x0f0f0f0fu; }
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

inline constexpr int streamed_slice = 256, streamed_stages = 32;

/// Slices of `depth` that a warp takes, 0 where no kernel takes such a depth.
constexpr int streamed_slices(Index depth) {
  constexpr int most_warps = tuning::streamed_threads / 32 - 1;
  const Index slices = depth / streamed_slice;
  if (depth <= 0 || depth % streamed_slice != 0) return 0;
  for (const int a_warp : {1, 2, 4}) {
    if (slices % a_warp == 0 && slices / a_warp <= most_warps) return a_warp;
  }
  return 0;
}

/// Whether weights begin where copies of whole blocks may.
template <class Weights>
bool streams(const Weights& weights) {
  const auto rows = weight_rows(weights);
  return copies_in_chunks(2, {}, rows.values) &&
         (rows.scale_bytes(streamed_slice) == 0 || copies_in_chunks(2, {}, rows.scales));
}

/// The P slices that lane `lane` takes of a row that begins at `from`.
template <class Memory, class W, int P>
__device__ __forceinline__ void load_slices(const bf16* from, int lane, float (&v)[P * 8]) {
#pragma unroll
  for (int p = 0; p < P; ++p) {
    float values[8];
    WeightFormat<W>::template load<Memory>(from + p * streamed_slice, lane, values);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[p * 8 + j] = values[j];
  }
}

/// A lane's part of M rows: P slices of a warp's.
template <int M, int P, class W>
struct LaneRows {
  using Format = WeightFormat<W>;
  float x[M][P * 8];

  /// Sum over the warp of the squares of its part of row m.
  __device__ float square(int m) const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < P * 8; ++j) sum = fma(x[m][j], x[m][j], sum);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    return sum;
  }
  /// RmsNorm of row m, of whose parts the squares' sums are given.
  __device__ void norm(int m, const float* squares, int stride, int parts, int depth, float eps,
                       const float (&alpha)[P * 8]) {
    float square = 0;
    for (int k = 0; k < parts; ++k) square += squares[k * stride];
    const float scale = 1.0f / std::sqrt(square / static_cast<float>(depth) + eps);
#pragma unroll
    for (int j = 0; j < P * 8; ++j) x[m][j] = wide(static_cast<bf16>(x[m][j] * scale * alpha[j]));
  }
};

/// The words of RW rows of a stage that a lane multiplies.
template <int P, int RW, class W>
struct LaneWords {
  using Format = WeightFormat<W>;
  typename Format::Word of[RW][P];

  __device__ __forceinline__ LaneWords(const unsigned char* stage, const int* rows, int slice, int depth,
                                       int lane) {
    constexpr int slice_bytes = 256 / 8 * Format::bits;
    const int bytes = WeightRows<W>::value_bytes(depth);
#pragma unroll
    for (int r = 0; r < RW; ++r) {
#pragma unroll
      for (int p = 0; p < P; ++p)
        of[r][p] = *reinterpret_cast<const typename Format::Word*>(
            stage + rows[r] * bytes + (slice + p) * slice_bytes + lane * Format::bits);
    }
  }
};

/// A lane's part of weights times its part of M rows, in numbers.
template <int M, int P, class W>
struct LaneSums : LaneRows<M, P, W> {
  using Format = WeightFormat<W>;
  using LaneRows<M, P, W>::x;

  __device__ void prepare() {}
  /// The products with RW rows of a stage, from `slice` on, to sums[RW * M].
  template <int RW>
  __device__ __forceinline__ void add(const unsigned char* stage, int, const int* rows, int slice, int depth,
                                      int lane, float* sums) const {
    const LaneWords<P, RW, W> words(stage, rows, slice, depth, lane);
#pragma unroll
    for (int p = 0; p < P; ++p) {
#pragma unroll
      for (int r = 0; r < RW; ++r) {
        float w[8];
        Format::unpack(words.of[r][p], w);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[r * M + m] = fma(x[m][p * 8 + j], w[j], sums[r * M + m]);
        }
      }
    }
  }
};

/// The same with weights in 8 or 4 bits, in whole numbers: a warp's part of a row in units of 2^-21 of its largest
/// number's power of two, which leaves numbers of bf16 as they are down to 2^-14 of it. Their three bytes meet four
/// weights in one instruction each; the sums are exact.
template <int M, int P, class W>
requires(WeightFormat<W>::bits < 16) struct LaneSums<M, P, W> : LaneRows<M, P, W> {
  using Format = WeightFormat<W>;
  using LaneRows<M, P, W>::x;
  static constexpr int digits = 3;
  int digit[M][digits][2 * P];  // four in a word, the lowest first; the highest has the sign
  int less[M][digits][Format::offset == 0 ? 1 : P];  // what the weights' offset makes, to be taken away
  float unit[M];

  __device__ void prepare() {
#pragma unroll
    for (int m = 0; m < M; ++m) {
      std::uint32_t largest = 0;
#pragma unroll
      for (int j = 0; j < P * 8; ++j) largest = max(largest, __float_as_uint(x[m][j]) & 0x7fffffffu);
      largest = __reduce_max_sync(0xffffffffu, largest);
      const std::uint32_t exponent = max(largest >> 23, 22u);
      const float units = __uint_as_float((275 - exponent) << 23);
      unit[m] = exponent == 255 ? NAN : __uint_as_float((exponent - 21) << 23);
#pragma unroll
      for (int i = 0; i < 2 * P; ++i) {
        std::uint32_t whole[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          whole[j] = __float_as_uint(fma(x[m][4 * i + j], units, 0x1.8p23f)) - 0x4b400000;
        const std::uint32_t first = __byte_perm(whole[0], whole[1], 0x5140),
                            second = __byte_perm(whole[2], whole[3], 0x5140);
        digit[m][0][i] = static_cast<int>(__byte_perm(first, second, 0x5410));
        digit[m][1][i] = static_cast<int>(__byte_perm(first, second, 0x7632));
        digit[m][2][i] = static_cast<int>(__byte_perm(__byte_perm(whole[0], whole[1], 0x0062),
                                                      __byte_perm(whole[2], whole[3], 0x0062), 0x5410));
      }
      if constexpr (Format::offset != 0) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
#pragma unroll
          for (int d = 0; d < digits; ++d) {
            constexpr int offsets = Format::offset * 0x01010101;
            less[m][d][p] =
                -multiply(d, offsets, digit[m][d][2 * p], multiply(d, offsets, digit[m][d][2 * p + 1], 0));
          }
        }
      }
    }
  }
  template <int RW>
  __device__ __forceinline__ void add(const unsigned char* stage, int stage_rows, const int* rows, int slice,
                                      int depth, int lane, float* sums) const {
    const LaneWords<P, RW, W> words(stage, rows, slice, depth, lane);
#pragma unroll
    for (int r = 0; r < RW; ++r) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        int whole[digits] = {};
#pragma unroll
        for (int p = 0; p < P; ++p) {
#pragma unroll
          for (int d = 0; d < digits; ++d) {
            if constexpr (Format::group_scales) whole[d] = less[m][d][p];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int four = static_cast<int>(Format::four(words.of[r][p], i));
              whole[d] = multiply(d, four, digit[m][d][2 * p + i], whole[d]);
            }
          }
          if constexpr (Format::group_scales) {
            const auto* scales =
                reinterpret_cast<const bf16*>(stage + stage_rows * WeightRows<W>::value_bytes(depth));
            const bf16 scale = scales[rows[r] * (depth / 32) + (slice + p) * 8 + lane / 4];
            sums[r * M + m] = fma(number(whole, m), wide(scale), sums[r * M + m]);
          }
        }
        if constexpr (!Format::group_scales) sums[r * M + m] += number(whole, m);
      }
    }
  }

 private:
  /// Four weights by a digit of four numbers.
  __device__ static int multiply(int d, int four, int digit, int sum) {
    if (d == digits - 1) return __dp4a(four, digit, sum);
    asm("dp4a.s32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(four), "r"(digit));
    return sum;
  }
  __device__ float number(const int (&whole)[digits], int m) const {
    return fma(static_cast<float>(whole[2]), unit[m] * 65536,
               static_cast<float>((whole[1] << 8) + whole[0]) * unit[m]);
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
    load_slices<PastCache, W, P>(row + slice * streamed_slice, lane, lanes.x[m]);
  }
  const float own_given = owns ? out.given(task.first_row + own_m, first + own_n) : 0.0f;
  float own_scale[halves];
#pragma unroll
  for (int h = 0; h < halves; ++h)
    own_scale[h] = owns ? task.weights.row_scale(h * task.cols + first + own_n) : 0.0f;
  if (task.norm != nullptr) {
    float alpha[P * 8];
    load_slices<PastCache, W, P>(task.norm + slice * streamed_slice, lane, alpha);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float square = lanes.square(m);
      if (lane == 0) squares[warp][m] = square;
    }
    sync_consumers(consumers);
#pragma unroll
    for (int m = 0; m < M; ++m)
      lanes.norm(m, &squares[group * task.k_warps][m], M, task.k_warps, task.depth, task.eps, alpha);
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
