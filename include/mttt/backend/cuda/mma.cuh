// Products of tiles by tensor cores: bf16 in shared memory, float32 sums in registers, one warp 16 rows.
//
// A tile lies in columns of 64 numbers, each R rows of 128 bytes whose 16-byte chunks are turned by the row's
// number: eight rows of one chunk lie in all banks, whether a product reads the tile by rows or by columns.
// Code compiled for sm_90a multiplies by four warps together, which read a right factor once; other code, and
// blocks of one warp, by single warps. Both hold accumulators alike, and both run from the same tiles.
//
// Formula: rows_by_rows:     c = a b^T       a (., D) and b (N, D) in shared memory
//          rows_by_columns:  c += p b        p (., K) in registers, b (K, D) in shared memory
// Shapes:  MT pieces of 16 rows a warp: piece i of warp w holds rows 64 i + 16 w and on. An accumulator
//          c[piece][n / 8][4] holds, in lane l, row l / 4 (and + 8), columns 2 (l % 4) and the one after.
// Units:   rows and columns in elements, addresses in bytes of the shared window; tiles start at multiples of
//          1024.
// Errors:  none.
// Not supported: compute capability below 8.0; other types than bf16.
// Source:  PTX ISA: mma.sync.m16n8k16, ldmatrix, cp.async, wgmma and its matrix descriptor.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "mttt/core/bf16.hpp"
#include "mttt/core/tensor.hpp"

namespace mttt::detail {

/// Whether 16-byte copies reach every row: strides in elements of `bytes`.
template <class... P>
bool copies_in_chunks(Index bytes, std::initializer_list<Index> strides, P... pointers) {
  std::uintptr_t bits = 0;
  for (const Index stride : strides) bits |= static_cast<std::uintptr_t>(stride * bytes);
  ((bits |= reinterpret_cast<std::uintptr_t>(pointers)), ...);
  return bits % 16 == 0;
}

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// 16 bytes from global to shared memory, or 16 zeros.
__device__ inline void copy_async(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits for all copies but those of the last n commits.
template <int n>
__device__ void await_copies_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
__device__ inline void await_copies() { await_copies_but<0>(); }

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

/// 16 columns of an accumulator as a left factor.
__device__ inline void pack_factor(std::uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

/// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(std::uint32_t (&m)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_transposed(std::uint32_t (&m)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(at)
               : "memory");
}

/// c (16 x 8) += a (16 x 16) b (16 x 8).
__device__ inline void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// A tile of R rows of D numbers.
template <int R, int D>
struct Tile {
  static_assert(D % 64 == 0 && R % 16 == 0);
  static constexpr int bytes = R * D * 2, chunks = D / 8;
  /// Address of 8 numbers: chunk `chunk` of row `row`.
  __device__ static std::uint32_t at(std::uint32_t tile, int row, int chunk) {
    return tile + static_cast<std::uint32_t>(chunk / 8 * R * 128 + row * 128 + ((chunk ^ row) % 8) * 16);
  }
};

/// Starts to copy a tile; rows from `valid` on are zeros. Row 0 must be valid.
template <int R, int D, int threads>
__device__ void load_tile(std::uint32_t tile, const bf16* from, Index step, int valid) {
  constexpr int chunks = Tile<R, D>::chunks, pass = threads / chunks;
  static_assert(R % pass == 0);
  const int chunk = static_cast<int>(threadIdx.x) % chunks, first = static_cast<int>(threadIdx.x) / chunks;
#pragma unroll
  for (int i = 0; i < R / pass; ++i) {
    const int row = first + i * pass;
    const bool in = row < valid;
    copy_async(Tile<R, D>::at(tile, row, chunk), from + (in ? row * step : 0) + chunk * 8, in);
  }
}

template <int MT, int RA, int N, int D>
__device__ void rows_by_rows_of_warp(float (&c)[MT][N / 8][4], std::uint32_t a, std::uint32_t b) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::uint32_t a_row = a + (16 * warp + lane % 16) * 128, b_row = b + (lane % 8 + lane / 16 * 8) * 128;
  const int a_chunk = (lane / 16) ^ (lane % 8), b_chunk = (lane / 8 % 2) ^ (lane % 8);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const std::uint32_t a_at = a_row + k / 4 * RA * 128 + ((k % 4 * 2) ^ a_chunk) * 16;
    const std::uint32_t b_at = b_row + k / 4 * N * 128 + ((k % 4 * 2) ^ b_chunk) * 16;
    std::uint32_t of_a[MT][4];
#pragma unroll
    for (int i = 0; i < MT; ++i) load_matrices(of_a[i], a_at + i * 64 * 128);
#pragma unroll
    for (int n = 0; n < N / 16; ++n) {
      std::uint32_t of_b[4];
      load_matrices(of_b, b_at + n * 16 * 128);
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        multiply(c[i][2 * n], of_a[i], of_b[0], of_b[1]);
        multiply(c[i][2 * n + 1], of_a[i], of_b[2], of_b[3]);
      }
    }
  }
}

