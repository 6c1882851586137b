// What the fused scans of TTT layers are made of: products of tiles in shared memory, barriers, copies.
//
// Single warps multiply 16 rows each, or four together 64 of them, where the code is compiled for sm_90a.
//
// Formula: c += left right; a factor is a tile as it lies, or by columns (transposed), or what a warp holds.
// Shapes:  c[N / 8][4] as in mma.cuh: in lane l row l / 4 (elements 0, 1) and l / 4 + 8 (2, 3), columns
//          8 j + 2 (l % 4) and the one after.
// Units:   rows, columns in elements; chunks of 8 columns; addresses in bytes of the shared window; tiles
//          start at multiples of 128 (of 1024 for four warps), first rows at multiples of 8, first chunks of
//          products at multiples of 2.
// Errors:  none.
// Not supported: what mma.cuh does not.
// Source:  PTX ISA: mma.sync.m16n8k16, ldmatrix, wgmma, bar.
#pragma once

#include "mttt/backend/cuda/mma.cuh"

namespace mttt::detail {

extern __shared__ __align__(1024) unsigned char ttt_memory[];

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

/// A barrier of some of a block's warps. Number 0 is that of __syncthreads.
struct NamedBarrier {
  int number, threads;
  __device__ void sync() const { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }
  /// Says that this warp has come, without waiting for the others.
  __device__ void arrive() const {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
  }
};

/// Address of the 8 numbers `chunks` further right in tile T than those at `at`: rows are turned by their
/// number, which is an exclusive or. `at` lies in a chunk whose number shares no bit below 8 with `chunks`,
/// as do the first chunk of a slice and one of a slice's own.
template <class T>
__device__ std::uint32_t further(std::uint32_t at, int chunks) {
  constexpr int block = T::bytes / (T::chunks / 8);  // of 64 columns
  return (at ^ static_cast<std::uint32_t>(chunks % 8 * 16)) + static_cast<std::uint32_t>(chunks / 8 * block);
}

// Factors of a product: `left` gives 16 rows by 16 terms of sum, step k; `right` 16 terms by 16 columns,
// block n.

/// Tile T as it lies, from a row and a chunk on: rows of the left factor, or columns of the right one.
template <class T>
struct ByRows {
  std::uint32_t tile;
  int row, chunk;
  __device__ void left(std::uint32_t (&a)[4], int k) const {
    const int lane = lane_of_warp();
    load_matrices(a, further<T>(T::at(tile, row + lane % 16, chunk ^ lane / 16), 2 * k));
  }
  __device__ void right(std::uint32_t (&b)[4], int k, int n) const {
    const int lane = lane_of_warp();
    const std::uint32_t at = T::at(tile, row + lane % 8 + lane / 16 * 8, chunk ^ lane / 8 % 2);
    load_matrices(b, further<T>(at, 2 * k) + static_cast<std::uint32_t>(n * 16 * 128));
  }
};
/// Tile T with its rows as terms of the sum: the left factor is T transposed, the right one T.
template <class T>
struct ByColumns {
  std::uint32_t tile;
  int row, chunk;
  __device__ void left(std::uint32_t (&a)[4], int k) const {
    const int lane = lane_of_warp();
    load_transposed(a, T::at(tile, row + lane / 16 * 8 + lane % 8, chunk ^ lane / 8 % 2) +
                           static_cast<std::uint32_t>(k * 16 * 128));
  }
  __device__ void right(std::uint32_t (&b)[4], int k, int n) const {
    const int lane = lane_of_warp();
    const std::uint32_t at = T::at(tile, row + lane % 16, chunk ^ lane / 16);
    load_transposed(b, further<T>(at, 2 * n) + static_cast<std::uint32_t>(k * 16 * 128));
  }
};
/// A piece of K columns, rounded.
template <int K>
struct PackedPiece {
  std::uint32_t a[K / 16][4];
  __device__ void pack(const float (&c)[K / 8][4]) {
#pragma unroll
    for (int k = 0; k < K / 16; ++k) pack_factor(a[k], c[2 * k], c[2 * k + 1]);
  }
  __device__ void left(std::uint32_t (&to)[4], int k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = a[k][i];
  }
};
/// Ones: the product is the sum over the right factor's rows, the same in all rows.
struct Ones {
  __device__ void left(std::uint32_t (&a)[4], int) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = 0x3f803f80u;
  }
};

