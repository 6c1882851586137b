// Products of the fused scans of TTT-MLP: of tiles in shared memory into sums in registers, by single warps,
// or by four together.
//
// Formula: c += a b, either factor as it lies or turned.
// Shapes:  sums c[NT][4] hold in lane l row l / 4 (elements 0, 1) and l / 4 + 8 (2, 3), columns 8 j + 2 (l %
//          4) and the one after.
// Units:   rows, columns in elements; addresses in bytes of the shared window.
// Errors:  none.
// Not supported: what mma.cuh does not.
// Source:  PTX ISA: mma.sync.m16n8k16, ldmatrix, stmatrix, wgmma and its matrix descriptor.
#pragma once

#include "mttt/backend/cuda/ttt/tiles.cuh"

namespace mttt::detail::mlp {

/// This thread's lane, as if it were another one each time: else what follows from it, the addresses of all
/// planes of a loop, is kept in registers.
__device__ inline unsigned lane_again() {
  unsigned lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));
  return lane;
}
__device__ inline int thread_again() {
  unsigned thread = threadIdx.x;
  asm volatile("" : "+r"(thread));
  return static_cast<int>(thread);
}

/// A tile as a factor of products: its element (i, j) is the factor's (i, j), or (j, i) if it is turned.
template <int R, int D, bool turned = false>
struct Factor {
  std::uint32_t at;

  static constexpr int bytes = Tile<R, D>::bytes;
  __device__ Factor<R, D, !turned> t() const { return {at}; }
  /// The i-th of several that follow each other.
  __device__ Factor stage(Index i) const { return {at + static_cast<std::uint32_t>(i * bytes)}; }
  /// Address of the pair at (row, column) of the tile.
  __device__ std::uint32_t pair(unsigned row, unsigned column) const {
    return at + row * 128 + column / 64 * (R * 128) + (column / 8 ^ row) % 8 * 16 + column % 8 * 2;
  }
  /// 16 x 16 at (m, k) of a left factor, at (k, n) of a right one.
  __device__ void left(std::uint32_t (&f)[4], int m, int k, unsigned lane) const {
    turned ? load_transposed(f, piece<true>(k, m, lane)) : load_matrices(f, piece<false>(m, k, lane));
  }
  __device__ void right(std::uint32_t (&f)[4], int k, int n, unsigned lane) const {
    turned ? load_matrices(f, piece<true>(n, k, lane)) : load_transposed(f, piece<false>(k, n, lane));
  }

 private:
  /// What this lane tells of four 8 x 8 matrices from (row, column), multiples of 16, on: by columns of two
  /// or by rows of two.
  template <bool by_rows>
  __device__ std::uint32_t piece(unsigned row, unsigned column, unsigned lane) const {
    const unsigned down = by_rows ? lane % 8 + lane / 16 * 8 : lane % 16;
    const unsigned right = by_rows ? lane / 8 % 2 : lane / 16;
    return at + (row + down) * 128 + column / 64 * (R * 128) + (column / 8 % 8 ^ right ^ lane % 8) * 16;
  }
};

/// Rows of ones: products with it are sums of columns.
struct Ones {
  __device__ void left(std::uint32_t (&to)[4], int, int, unsigned) const {
    to[0] = to[1] = to[2] = to[3] = 0x3f803f80u;
  }
};

/// c += a b over K, of 16 rows from m and 8 NT columns from n on; of K only [first, end), which spares what a
/// triangle makes zero. Each warp by itself.
template <int K, int NT, class A, class B>
__device__ __forceinline__ void accumulate(float (&c)[NT][4], const A& a, const B& b, int m, int n,
                                           int first = 0, int end = K) {
  static_assert(NT % 2 == 0);
  const unsigned lane = lane_again();
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    if (k < first || k >= end) continue;
    std::uint32_t left[4];
    a.left(left, m, k, lane);
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      std::uint32_t right[4];
      b.right(right, k, n + 8 * j, lane);
      multiply(c[j], left, right[0], right[1]);
      multiply(c[j + 1], left, right[2], right[3]);
    }
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// c (64 x 32 or 16) += a (64 x 16) b (16 x 32 or 16), both in shared memory: as they lie (a row's terms of
/// the sum side by side), or by columns.
template <bool left_by_columns, bool right_by_columns>
__device__ void group_multiply_narrow(float (&c)[4][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15}, %16, %17, 1, 1, 1, %18, %19;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3])
      : "l"(a), "l"(b), "n"(left_by_columns ? 1 : 0), "n"(right_by_columns ? 1 : 0));
}
template <bool left_by_columns, bool right_by_columns>
__device__ void group_multiply_narrow(float (&c)[2][4], std::uint64_t a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, "
      "1, %10, %11;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3])
      : "l"(a), "l"(b), "n"(left_by_columns ? 1 : 0), "n"(right_by_columns ? 1 : 0));
}
#endif

