// Products of few rows with weights in 8 and 4 bits on the CPU, at the speed at which the weights are read.
//
// The rows are quantised too, so finely that it does not matter: to 16 bits, with a scale for every 128 of
// them, which errs a hundred times less than bf16. That makes the inner product one of whole numbers, four
// times as fast as turning weights into floats. With VNNI a 16-bit number goes as two of 8 bits, x = 256 high
// + low, and the weights as numbers without a sign, w + 128 or w + 8, whose excess is taken off before the
// sum.
//
// Formula: c(m, n) = alpha sum over blocks b of s(m, b) (sum over k of x(m, k) w(n, k)) + beta c(m, n),
//          s(m, b) = max |a(m, .)| / 32639 in the block, x = round(a / s). The sum within a block is exact;
//          the order of the others is set by the depth and the processor alone: a row has the same bits in
//          any batch, with any number of threads.
// Shapes:  a (M, K), M at most 16; w (N, K); c (M, N).
// Units:   elements.
// Errors:  none; NaN and infinity in a row make its products NaN.
// Not supported: transposed a.
// Source:  the instructions VPDPBUSD (AVX-512 VNNI), VPMADDWD (AVX2).
//
// The library is compiled for processors without any of these; the functions marked MTTT_AVX512 and MTTT_AVX2
// are compiled for those that have them, and taken where the processor does.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "mttt/core/macros.hpp"
#include "mttt/core/quantised.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MTTT_HAS_AVX 1
#define MTTT_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define MTTT_AVX2 __attribute__((target("avx2,fma")))
#else
#define MTTT_HAS_AVX 0
#endif

namespace mttt::detail {

enum class Instructions { plain, avx2, avx512_vnni };

/// The best that this processor has.
inline Instructions processor_instructions() {
#if MTTT_HAS_AVX
  static const Instructions best =
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl")
          ? Instructions::avx512_vnni
      : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? Instructions::avx2
                                                                        : Instructions::plain;
  return best;
#else
  return Instructions::plain;
#endif
}

/// Numbers that share a scale.
inline constexpr Index row_block = 128;

/// What makes stored values numbers without a sign, and how the numbers of a block lie when they meet.
template <class Format>
inline constexpr int excess = 8;
template <>
inline constexpr int excess<Int8> = 128;
template <class Format>
constexpr Index place_in_block(Index k) {
  return k % 32 % 16 + k / 32 * 16 + (k % 32 < 16 ? 0 : 64);  // lower halves of bytes, then upper ones
}
template <>
constexpr Index place_in_block<Int8>(Index k) {
  return k;
}

/// Rows in 16 bits. For VNNI in two halves of 8, in the order of the format, with what the excess of the
/// weights adds to each of the 16 sums of a block; else `numbers` as they come.
struct RowsIn16Bits {
  Index rows, cols;
  float* scales = nullptr;                      // (rows, blocks)
  std::int16_t* numbers = nullptr;              // (rows, blocks, 128)
  std::int8_t *high = nullptr, *low = nullptr;  // (rows, blocks, 128)
  std::int32_t* less = nullptr;                 // (rows, blocks, 16)