struct Steps {
  int first, end;
};
/// c (16 x N) += left (16 x K) right (K x N): of the steps of K only `steps`, of the columns' blocks of 16
/// only those before `columns`. Both must be the same in a warp; they spare what a triangular mask makes
/// zero.
template <int K, int N, class Left, class Right>
__device__ void add_product(float (&c)[N / 8][4], const Left& left, const Right& right,
                            Steps steps = {0, K / 16}, int columns = N / 16) {
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    if (k < steps.first || k >= steps.end) continue;
    std::uint32_t a[4];
    left.left(a, k);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      if (n >= columns) continue;
      std::uint32_t b[4];
      right.right(b, k, n);
      multiply(c[2 * n], a, b[0], b[1]);
      multiply(c[2 * n + 1], a, b[2], b[3]);
    }
  }
}
/// The same in full, with the factors of a step read while the one before is multiplied.
template <int K, int N, class Left, class Right>
__device__ void add_whole_product(float (&c)[N / 8][4], const Left& left, const Right& right) {
  std::uint32_t a[2][4], b[2][N / 16][4];
  const auto read = [&](int k) {
    left.left(a[k % 2], k);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) right.right(b[k % 2][n], k, n);
  };
  read(0);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    if (k + 1 < K / 16) read(k + 1);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      multiply(c[2 * n], a[k % 2], b[k % 2][n][0], b[k % 2][n][1]);
      multiply(c[2 * n + 1], a[k % 2], b[k % 2][n][2], b[k % 2][n][3]);
    }
  }
}

// Four warps of 16 rows each, one above the other, multiply together where tiles have 64 rows and the code is
// compiled for it: the right factor is then read once for all. Tiles that threads have written must have been
// offered (offer_copies) before the barrier before.

template <int R>
constexpr bool in_groups() {
  return R == 64 && by_groups<128>();
}
/// Starts c (64 x 64) += a (64 x K, a warp's 16 rows in its registers) b (K x 64, a tile's columns from
/// `right` on).
template <int K>
__device__ void start_group_product(float (&c)[8][4], const PackedPiece<K>& a, std::uint32_t right) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  hold(reinterpret_cast<float(&)[1][8][4]>(c));
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < K / 16; ++k) group_multiply(c, a.a[k], tile_descriptor(right + k * 16 * 128));
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// Starts c (64 x 64) += left (64 x K) right (K x 64). What is read as it lies is a tile of 64 rows.
template <int K, bool left_by_columns, bool right_by_columns>
__device__ void start_group_product(float (&c)[8][4], std::uint32_t left, std::uint32_t right) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  hold(reinterpret_cast<float(&)[1][8][4]>(c));
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    const int by_columns = k * 16 * 128, as_it_lies = k / 4 * 64 * 128 + k % 4 * 32;
    group_multiply<left_by_columns, right_by_columns>(
        c, tile_descriptor(left + (left_by_columns ? by_columns : as_it_lies)),
        tile_descriptor(right + (right_by_columns ? by_columns : as_it_lies)), 1);
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void await_group_products(float (&c)[8][4]) {
  await_products<0, 128>(reinterpret_cast<float(&)[1][8][4]>(c));
}
/// Tiles that this thread has written or copied may be read by such products after the next barrier.
template <int R>
__device__ void offer_tiles() {
  if constexpr (in_groups<R>()) offer_copies<128>();
}

template <int N>
__device__ void clear(float (&c)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; ++j) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
}

/// f(j, half) for the pairs of neighbouring columns of a piece: c[j][2 half] and the one after.
template <int N, class Function>
__device__ void for_pairs(Function f) {
#pragma unroll
  for (int j = 0; j < N / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) f(j, half);
  }
}

__device__ inline float2 read_pair(std::uint32_t at) {
  std::uint32_t both;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(both) : "r"(at));
  return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}
__device__ inline void write_pair(std::uint32_t at, float low, float high) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(pack_bf16(low, high)) : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void store_matrices(std::uint32_t at, std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                      std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}
#endif

/// Starts to copy a tile by `threads` threads, of which this is number `thread`; rows from `valid` on are
/// zeros. Row 0 must be valid.
template <int R, int D, int threads>
__device__ void copy_rows(std::uint32_t tile, const bf16* from, Index step, int valid, int thread) {
  constexpr int chunks = D / 8, pass = threads / chunks;
  static_assert(threads % chunks == 0 && R % pass == 0);
#pragma unroll
  for (int i = 0; i < R / pass; ++i) {
    const int row = thread / chunks + i * pass, chunk = thread % chunks;
    const bool in = row < valid;
    copy_async(Tile<R, D>::at(tile, row, chunk), from + (in ? row * step : 0) + chunk * 8, in);
  }
}
/// 4 bytes from global to shared memory, or zeros.
__device__ inline void copy_number(float* to, const float* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 4 : 0)
               : "memory");
}

}  // namespace mttt::detail