/// The same by four warps together where `groups` says that they have 64 rows and the same 32 or 16 columns:
/// both factors are then read from where they lie. All of K; what was written to the tiles must have been
/// offered (MlpBlock::sync), and c is to be let alone until await_all.
template <bool groups, int K, int NT, int RA, int DA, bool a_turned, int R, int D, bool turned>
__device__ __forceinline__ void start_all(float (&c)[NT][4], Factor<RA, DA, a_turned> a,
                                          Factor<R, D, turned> b, int m, int n) {
  if constexpr (!groups) {
    accumulate<K>(c, a, b, m, n);
  } else {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    static_assert(a_turned || RA == 64);
    const auto offset = [](int rows, int row, int column) {
      return static_cast<std::uint32_t>(column / 64 * (rows * 128) + row * 128 + column % 64 * 2);
    };
    int group = m / 64 * 64;
    asm volatile("" : "+r"(group), "+r"(n));  // as in lane_again
    hold(reinterpret_cast<float(&)[1][NT][4]>(c));
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < K; k += 16) {
      group_multiply_narrow<a_turned, !turned>(
          c, tile_descriptor(a.at + (a_turned ? offset(RA, k, group) : offset(RA, 0, k))),
          tile_descriptor(b.at + (turned ? offset(R, n, k) : offset(R, k, n))));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
}
/// Waits for all products that were started; c is the sums of one.
template <bool groups, int NT>
__device__ __forceinline__ void await_all(float (&c)[NT][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (groups) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    hold(reinterpret_cast<float(&)[1][NT][4]>(c));
  }
#endif
}
template <bool groups, int K, int NT, class A, class B>
__device__ __forceinline__ void accumulate_all(float (&c)[NT][4], A a, B b, int m, int n) {
  start_all<groups, K>(c, a, b, m, n);
  await_all<groups>(c);
}

/// f(a, b, row, column) of each two neighbours in such sums.
template <int NT, class Fn>
__device__ __forceinline__ void pairs(float (&c)[NT][4], int m, int n, Fn&& f) {
  const unsigned lane = lane_again(), row = static_cast<unsigned>(m) + lane / 4,
                 column = static_cast<unsigned>(n) + lane % 4 * 2;
#pragma unroll
  for (int j = 0; j < NT; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      f(c[j][2 * half], c[j][2 * half + 1], row + 8 * half, column + 8 * j);
  }
}
/// f(i, x) of each number.
template <int NT, class Fn>
__device__ __forceinline__ void each(float (&c)[NT][4], Fn&& f) {
#pragma unroll
  for (int i = 0; i < NT * 4; ++i) f(i, (&c[0][0])[i]);
}
template <int NT>
__device__ __forceinline__ float& number(float (&c)[NT][4], int i) {
  return (&c[0][0])[i];
}

/// Sums into a tile, rounded; n is a multiple of their 8 NT columns.
template <int NT, int R, int D>
__device__ __forceinline__ void put(float (&c)[NT][4], Factor<R, D> tile, int m, int n) {
  static_assert(NT == 2 || NT == 4 || NT == 8);
  const unsigned lane = lane_again(), first = static_cast<unsigned>(n) / 8;
  const std::uint32_t row = tile.at + first / 8 * (R * 128) + (static_cast<unsigned>(m) + lane % 16) * 128;
  const unsigned chunk = first % 8 ^ lane / 16 ^ lane % 8;
#pragma unroll
  for (unsigned j = 0; j < NT; j += 2) {
    store_matrices(row + (chunk ^ j) * 16, pack_bf16(c[j][0], c[j][1]), pack_bf16(c[j][2], c[j][3]),
                   pack_bf16(c[j + 1][0], c[j + 1][1]), pack_bf16(c[j + 1][2], c[j + 1][3]));
  }
}

}  // namespace mttt::detail::mlp
