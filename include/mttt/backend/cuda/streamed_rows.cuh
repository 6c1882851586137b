// Products of one to four rows with large weights, whose weights are under way before their rows are known.
//
// One block a multiprocessor takes a range of columns. One of its threads asks for the weights, stage after
// stage of a queue in shared memory, by copies of several KB; the first stages while the kernel before still
// runs, for weights wait for nobody. The other warps hold their part of the rows in registers, so that a weight
// costs its conversion and one multiplication a row. The next kernel is let in when the last stage has been
// asked for: it fills its own queue while this one empties, and the memory does not rest in between.
//
// Formula: y[m, n] = finish(sum over k of norm(x)(m, k) * w(n, k)), and for pairs of columns
//          y[m, n] = F(sum over k of norm(x)(m, k) * w(n, k)) * (sum over k of norm(x)(m, k) * w(cols + n, k)).
//          norm is RmsNorm, rounded to T. A warp takes P of the slices of 256 of the depth; lanes, then warps,
//          meet in a fixed order, set by the depth alone: a row has the same bits among any others.
// Shapes:  x (rows, depth), w (cols, depth) or (2 cols, depth), y (rows, cols).
// Units:   elements; stages in bytes.
// Errors:  those of check.cuh. What it does not take it declines by returning false.
// Not supported: compute capability below 9.0; other rows than of bf16; depths that are no multiple of 256;
//          weights that a kernel just before this one still writes, if they are not to be waited for.
// Source:  PTX ISA: griddepcontrol, mbarrier, cp.async.bulk.
#pragma once

#include <algorithm>

#include "mttt/backend/cuda/barrier.cuh"
#include "mttt/backend/cuda/few_rows.cuh"
#include "mttt/backend/cuda/mma.cuh"

namespace mttt::detail {

/// Eight weights of a lane, as they lie in memory.
template <class W>
struct WeightFormat;

template <>
struct WeightFormat<bf16> {
  static constexpr int bits = 16;
  using Word = uint4;
  __device__ static void unpack(const Word& word, float (&w)[8]) {
    const std::uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = __uint_as_float(words[i] << 16);
      w[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

template <class W>
struct StreamedTask {
  const bf16* x;
  Index x_ld;
  const bf16* norm;  // null: none
  float eps;
  const std::byte* weights;
  int rows, depth, cols;
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

template <int = 0>
__device__ void sync_consumers(int threads) {
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
}

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
  const int pairs = RH * task.groups, row_bytes = task.depth / 8 * Format::bits;
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
      if (i == task.stages && task.early) await_inputs();
      if (i >= task.stages) barrier_wait(shared_address(empty + s), (i / task.stages + 1) & 1);
      const int n = min(pairs, count - i * pairs);
      const std::uint32_t bytes = n * row_bytes, barrier = shared_address(full + s),
                          to = shared_address(streamed_memory) + s * task.stage_bytes;
      const std::byte* from = task.weights + static_cast<Index>(first + i * pairs) * row_bytes;
      barrier_expect(barrier, halves * bytes);
      copy_bulk(to, from, bytes, barrier);
      if constexpr (gated)
        copy_bulk(to + pairs * row_bytes, from + static_cast<Index>(task.cols) * row_bytes, bytes, barrier);
    }
    // The next kernel comes in once the kernel before has ended: what it reads early is then complete.
    if (task.early && steps <= task.stages) await_inputs();
    start_next();
    return;
  }

  const int k_warp = warp % task.k_warps, group = warp / task.k_warps;
  const int k_first = k_warp * P * streamed_slice + lane * 8;
  await_inputs();
  float x[M][P * 8];
#pragma unroll
  for (int m = 0; m < M; ++m) {
    const bf16* row = task.x + min(m, task.rows - 1) * task.x_ld + k_first;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const uint4 raw = *reinterpret_cast<const uint4*>(row + p * streamed_slice);
      float values[8];
      WeightFormat<bf16>::unpack(raw, values);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[m][p * 8 + j] = values[j];
    }
  }
  const int own_m = static_cast<int>(threadIdx.x) % M, own_n = static_cast<int>(threadIdx.x) / M;
  const float own_given = own_m < task.rows && own_n < count ? out.given(own_m, first + own_n) : 0.0f;
  if (task.norm != nullptr) {
    float alpha[P * 8];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      float values[8];
      WeightFormat<bf16>::unpack(*reinterpret_cast<const uint4*>(task.norm + k_first + p * streamed_slice),
                                 values);
#pragma unroll
      for (int j = 0; j < 8; ++j) alpha[p * 8 + j] = values[j];
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      float square = 0;
#pragma unroll
      for (int j = 0; j < P * 8; ++j) square = fma(x[m][j], x[m][j], square);
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
      for (int j = 0; j < P * 8; ++j) x[m][j] = wide(static_cast<bf16>(x[m][j] * scale * alpha[j]));
    }
  }