template <int MT, int K, int D>
__device__ void rows_by_columns_of_warp(float (&c)[MT][D / 8][4], const float (&p)[MT][K / 8][4],
                                        std::uint32_t b) {
  const int lane = threadIdx.x % 32;
  const std::uint32_t b_row = b + lane % 16 * 128;
  const int b_chunk = (lane / 16) ^ (lane % 8);
#pragma unroll
  for (int k = 0; k < K / 16; ++k) {
    std::uint32_t of_p[MT][4];
#pragma unroll
    for (int i = 0; i < MT; ++i) pack_factor(of_p[i], p[i][2 * k], p[i][2 * k + 1]);
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      std::uint32_t of_b[4];
      load_transposed(of_b, b_row + k * 16 * 128 + d / 4 * K * 128 + ((d % 4 * 2) ^ b_chunk) * 16);
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        multiply(c[i][2 * d], of_p[i], of_b[0], of_b[1]);
        multiply(c[i][2 * d + 1], of_p[i], of_b[2], of_b[3]);
      }
    }
  }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/// Tells the tensor cores of a tile: groups of eight turned rows, 1024 bytes apart; the same whether it is
/// read by rows or, 64 columns at a time, by columns.
__device__ inline std::uint64_t tile_descriptor(std::uint32_t at) {
  return std::uint64_t{1} << 62 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 16 |
         (at & 0x3ffff) >> 4;
}

