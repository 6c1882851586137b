// Products of many rows in float32 that are made as they are read: windows of samples, norms, activations.
// Streaming steps of many sessions make them; few_rows.cuh would read the weights again for every 8 rows.
//
// Formula: y[m, n] = finish(sum over k of in(m, k) * w(n, k)). A block takes BM rows by BN columns, a thread
//          MR by NR of them. A slice of 16 of the depth is read into registers while the one before is
//          multiplied out of shared memory. Where tiles are few, KS groups of threads share the depth and
//          meet in order. The order of a sum is set by the shape of the product.
// Shapes:  in (rows, depth), w (cols, depth), y (rows, cols), as in few_rows.cuh.
// Units:   elements.
// Errors:  none.
// Not supported: other types than float, whose products of many rows are cuBLAS's.
// Source:  the register tiles of CUTLASS (SIMT SGEMM).
#pragma once

#include "mttt/backend/cuda/few_rows.cuh"

namespace mttt::detail {

template <int BM, int BN, int MR, int NR, int KS>
struct ManyRowsTile {
  static constexpr int slice = 16, packs = slice / 4;  // of the depth: numbers, reads of 16 bytes
  static constexpr int across = BN / NR, group = BM / MR * across;  // threads
  static constexpr int threads = group * KS;
  static constexpr int ld_a = BM + 4, ld_b = BN + 4,
                       stage = slice * (ld_a + ld_b);  // numbers in shared memory
  static constexpr int reads_a = BM * packs / group, reads_b = BN * packs / group;  // of a thread and slice
  static constexpr int shared = 2 * KS * stage > (KS - 1) * MR* NR* group ? 2 * KS* stage
                                                                          : (KS - 1) * MR* NR* group;
  static_assert(group % packs == 0 && reads_a * group == BM * packs && reads_b * group == BN * packs);
};

template <int BM, int BN, int MR, int NR, int KS, bool aligned, class In, class Out>
__global__ void __launch_bounds__(ManyRowsTile<BM, BN, MR, NR, KS>::threads)
    many_rows_kernel(In in, RowWeights<float> weights, int rows, int cols, Out out) {
  using Tile = ManyRowsTile<BM, BN, MR, NR, KS>;
  constexpr int packs = Tile::packs, group = Tile::group, ld_a = Tile::ld_a, ld_b = Tile::ld_b;
  constexpr int fours_m = MR / 4, fours_n = NR / 4;
  __shared__ __align__(16) float shared[Tile::shared];
  __shared__ RowStatistics<float> statistics[BM];
  const int thread = threadIdx.x % group, part = threadIdx.x / group;
  const int first_row = blockIdx.x * BM, first_col = blockIdx.y * BN, depth = in.depth;
  const int pack = thread % packs, line = thread / packs;
  start_next();
  await_inputs();
  in.template prepare<aligned>(first_row, BM, rows, statistics);

  typename In::Row row[Tile::reads_a];
  RowStatistics<float> of_row[Tile::reads_a];
#pragma unroll
  for (int j = 0; j < Tile::reads_a; ++j) {
    const int m = line + j * (group / packs);
    row[j] = in.row(min(first_row + m, rows - 1));
    of_row[j] = statistics[m];
  }
  const float* w[Tile::reads_b];
#pragma unroll
  for (int j = 0; j < Tile::reads_b; ++j)
    w[j] = weights.data + min(first_col + line + j * (group / packs), cols - 1) * weights.ld;

  float read_a[Tile::reads_a][4];
  Packed<float> read_b[Tile::reads_b];
  const auto read = [&](int slice) {
    const int k = (slice * KS + part) * Tile::slice + pack * 4;
    const Index at = weights.at(k);
#pragma unroll
    for (int j = 0; j < Tile::reads_b; ++j) read_b[j] = weights.template load<aligned>(w[j], k, at, depth);
#pragma unroll
    for (int j = 0; j < Tile::reads_a; ++j) in.template load<aligned>(row[j], of_row[j], k, read_a[j]);
  };
  const auto keep = [&](int slice) {
    float* a = shared + (slice % 2 * KS + part) * Tile::stage;
    float* b = a + Tile::slice * ld_a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::reads_a; ++j)
        a[(pack * 4 + i) * ld_a + line + j * (group / packs)] = read_a[j][i];
#pragma unroll
      for (int j = 0; j < Tile::reads_b; ++j)
        b[(pack * 4 + i) * ld_b + line + j * (group / packs)] = read_b[j].of[i];
    }
  };

  float sum[MR][NR] = {};
  const int tm = thread / Tile::across * 4, tn = thread % Tile::across * 4;
  const int slices = (depth + KS * Tile::slice - 1) / (KS * Tile::slice);
  read(0);
  keep(0);
  __syncthreads();
  for (int slice = 0; slice < slices; ++slice) {
    if (slice + 1 < slices) read(slice + 1);
    const float* a = shared + (slice % 2 * KS + part) * Tile::stage + tm;
    const float* b = shared + (slice % 2 * KS + part) * Tile::stage + Tile::slice * ld_a + tn;
#pragma unroll
    for (int k = 0; k < Tile::slice; ++k) {
      float x[MR], y[NR];
#pragma unroll
      for (int h = 0; h < fours_m; ++h)
        *reinterpret_cast<float4*>(x + 4 * h) =
            *reinterpret_cast<const float4*>(a + k * ld_a + h * (BM / fours_m));
#pragma unroll
      for (int h = 0; h < fours_n; ++h)
        *reinterpret_cast<float4*>(y + 4 * h) =
            *reinterpret_cast<const float4*>(b + k * ld_b + h * (BN / fours_n));
#pragma unroll
      for (int m = 0; m < MR; ++m) {
#pragma unroll
        for (int n = 0; n < NR; ++n) sum[m][n] = fma(x[m], y[n], sum[m][n]);
      }
    }
    if (slice + 1 < slices) keep(slice + 1);
    __syncthreads();
  }
  if constexpr (KS > 1) {
    if (part > 0) {
#pragma unroll
      for (int i = 0; i < MR * NR; ++i)
        shared[((part - 1) * MR * NR + i) * group + thread] = sum[i / NR][i % NR];
    }
    __syncthreads();
    if (part > 0) return;
    for (int other = 0; other < KS - 1; ++other) {
#pragma unroll
      for (int i = 0; i < MR * NR; ++i) sum[i / NR][i % NR] += shared[(other * MR * NR + i) * group + thread];
    }
  }