  static constexpr Index blocks(Index cols) { return (cols + row_block - 1) / row_block; }
  Index blocks() const { return blocks(cols); }
};

/// The 128 numbers of a block, of which `count` are given; returns their scale.
template <class T>
float round_block(const T* from, Index count, std::int16_t* to) {
  float x[row_block] = {};
  for (Index k = 0; k < count; ++k) x[k] = wide(from[k]);
  std::uint32_t largest_bits = 0;  // as whole numbers NaN is above infinity, and that above the others
  for (const float one : x)
    largest_bits = std::max(largest_bits, std::bit_cast<std::uint32_t>(one) & 0x7fffffffu);
  const float largest = std::bit_cast<float>(largest_bits);
  const bool finite = largest_bits < 0x7f800000u, zero = !finite || largest < 0x1p-100f;
  const float per = zero ? 0.0f : 32639 / largest;
  for (Index k = 0; k < row_block; ++k) {
    // 1.5 * 2^23 leaves the nearest whole number in the lowest bits.
    const float shifted = (finite ? x[k] : 0.0f) * per + 0x1.8p23f;
    to[k] = static_cast<std::int16_t>(std::bit_cast<std::int32_t>(shifted) - 0x4b400000);
  }
  return !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : largest / 32639;
}

template <class Format, class T>
void round_rows(const T* a, Index lda, const RowsIn16Bits& to) {
  const bool in_halves = to.numbers == nullptr;
  for (Index m = 0; m < to.rows; ++m) {
    for (Index b = 0; b < to.blocks(); ++b) {
      const Index at = m * to.blocks() + b, first = b * row_block;
      std::int16_t own[row_block];
      std::int16_t* x = in_halves ? own : to.numbers + at * row_block;
      to.scales[at] = round_block(a + m * lda + first, std::min(row_block, to.cols - first), x);
      if (!in_halves) continue;
      std::int32_t* less = to.less + at * 16;
      std::fill_n(less, 16, 0);
      for (Index k = 0; k < row_block; k += 16) {
        const Index place = place_in_block<Format>(k);
        std::int8_t *high = to.high + at * row_block + place, *low = to.low + at * row_block + place;
        MTTT_SIMD
        for (Index i = 0; i < 16; ++i) {
          const auto upper = static_cast<std::int16_t>((x[k + i] + 128) >> 8);
          high[i] = static_cast<std::int8_t>(upper);
          low[i] = static_cast<std::int8_t>(x[k + i] - 256 * upper);
        }
        for (Index i = 0; i < 16; ++i) less[place % 64 / 4 + i / 4] -= excess<Format> * x[k + i];
      }
    }
  }
}

// A tile is rows [i, i + MR) of x by rows j, j + part, ... of the weights: sums[m][n].

template <class Format, int MR, int NR>
struct PlainTile {
  static void run(const RowsIn16Bits& x, Index i, const QuantisedMatrix<Format>& w, Index j, Index part,
                  float (&sums)[MR][NR]) {
    for (int m = 0; m < MR; ++m) {
      for (int n = 0; n < NR; ++n) sums[m][n] = one(x, i + m, w, j + n * part);
    }
  }