/// Four warps: c (64 x 32 or 64) = or += a (64 x 16) b^T (16 x 32 or 64), both in shared memory.
__device__ inline void group_multiply(float (&c)[4][4], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %18, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15}, %16, %17, add, 1, 1, 0, 0; }"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3])
      : "l"(a), "l"(b), "r"(add));
}
/// Factors as they lie, a row's terms of the sum side by side, or by columns.
template <bool a_by_columns = false, bool b_by_columns = false>
__device__ void group_multiply(float (&c)[8][4], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %34, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, %32, %33, add, 1, 1, %35, %36; }"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
        "+f"(c[7][2]), "+f"(c[7][3])
      : "l"(a), "l"(b), "r"(add), "n"(a_by_columns ? 1 : 0), "n"(b_by_columns ? 1 : 0));
}
/// c (64 x 64) += a (64 x 16, registers) b (16 x 64).
__device__ inline void group_multiply(float (&c)[8][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
      "%11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "
      "%31}, "
      "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]),
        "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]),
        "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]),
        "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]),
        "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]),
        "+f"(c[7][2]), "+f"(c[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/// Keeps the compiler from moving what reads or writes c over this point.
template <int MT, int n>
__device__ void hold(float (&c)[MT][n][4]) {
#pragma unroll
  for (int i = 0; i < MT * n * 4; ++i) asm volatile("" : "+f"((&c[0][0][0])[i])::"memory");
}
#endif

/// Whether this code is compiled for, and these threads make up, groups of four warps that multiply together.
template <int threads>
constexpr bool by_groups() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  return threads % 128 == 0;
#else
  return false;
#endif
}

/// Waits for all products started but the last n; c is the result of those waited for.
template <int n, int threads, int MT, int columns>
__device__ void await_products(float (&c)[MT][columns][4]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (by_groups<threads>()) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
    hold(c);
  }
#endif
}

/// The tile that this thread has copied may be read by products, once all threads have said so.
template <int threads>
__device__ void offer_copies() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (by_groups<threads>()) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Starts c = a b^T.
template <int threads, int MT, int RA, int N, int D>
__device__ void rows_by_rows(float (&c)[MT][N / 8][4], std::uint32_t a, std::uint32_t b) {
  if constexpr (!by_groups<threads>()) {
#pragma unroll
    for (int i = 0; i < MT * N / 2; ++i) (&c[0][0][0])[i] = 0;
    rows_by_rows_of_warp<MT, RA, N, D>(c, a, b);
  } else {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr int part = N < 64 ? N : 64;
    const std::uint32_t first = a + threadIdx.x / 128 * 64 * 128;
    hold(c);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int n = 0; n < N; n += part) {
          group_multiply(*reinterpret_cast<float(*)[part / 8][4]>(&c[i][n / 8]),
                         tile_descriptor(first + i * 64 * 128 + k / 4 * RA * 128 + k % 4 * 32),
                         tile_descriptor(b + k / 4 * N * 128 + n * 128 + k % 4 * 32), k > 0);
        }
      }
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
}

/// Starts c += p b.
template <int threads, int MT, int K, int D>
__device__ void rows_by_columns(float (&c)[MT][D / 8][4], const float (&p)[MT][K / 8][4], std::uint32_t b) {
  if constexpr (!by_groups<threads>()) {
    rows_by_columns_of_warp<MT, K, D>(c, p, b);
  } else {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    std::uint32_t of_p[MT][K / 16][4];
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int k = 0; k < K / 16; ++k) pack_factor(of_p[i][k], p[i][2 * k], p[i][2 * k + 1]);
    }
    hold(c);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < K / 16; ++k) {
#pragma unroll
      for (int d = 0; d < D / 64; ++d) {
        const std::uint64_t of_b = tile_descriptor(b + d * K * 128 + k * 16 * 128);
#pragma unroll
        for (int i = 0; i < MT; ++i)
          group_multiply(*reinterpret_cast<float(*)[8][4]>(&c[i][8 * d]), of_p[i][k], of_b);
      }
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
}

/// Writes the warp's rows of factor[piece][half] * c to global memory, up to row `valid`, through the same
/// rows of a tile that no other warp reads.
template <int MT, int R, int D>
__device__ void store_rows(const float (&c)[MT][D / 8][4], const float (&factor)[MT][2], std::uint32_t tile,
                           bf16* to, Index step, int valid) {
  constexpr int chunks = D / 8, pass = 32 / chunks;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncwarp();  // the warp has read what lies there
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int d = 0; d < chunks; ++d) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t both =
            pack_bf16(c[i][d][2 * half] * factor[i][half], c[i][d][2 * half + 1] * factor[i][half]);
        const int row = 64 * i + 16 * warp + 8 * half + lane / 4;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(Tile<R, D>::at(tile, row, d) + lane % 4 * 4), "r"(both)
                     : "memory");
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int j = 0; j < 16 / pass; ++j) {
      const int row = 64 * i + 16 * warp + j * pass + lane / chunks, chunk = lane % chunks;
      if (row >= valid) continue;
      uint4 eight;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                   : "r"(Tile<R, D>::at(tile, row, chunk))
                   : "memory");
      *reinterpret_cast<uint4*>(to + row * step + chunk * 8) = eight;
    }
  }
}

}  // namespace mttt::detail
