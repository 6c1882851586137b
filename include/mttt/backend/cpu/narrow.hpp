// Products of few rows with weights stored in 16 bits on the CPU: read from memory as they are, half the
// bytes of float32, and widened in registers.
//
// Formula: C = alpha A W^T + beta C, W widened exactly. The order of a sum is set by its length and the
//          processor alone: a row has the same bits in any batch, with any number of threads.
// Shapes:  A (M, K), M at most 16; W (N, K); C (M, N).
// Units:   elements.
// Errors:  none.
// Not supported: transposed A.
// Source:  the instruction VCVTPH2PS (F16C, AVX-512).
//
// As in cpu/quantised.hpp, the processor is asked at run time what it has.
#pragma once

#include "mttt/backend/cpu/matmul.hpp"
#include "mttt/backend/cpu/quantised.hpp"
#include "mttt/core/f16.hpp"

namespace mttt::detail {

// A tile is MR rows of a, `lda` apart, by NR rows of w, `ldw` apart: sums[m][n].

template <class N, int MR, int NR>
struct NarrowTile {
  static void run(const float* a, Index lda, const N* w, Index ldw, Index K, float (&sums)[MR][NR]) {
    constexpr Index block = 64;
    for (auto& row : sums) std::fill_n(row, NR, 0.0f);
    for (Index k = 0; k < K; k += block) {
      const Index count = std::min(block, K - k);
      for (int n = 0; n < NR; ++n) {
        float row[block];
        for (Index i = 0; i < count; ++i) row[i] = wide(w[n * ldw + k + i]);
        for (int m = 0; m < MR; ++m) {
          float sum = 0;
          MTTT_SIMD_SUM(sum)
          for (Index i = 0; i < count; ++i) sum += a[m * lda + k + i] * row[i];
          sums[m][n] += sum;
        }
      }
    }
  }
};

#if defined(__x86_64__) && defined(__GNUC__)
#define MTTT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl")))
#define MTTT_AVX2 __attribute__((target("avx2,fma,f16c")))

template <class N, int MR, int NR>
struct NarrowAvx2Tile {
  MTTT_AVX2 static void run(const float* a, Index lda, const N* w, Index ldw, Index K,
                            float (&sums)[MR][NR]) {
    __m256 total[MR][NR];
    MTTT_UNROLL
    for (int i = 0; i < MR * NR; ++i) total[i / NR][i % NR] = _mm256_setzero_ps();
    const Index whole = K / 8 * 8;
    for (Index k = 0; k < whole; k += 8) {
      __m256 x[MR];
      MTTT_UNROLL
      for (int m = 0; m < MR; ++m) x[m] = _mm256_loadu_ps(a + m * lda + k);
      MTTT_UNROLL
      for (int n = 0; n < NR; ++n) {
        const __m256 weights = eight(w + n * ldw + k);
        MTTT_UNROLL
        for (int m = 0; m < MR; ++m) total[m][n] = _mm256_fmadd_ps(x[m], weights, total[m][n]);
      }
    }
    MTTT_UNROLL
    for (int m = 0; m < MR; ++m) {
      MTTT_UNROLL
      for (int n = 0; n < NR; ++n) {
        sums[m][n] = sum_of(total[m][n]);
        for (Index k = whole; k < K; ++k) sums[m][n] += a[m * lda + k] * wide(w[n * ldw + k]);
      }
    }
  }

 private:
  MTTT_AVX2 static __m256 eight(const N* from) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (std::same_as<N, f16>) {
      return _mm256_cvtph_ps(bits);
    } else {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
  }
};

template <class N, int MR, int NR>
struct NarrowAvx512Tile {
  MTTT_AVX512 static void run(const float* a, Index lda, const N* w, Index ldw, Index K,
                              float (&sums)[MR][NR]) {
    __m512 total[MR][NR];
    MTTT_UNROLL
    for (int i = 0; i < MR * NR; ++i) total[i / NR][i % NR] = _mm512_setzero_ps();
    const Index whole = K / 16 * 16;
    for (Index k = 0; k < whole; k += 16) add(a + k, lda, w + k, ldw, 0xffff, total);
    if (whole < K)
      add(a + whole, lda, w + whole, ldw, static_cast<__mmask16>((1u << (K - whole)) - 1), total);
    MTTT_UNROLL
    for (int i = 0; i < MR * NR; ++i) sums[i / NR][i % NR] = sum_of(total[i / NR][i % NR]);
  }