 private:
  static float one(const RowsIn16Bits& x, Index m, const QuantisedMatrix<Format>& w, Index n) {
    const std::int16_t* a = x.numbers + m * x.blocks() * row_block;
    const float* scales = x.scales + m * x.blocks();
    const auto* row = w.row(n);
    const auto* row_scales = w.row_scales(n);
    float total = 0;
    for (Index k = 0; k < x.cols; k += 32) {
      std::int32_t sum = 0;
      const Index count = std::min<Index>(32, x.cols - k);
      if constexpr (std::is_same_v<Format, Int8>) {
        MTTT_SIMD_SUM(sum)
        for (Index i = 0; i < count; ++i) sum += row[k + i] * a[k + i];
      } else {
        const auto* bytes = row + k / 2;
        MTTT_SIMD_SUM(sum)
        for (Index i = 0; i < 16; ++i)
          sum += ((bytes[i] & 15) - 8) * a[k + i] + ((bytes[i] >> 4) - 8) * a[k + i + 16];
      }
      const float scale = scales[k / row_block];
      total +=
          static_cast<float>(sum) * (std::is_same_v<Format, Int8> ? scale : scale * wide(row_scales[k / 32]));
    }
    return std::is_same_v<Format, Int8> ? total * wide(row_scales[0]) : total;
  }
};

#if MTTT_HAS_AVX

// The sum of a register. A function is inlined only where all of its instructions may be used: these ask for
// no more than every tile has, here and in narrow.hpp.
__attribute__((target("avx2"))) inline float sum_of(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
__attribute__((target("avx512f"))) inline float sum_of(__m512 x) {
  const __m256d upper = _mm512_maskz_extractf64x4_pd(0xf, _mm512_castps_pd(x), 1);
  return sum_of(_mm256_add_ps(_mm512_castps512_ps256(x), _mm256_castpd_ps(upper)));
}

template <class Format, int MR, int NR>
struct Avx2Tile {
  MTTT_AVX2 static void run(const RowsIn16Bits& x, Index i, const QuantisedMatrix<Format>& w, Index j,
                            Index part, float (&sums)[MR][NR]) {
    const Index blocks = x.blocks();
    __m256 total[MR][NR];
    for (int m = 0; m < MR; ++m) {
      for (int n = 0; n < NR; ++n) total[m][n] = _mm256_setzero_ps();
    }
    for (Index b = 0; b < blocks; ++b) {
      const Index left = x.cols - b * row_block;
      for (int n = 0; n < NR; ++n) {
        const Index r = j + n * part;
        if constexpr (std::is_same_v<Format, Int8>) {
          __m256i sum[MR];
          for (int m = 0; m < MR; ++m) sum[m] = _mm256_setzero_si256();
          const std::int8_t* row = w.row(r) + b * row_block;
          for (Index k = 0; k < row_block && k < left; k += 16) {
            alignas(16) std::int8_t last[16] = {};
            const bool whole = left - k >= 16;
            if (!whole) std::copy_n(row + k, left - k, last);
            const __m256i weights = _mm256_cvtepi8_epi16(load16(whole ? row + k : last));
            for (int m = 0; m < MR; ++m)
              sum[m] = _mm256_add_epi32(sum[m], _mm256_madd_epi16(weights, numbers(x, i + m, b, k)));
          }
          for (int m = 0; m < MR; ++m) add(total[m][n], sum[m], x.scales[(i + m) * blocks + b]);
        } else {
          const std::uint8_t* row = w.row(r) + b * row_block / 2;
          const bf16* scales = w.row_scales(r) + b * 4;
          const __m256i mask = _mm256_set1_epi16(15), eight = _mm256_set1_epi16(8);
          for (Index k = 0; k < row_block && k < left; k += 32) {
            const __m256i bytes = _mm256_cvtepu8_epi16(load16(row + k / 2));
            const __m256i first = _mm256_sub_epi16(_mm256_and_si256(bytes, mask), eight);
            const __m256i second = _mm256_sub_epi16(_mm256_srli_epi16(bytes, 4), eight);
            const float scale = scales[k / 32];
            for (int m = 0; m < MR; ++m) {
              const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(first, numbers(x, i + m, b, k)),
                                                   _mm256_madd_epi16(second, numbers(x, i + m, b, k + 16)));
              add(total[m][n], sum, x.scales[(i + m) * blocks + b] * scale);
            }
          }
        }
      }
    }
    for (int n = 0; n < NR; ++n) {
      const float scale = std::is_same_v<Format, Int8> ? wide(*w.row_scales(j + n * part)) : 1.0f;
      for (int m = 0; m < MR; ++m) sums[m][n] = scale * sum_of(total[m][n]);
    }
  }

 private:
  MTTT_AVX2 static __m128i load16(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
  }
  MTTT_AVX2 static __m256i numbers(const RowsIn16Bits& x, Index m, Index b, Index k) {
    const void* at = x.numbers + (m * x.blocks() + b) * row_block + k;
    return _mm256_load_si256(static_cast<const __m256i*>(at));
  }
  MTTT_AVX2 static void add(__m256& total, __m256i sum, float scale) {
    total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(scale), total);
  }
};

template <class Format, int MR, int NR>
struct Avx512Tile {
  MTTT_AVX512 static void run(const RowsIn16Bits& x, Index i, const QuantisedMatrix<Format>& w, Index j,
                              Index part, float (&sums)[MR][NR]) {
    __m512 total[MR][NR];
    for (int m = 0; m < MR; ++m) {
      for (int n = 0; n < NR; ++n) total[m][n] = _mm512_setzero_ps();
    }
    const Index whole = x.cols / row_block;
    for (Index b = 0; b < whole; ++b) block<false>(x, i, w, j, part, b, total);
    if (whole < x.blocks()) block<true>(x, i, w, j, part, whole, total);
    for (int n = 0; n < NR; ++n) {
      const float scale = std::is_same_v<Format, Int8> ? wide(*w.row_scales(j + n * part)) : 1.0f;
      for (int m = 0; m < MR; ++m) sums[m][n] = scale * sum_of(total[m][n]);
    }
  }