  float* parts = reinterpret_cast<float*>(streamed_memory + task.stages * task.stage_bytes);
  const int parts_ld = count * halves * M;
  for (int i = 0, s = 0, parity = 0; i < steps; ++i) {
    barrier_wait(shared_address(full + s), parity);
    const unsigned char* stage = streamed_memory + s * task.stage_bytes + k_first / 8 * Format::bits;
    typename Format::Word words[RW][P];
#pragma unroll
    for (int r = 0; r < RW; ++r) {
      const int row = r / RH * pairs + group * RH + r % RH;
#pragma unroll
      for (int p = 0; p < P; ++p) {
        words[r][p] = *reinterpret_cast<const typename Format::Word*>(
            stage + row * row_bytes + p * (streamed_slice / 8 * Format::bits));
      }
    }
    float sums[tile] = {};
#pragma unroll
    for (int p = 0; p < P; ++p) {
#pragma unroll
      for (int r = 0; r < RW; ++r) {
        float w[8];
        Format::unpack(words[r][p], w);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[r * M + m] = fma(x[m][p * 8 + j], w[j], sums[r * M + m]);
        }
      }
    }
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
    const float given = i == static_cast<int>(threadIdx.x) ? own_given : out.given(m, first + n);
    float total[halves] = {};
    for (int k = 0; k < task.k_warps; ++k) {
#pragma unroll
      for (int h = 0; h < halves; ++h) total[h] += parts[k * parts_ld + (n * halves + h) * M + m];
    }
    if constexpr (gated) {
      out(m, first + n, total[0], total[1], given);
    } else {
      out(m, first + n, total[0], given);
    }
  }
#endif
}

/// False, and nothing done, for shapes that the kernel does not take. `known` weights were complete before the
/// kernel that was started last began.
template <bool gated, class W, class Out>
bool streamed_rows(const Launcher& launch, int capability, int processors, Matrix<const bf16> x,
                   const bf16* norm, double eps, const W* weights, Index cols, bool known, const Out& out) {
  const Index depth = x.cols, slices = depth / streamed_slice;
  if (capability < 90 || x.rows < 1 || x.rows > 4 || depth % streamed_slice != 0 || depth == 0 ||
      cols > Index{1} << 24 || !copies_in_chunks(2, {x.rows == 1 ? 0 : x.ld}, x.data, weights, norm))
    return false;
  constexpr int most_warps = tuning::streamed_threads / 32 - 1;
  Index slices_a_warp = 1;
  while (slices_a_warp < 4 && (slices % slices_a_warp != 0 || slices / slices_a_warp > most_warps))
    slices_a_warp *= 2;
  if (slices % slices_a_warp != 0 || slices / slices_a_warp > most_warps) return false;
  const auto start = [&]<int M, int P>(std::integral_constant<int, M>, std::integral_constant<int, P>) {
    constexpr int RW = P == 1 ? 4 : P == 2 || gated ? 2 : 1, halves = gated ? 2 : 1;
    StreamedTask<W> task{x.data, x.ld, norm, static_cast<float>(eps),
                         reinterpret_cast<const std::byte*>(weights)};
    task.rows = static_cast<int>(x.rows);
    task.depth = static_cast<int>(depth);
    task.cols = static_cast<int>(cols);
    task.k_warps = static_cast<int>(slices / P);
    task.groups = std::max(1, 8 / task.k_warps);
    task.stage_bytes = static_cast<int>(RW * task.groups * depth / 8 * WeightFormat<W>::bits);
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
  const auto with_rows = [&](auto p) {
    using std::integral_constant;
    return x.rows == 1   ? start(integral_constant<int, 1>{}, p)
           : x.rows == 2 ? start(integral_constant<int, 2>{}, p)
                         : start(integral_constant<int, 4>{}, p);
  };
  return slices_a_warp == 1   ? with_rows(std::integral_constant<int, 1>{})
         : slices_a_warp == 2 ? with_rows(std::integral_constant<int, 2>{})
                              : with_rows(std::integral_constant<int, 4>{});
}

}  // namespace mttt::detail