 private:
  MTTT_AVX512 static void add(const float* a, Index lda, const N* w, Index ldw, __mmask16 which,
                              __m512 (&total)[MR][NR]) {
    constexpr Index ahead = 256;  // weights, 512 bytes, as for those in 4 bits
    __m512 x[MR];
    MTTT_UNROLL
    for (int m = 0; m < MR; ++m) x[m] = _mm512_maskz_loadu_ps(which, a + m * lda);
    MTTT_UNROLL
    for (int n = 0; n < NR; ++n) {
      const __m256i bits = _mm256_maskz_loadu_epi16(which, w + n * ldw);
      _mm_prefetch(reinterpret_cast<const char*>(w + n * ldw + ahead), _MM_HINT_T0);
      __m512 weights;
      if constexpr (std::same_as<N, f16>) {
        weights = _mm512_maskz_cvtph_ps(0xffff, bits);
      } else {
        weights = _mm512_castsi512_ps(
            _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16));
      }
      MTTT_UNROLL
      for (int m = 0; m < MR; ++m) total[m][n] = _mm512_fmadd_ps(x[m], weights, total[m][n]);
    }
  }
};

#undef MTTT_AVX512
#undef MTTT_AVX2
#endif

/// Rows j, j + part, ... of W, NR of them, by MR rows of A.
template <template <class, int, int> class Tile, int MR, int NR, class N>
void narrow_tile(const float* a, Index lda, Matrix<const N> w, float* c, Index ldc, Index j, Index part,
                 Index K, float alpha, float beta) {
  float sums[MR][NR];
  Tile<N, MR, NR>::run(a, lda, w.data + j * w.ld, part * w.ld, K, sums);
  MTTT_UNROLL
  for (int m = 0; m < MR; ++m) {
    MTTT_UNROLL
    for (int n = 0; n < NR; ++n) {
      float& out = c[m * ldc + j + n * part];
      out = beta == 0 ? alpha * sums[m][n] : alpha * sums[m][n] + beta * out;
    }
  }
}

/// Rows [begin, end) of each of the NR parts of W by all rows of A, while they lie in a cache.
template <template <class, int, int> class Tile, int NR, class N>
void narrow_panel(Matrix<const float> a, Matrix<const N> w, Matrix<float> c, Index begin, Index end,
                  Index part, float alpha, float beta) {
  const auto rows = [&]<int MR>(std::integral_constant<int, MR>, Index i) {
    for (Index j = begin; j < end; ++j)
      narrow_tile<Tile, MR, NR>(a.data + i * a.ld, a.ld, w, c.data + i * c.ld, c.ld, j, part, a.cols, alpha,
                                beta);
  };
  Index i = 0;
  for (; i + 4 <= a.rows; i += 4) rows(std::integral_constant<int, 4>(), i);
  if (a.rows - i == 3) rows(std::integral_constant<int, 3>(), i);
  if (a.rows - i == 2) rows(std::integral_constant<int, 2>(), i);
  if (a.rows - i == 1) rows(std::integral_constant<int, 1>(), i);
}

/// A tile takes a row from each quarter of W, as in matmul_by_dots.
template <template <class, int, int> class Tile, class N>
void narrow_tiles(Matrix<const float> a, Matrix<const N> w, Matrix<float> c, float alpha, float beta) {
  const Index quarter = w.rows / 4, panel = std::max<Index>(1, (Index{8} << 10) / std::max<Index>(1, a.cols));
  for (Index j = 0; j < quarter; j += panel)
    narrow_panel<Tile, 4>(a, w, c, j, std::min(quarter, j + panel), quarter, alpha, beta);
  narrow_panel<Tile, 1>(a, w, c, 4 * quarter, w.rows, Index{0}, alpha, beta);
}

template <NarrowNumber N>
void narrow_product(Instructions instructions, Matrix<const float> a, Matrix<const N> w, Matrix<float> c,
                    float alpha, float beta) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (instructions == Instructions::avx512_vnni)
    return narrow_tiles<NarrowAvx512Tile, N>(a, w, c, alpha, beta);
  if (instructions == Instructions::avx2) return narrow_tiles<NarrowAvx2Tile, N>(a, w, c, alpha, beta);
#endif
  narrow_tiles<NarrowTile, N>(a, w, c, alpha, beta);
}

}  // namespace mttt::detail