#pragma unroll
  for (int m = 0; m < MR; ++m) {
    const int at_row = first_row + tm + m / 4 * (BM / fours_m) + m % 4;
    if (at_row >= rows) continue;
#pragma unroll
    for (int n = 0; n < NR; ++n) {
      const int at_col = first_col + tn + n / 4 * (BN / fours_n) + n % 4;
      if (at_col < cols) out(at_row, at_col, sum[m][n]);
    }
  }
}

template <int BM, int BN, int MR, int NR, int KS, bool aligned, class In, class Out>
void many_rows(const Launcher& launch, const In& in, RowWeights<float> weights, Index rows, Index cols,
               const Out& out) {
  launch("a product of many rows", many_rows_kernel<BM, BN, MR, NR, KS, aligned, In, Out>,
         dim3(static_cast<unsigned>((rows + BM - 1) / BM), static_cast<unsigned>((cols + BN - 1) / BN)),
         static_cast<unsigned>(ManyRowsTile<BM, BN, MR, NR, KS>::threads), 0, in, weights,
         static_cast<int>(rows), static_cast<int>(cols), out);
}

/// in (rows, depth) by weights (cols, depth), by the kernel that suits the shape.
template <class T, class In, class Out>
void product_of_rows(const Launcher& launch, int processors, const In& in, RowWeights<T> weights,
                     bool aligned, Index rows, Index cols, const Out& out) {
  if constexpr (std::is_same_v<T, float>) {
    const Index work = rows * cols * in.depth;
    const auto tiles = [&](Index m, Index n) { return (rows + m - 1) / m * ((cols + n - 1) / n); };
    const auto take = [&](auto kernel) { kernel(launch, in, weights, rows, cols, out); };
    if (rows >= tuning::many_rows && !aligned) return take(many_rows<64, 64, 8, 4, 2, false, In, Out>);
    if (aligned && (rows >= tuning::many_rows || (rows >= 128 && work > tuning::many_rows_work))) {
      if (cols >= 128 && in.depth >= 512 && 2 * tiles(128, 128) >= 5 * processors)
        return take(many_rows<128, 128, 8, 8, 1, true, In, Out>);
      if (cols > 32 && 10 * tiles(64, 64) >= 9 * processors)
        return take(many_rows<64, 64, 8, 4, 2, true, In, Out>);
      if (cols <= 32 && tiles(64, 32) >= 2 * processors)
        return take(many_rows<64, 32, 4, 4, 2, true, In, Out>);
      return take(many_rows<32, 32, 4, 4, 4, true, In, Out>);
    }
  }
  few_rows(launch, processors, in, weights, aligned, rows, cols, out);
}

}  // namespace mttt::detail