 private:
  /// 128 weights without a sign, and the scales of their groups, one for the sums of four.
  struct Weights {
    __m512i first, second;
    __m512 scale;
  };

  template <bool last>
  MTTT_AVX512 static void block(const RowsIn16Bits& x, Index i, const QuantisedMatrix<Format>& w, Index j,
                                Index part, Index b, __m512 (&total)[MR][NR]) {
    Weights weights[NR];
    for (int n = 0; n < NR; ++n) load<last>(w, j + n * part, b, weights[n]);
    for (int m = 0; m < MR; ++m) {
      const Index at = (i + m) * x.blocks() + b;
      const __m512i high1 = bytes(x.high + at * row_block), high2 = bytes(x.high + at * row_block + 64);
      const __m512i low1 = bytes(x.low + at * row_block), low2 = bytes(x.low + at * row_block + 64);
      const __m512i less = bytes(x.less + at * 16);
      const __m512 scale = _mm512_set1_ps(x.scales[at]);
      for (int n = 0; n < NR; ++n) {
        const Weights& v = weights[n];
        const __m512i high =
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), v.first, high1), v.second, high2);
        const __m512i low = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(less, v.first, low1), v.second, low2);
        // gcc 12 warns of its own intrinsics where they have no mask.
        const __m512i both = _mm512_add_epi32(_mm512_maskz_slli_epi32(0xffff, high, 8), low);
        const __m512 unit = std::is_same_v<Format, Int8> ? scale : _mm512_mul_ps(scale, v.scale);
        total[m][n] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, both), unit, total[m][n]);
      }
    }
  }

  template <bool last>
  MTTT_AVX512 static void load(const QuantisedMatrix<Format>& w, Index r, Index b, Weights& to) {
    if constexpr (std::is_same_v<Format, Int8>) {
      const __m512i sign = _mm512_set1_epi8(-128);
      const std::int8_t* from = w.row(r) + b * row_block;
      const Index left = w.cols - b * row_block;
      fetch(from + ahead), fetch(from + ahead + 64);
      to.first = _mm512_xor_si512(last ? some_bytes(from, left) : bytes(from), sign);
      to.second = _mm512_xor_si512(last ? some_bytes(from + 64, left - 64) : bytes(from + 64), sign);
    } else {
      const __m512i mask = _mm512_set1_epi8(15);
      const std::uint8_t* from = w.row(r) + b * (row_block / 2);
      const bf16* scales = w.row_scales(r) + b * 4;
      const Index groups = Format::scales(w.cols) - b * 4;
      fetch(from + ahead);
      const __m512i all = last ? some_bytes(from, 16 * groups) : bytes(from);
      to.first = _mm512_and_si512(all, mask);
      to.second = _mm512_and_si512(_mm512_srli_epi16(all, 4), mask);
      long long four = 0;
      __builtin_memcpy(&four, scales, last ? 2 * static_cast<std::size_t>(groups) : 8);
      // Of each 16 bytes, scale i of four goes to the upper halves of the 4 sums of group i.
      const __m512i place = _mm512_set_epi32(
          0x0706ffff, 0x0706ffff, 0x0706ffff, 0x0706ffff, 0x0504ffff, 0x0504ffff, 0x0504ffff, 0x0504ffff,
          0x0302ffff, 0x0302ffff, 0x0302ffff, 0x0302ffff, 0x0100ffff, 0x0100ffff, 0x0100ffff, 0x0100ffff);
      to.scale = _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_set1_epi64(four), place));
    }
  }

  /// Bytes between what is read and what is asked for: with these the weights come in at 93 to 100 % of the
  /// speed of a plain read, without at 75 (Int4) and 90
  /// (EPYC 9004, one thread of a busy machine; Int4 at 74 % where memory gives one thread 32 GB/s).
  static constexpr Index ahead = std::is_same_v<Format, Int8> ? 256 : 512;
  MTTT_AVX512 static void fetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
  }
  MTTT_AVX512 static __m512i bytes(const void* from) { return _mm512_loadu_si512(from); }
  /// `count` bytes, zeros for the rest.
  MTTT_AVX512 static __m512i some_bytes(const void* from, Index count) {
    const __mmask64 which = count >= 64 ? ~0ull : count <= 0 ? 0ull : (1ull << count) - 1;
    return _mm512_maskz_loadu_epi8(which, from);
  }
};

#endif  // MTTT_HAS_AVX

/// Columns [begin, end) of each of NR parts of C, for all rows of x.
template <template <class, int, int> class Tile, int MR, int NR, class Format, class T>
void quantised_columns(const RowsIn16Bits& x, Index i, const QuantisedMatrix<Format>& w, Index begin,
                       Index end, Index part, Matrix<T> c, float alpha, float beta) {
  for (Index j = begin; j < end; ++j) {
    float sums[MR][NR];
    Tile<Format, MR, NR>::run(x, i, w, j, part, sums);
    for (int m = 0; m < MR; ++m) {
      for (int n = 0; n < NR; ++n) {
        T& out = c.data[(i + m) * c.ld + j + n * part];
        out = static_cast<T>(beta == 0 ? alpha * sums[m][n] : alpha * sums[m][n] + beta * wide(out));
      }
    }
  }
}

template <template <class, int, int> class Tile, int NR, class Format, class T>
void quantised_panel(const RowsIn16Bits& x, const QuantisedMatrix<Format>& w, Index begin, Index end,
                     Index part, Matrix<T> c, float alpha, float beta) {
  Index i = 0;
  for (; i + 4 <= x.rows; i += 4) quantised_columns<Tile, 4, NR>(x, i, w, begin, end, part, c, alpha, beta);
  const Index left = x.rows - i;
  if (left == 3) quantised_columns<Tile, 3, NR>(x, i, w, begin, end, part, c, alpha, beta);
  if (left == 2) quantised_columns<Tile, 2, NR>(x, i, w, begin, end, part, c, alpha, beta);
  if (left == 1) quantised_columns<Tile, 1, NR>(x, i, w, begin, end, part, c, alpha, beta);
}

/// C = alpha x W^T + beta C by one thread; c has the columns of w's rows. As in matmul_by_dots, a tile takes
/// one row of each quarter of W, and panels of W stay in a cache while all rows of x pass over them.
template <template <class, int, int> class Tile, class Format, class T>
void quantised_tiles(const RowsIn16Bits& x, const QuantisedMatrix<Format>& w, Matrix<T> c, float alpha,
                     float beta) {
  const Index quarter = w.rows / 4,
              panel = std::max<Index>(1, (Index{16} << 10) / std::max<Index>(1, w.cols));
  for (Index j = 0; j < quarter; j += panel)
    quantised_panel<Tile, 4>(x, w, j, std::min(quarter, j + panel), quarter, c, alpha, beta);
  quantised_panel<Tile, 1>(x, w, 4 * quarter, w.rows, Index{0}, c, alpha, beta);
}

template <class Format, class T>
void quantised_product(Instructions instructions, const RowsIn16Bits& x, const QuantisedMatrix<Format>& w,
                       Matrix<T> c, float alpha, float beta) {
#if MTTT_HAS_AVX
  if (instructions == Instructions::avx512_vnni) return quantised_tiles<Avx512Tile>(x, w, c, alpha, beta);
  if (instructions == Instructions::avx2) return quantised_tiles<Avx2Tile>(x, w, c, alpha, beta);
#endif
  quantised_tiles<PlainTile>(x, w, c, alpha, beta);
}

}  // namespace mttt::detail

#if MTTT_HAS_AVX
#undef MTTT_AVX512
#undef MTTT_AVX2
#endif
#undef MTTT_HAS_AVX
