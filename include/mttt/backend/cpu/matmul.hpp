// Matrix products on the CPU: our own tiles, and Eigen for large ones where registers are few.
//
// A streaming step multiplies a handful of rows by a weight matrix that is read once from memory. The tiles
// read each weight once for up to four rows, allocate nothing, and sum every output in the same order
// whatever the number of rows, so that a session's numbers do not depend on who else is in the batch.
//
// Formula: C = alpha op(A) op(B) + beta C.
// Shapes:  A (M, K), B (K, N), C (M, N), row-major planes; C is never transposed.
// Units:   elements.
// Errors:  none; extents are the caller's promise.
// Not supported: aliasing of C with A or B.
// Source:  Eigen's packet layer (Eigen::internal::packet_traits) and its GEMM.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <utility>

#include "mttt/core/tensor.hpp"

namespace mttt::detail {

/// f(0), ..., f(N - 1) with numbers that are known when it is compiled: accumulators that a loop indexes would
/// lie in memory, and be stored after every product.
template <int N, class F>
MTTT_INLINE void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) MTTT_INLINED { (f(std::integral_constant<int, I>()), ...); }
  (std::make_integer_sequence<int, N>());
}

/// Keeps a value in its register: g++ would rather read it from memory once more for every product.
template <class P>
MTTT_INLINE void hold(P& value) {
#if defined(__x86_64__) && defined(__SSE__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
}

/// MR x NR dot products of length K: c[i * ldc + j * c_column] from row i of a and row j of b.
template <int MR, int NR, class T>
inline void dot_tile(const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc, Index c_column, Index K,
                     T alpha, T beta) {
  namespace ei = Eigen::internal;
  using Packet = typename ei::packet_traits<T>::type;
  constexpr Index width = ei::packet_traits<T>::size;
  Packet sum[MR][NR];
  unroll<MR>([&](auto i) MTTT_INLINED {
    unroll<NR>([&](auto j) MTTT_INLINED { sum[i][j] = ei::pset1<Packet>(T(0)); });
  });
  const Index whole = K / width * width;
  for (Index k = 0; k < whole; k += width) {
    Packet pa[MR];
    unroll<MR>([&](auto i) MTTT_INLINED {
      pa[i] = ei::ploadu<Packet>(a + i * lda + k);
      hold(pa[i]);
    });
    unroll<NR>([&](auto j) MTTT_INLINED {
      Packet pb = ei::ploadu<Packet>(b + j * ldb + k);
      hold(pb);
      unroll<MR>([&](auto i) MTTT_INLINED { sum[i][j] = ei::pmadd(pa[i], pb, sum[i][j]); });
    });
  }
  unroll<MR>([&](auto i) MTTT_INLINED {
    unroll<NR>([&](auto j) MTTT_INLINED {
      T total = ei::predux(sum[i][j]);
      for (Index k = whole; k < K; ++k) total += a[i * lda + k] * b[j * ldb + k];
      T& out = c[i * ldc + j * c_column];
      out = beta == T(0) ? alpha * total : alpha * total + beta * out;
    });
  });
}

/// MR rows of A with rows [begin, end) of each of the NR parts of B, which are `part` rows long.
template <int MR, int NR, class T>
inline void dot_panel(const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc, Index part, Index begin,
                      Index end, Index K, T alpha, T beta) {
  for (Index j = begin; j < end; ++j) {
    dot_tile<MR, NR>(a, lda, b + j * ldb, part * ldb, c + j, ldc, part, K, alpha, beta);
  }
}

/// All rows of A over that panel of B.
template <int NR, class T>
inline void dot_panels(const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc, Index M, Index part,
                       Index begin, Index end, Index K, T alpha, T beta) {
  Index i = 0;
  for (; i + 4 <= M; i += 4) {
    dot_panel<4, NR>(a + i * lda, lda, b, ldb, c + i * ldc, ldc, part, begin, end, K, alpha, beta);
  }
  a += i * lda, c += i * ldc;
  if (M - i == 3) dot_panel<3, NR>(a, lda, b, ldb, c, ldc, part, begin, end, K, alpha, beta);
  if (M - i == 2) dot_panel<2, NR>(a, lda, b, ldb, c, ldc, part, begin, end, K, alpha, beta);
  if (M - i == 1) dot_panel<1, NR>(a, lda, b, ldb, c, ldc, part, begin, end, K, alpha, beta);
}

/// C = alpha A B^T + beta C with B given by rows (N, K): weights as they are stored.
template <class T>
inline void matmul_by_dots(const T* a, Index lda, const T* b, Index ldb, T* c, Index ldc, Index M, Index N,
                           Index K, T alpha, T beta) {
  // A tile takes one row from each quarter of B: four streams that each run through memory without a break,
  // which the processor prefetches at full speed; four neighbouring rows, which break off at their ends,
  // reach two thirds. Panels of B stay in the second-level cache while all rows of A pass over them.
  const Index quarter = N / 4, panel = std::max<Index>(1, (Index{4} << 10) / std::max<Index>(1, K));
  for (Index j = 0; j < quarter; j += panel) {
    dot_panels<4>(a, lda, b, ldb, c, ldc, M, quarter, j, std::min(quarter, j + panel), K, alpha, beta);
  }
  dot_panels<1>(a, lda, b, ldb, c, ldc, M, Index{0}, 4 * quarter, N, K, alpha, beta);
}

/// A tile of MR rows x NP packets of C = alpha A B + beta C; A by element (row and column stride), B and C
/// by rows.
template <int MR, int NP, class T>
inline void broadcast_tile(const T* a, Index row, Index column, const T* b, Index ldb, T* c, Index ldc,
                           Index K, T alpha, T beta) {
  namespace ei = Eigen::internal;
  using Packet = typename ei::packet_traits<T>::type;
  constexpr Index width = ei::packet_traits<T>::size;
  Packet sum[MR][NP];
  unroll<MR>([&](auto i) MTTT_INLINED {
    unroll<NP>([&](auto j) MTTT_INLINED { sum[i][j] = ei::pset1<Packet>(T(0)); });
  });
  for (Index k = 0; k < K; ++k) {
    Packet pb[NP];
    unroll<NP>([&](auto j) MTTT_INLINED {
      pb[j] = ei::ploadu<Packet>(b + k * ldb + j * width);
      hold(pb[j]);
    });
    unroll<MR>([&](auto i) MTTT_INLINED {
      const Packet pa = ei::pset1<Packet>(a[i * row + k * column]);
      unroll<NP>([&](auto j) MTTT_INLINED { sum[i][j] = ei::pmadd(pa, pb[j], sum[i][j]); });
    });
  }
  const Packet pa = ei::pset1<Packet>(alpha), pc = ei::pset1<Packet>(beta);
  unroll<MR>([&](auto i) MTTT_INLINED {
    unroll<NP>([&](auto j) MTTT_INLINED {
      T* out = c + i * ldc + j * width;
      const Packet value = ei::pmul(pa, sum[i][j]);
      ei::pstoreu(out, beta == T(0) ? value : ei::pmadd(pc, ei::ploadu<Packet>(out), value));
    });
  });
}

template <int NP, class T>
inline void broadcast_panel(const T* a, Index row, Index column, const T* b, Index ldb, T* c, Index ldc,
                            Index M, Index K, T alpha, T beta) {
  Index i = 0;
  if constexpr (NP == 1) {  // as many sums at once as hide the latency of each
    for (; i + 8 <= M; i += 8)
      broadcast_tile<8, NP>(a + i * row, row, column, b, ldb, c + i * ldc, ldc, K, alpha, beta);
  }
  for (; i + 4 <= M; i += 4) {
    broadcast_tile<4, NP>(a + i * row, row, column, b, ldb, c + i * ldc, ldc, K, alpha, beta);
  }
  for (; i < M; ++i)
    broadcast_tile<1, NP>(a + i * row, row, column, b, ldb, c + i * ldc, ldc, K, alpha, beta);
}

// g++ says that a vector type loses its attributes as a template argument; in Eigen's overloads it has, too.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"

/// panel (b.rows, columns) = b, contiguous, zeros where b has fewer columns.
template <class T>
void lay_out(Matrix<const T> b, Index columns, T* panel) {
  namespace ei = Eigen::internal;
  using Packet = typename ei::packet_traits<T>::type;
  constexpr Index width = ei::packet_traits<T>::size;
  const Index whole = b.cols / width * width;
  if (!b.transposed) {
    for (Index k = 0; k < b.rows; ++k) std::copy_n(b.data + k * b.ld, b.cols, panel + k * columns);
  } else {
    Index k = 0;
    if constexpr (width > 1) {
      for (; k + width <= b.rows; k += width) {
        for (Index j = 0; j < whole; j += width) {
          ei::PacketBlock<Packet, width> block;
          for (Index i = 0; i < width; ++i) block.packet[i] = ei::ploadu<Packet>(b.data + (j + i) * b.ld + k);
          ei::ptranspose(block);
          for (Index i = 0; i < width; ++i) ei::pstoreu(panel + (k + i) * columns + j, block.packet[i]);
        }
      }
    }
    const Index turned = k;
    for (k = 0; k < b.rows; ++k) {
      for (Index j = k < turned ? whole : 0; j < b.cols; ++j) panel[k * columns + j] = b.data[j * b.ld + k];
    }
  }
  for (Index k = 0; k < b.rows; ++k) std::fill_n(panel + k * columns + b.cols, columns - b.cols, T(0));
}

/// Vectors of columns that a tile of four rows takes: its sums, and what they are made of, stay in registers.
inline constexpr int tile_vectors = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 4 : 2;

/// Rows [begin, end) of a matrix that may be transposed.
template <class T>
Matrix<T> take_rows(Matrix<T> m, Index begin, Index end) {
  m.data += m.transposed ? begin : begin * m.ld;
  m.rows = end - begin;
  return m;
}
template <class T>
Matrix<T> take_columns(Matrix<T> m, Index begin, Index end) {
  return take_rows(m.t(), begin, end).t();
}

/// C = alpha A B + beta C, of as many rows as pay for laying out B: a contiguous panel of its columns at a
/// time, turned where B is given by its columns. The sums across vectors with which matmul_by_dots ends each
/// dot product would take as long as short products themselves. The order of a sum depends on its length alone.
template <class T>
void matmul_by_panels(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, T alpha, T beta) {
  constexpr Index width = Eigen::internal::packet_traits<T>::size, depth = 128, most = tile_vectors * width;
  alignas(64) T panel[depth * most];  // 32 KB of the stack at most, and 16 of it below
  const Index M = c.rows, N = c.cols, K = a.cols;
  const Index row = a.transposed ? 1 : a.ld, column = a.transposed ? a.ld : 1;
  // Columns [j, j + columns), of whole vectors in c, which may have room for more than N.
  const auto multiply = [&]<int NP>(std::integral_constant<int, NP>, Index j, Index columns,
                                    Matrix<const T> from, Matrix<T> to) {
    for (Index k = 0; k < K; k += depth) {
      const Index n = std::min(depth, K - k);
      lay_out(take_rows(take_columns(b, j, std::min(N, j + columns)), k, k + n), columns, panel);
      for (Index part = 0; part < columns; part += NP * width)
        broadcast_panel<NP>(from.data + k * column, row, column, panel + part, columns, to.data + part, to.ld,
                            to.rows, n, alpha, k == 0 ? beta : T(1));
    }
  };
  Index j = 0;
  for (; j + most <= N; j += most)
    multiply(std::integral_constant<int, tile_vectors>(), j, most, a, take_columns(c, j, j + most));
  if (const Index columns = (N - j) / width * width; columns > 0) {
    multiply(std::integral_constant<int, 1>(), j, columns, a, take_columns(c, j, j + columns));
    j += columns;
  }
  if (j == N) return;
  constexpr Index most_rows =
      256;  // the last columns, less than a vector, by way of a plane that has room for one
  alignas(64) T last[most_rows * width];
  for (Index i = 0; i < M; i += most_rows) {
    const Index rows = std::min(most_rows, M - i);
    const Matrix<T> to = take_columns(take_rows(c, i, i + rows), j, N);
    for (Index r = 0; r < rows; ++r) {
      std::copy_n(to.data + r * c.ld, N - j, last + r * width);
      std::fill_n(last + r * width + N - j, width - (N - j), T(0));
    }
    multiply(std::integral_constant<int, 1>(), j, width, take_rows(a, i, i + rows),
             Matrix<T>{last, rows, width, width});
    for (Index r = 0; r < rows; ++r) std::copy_n(last + r * width, N - j, to.data + r * c.ld);
  }
}

#pragma GCC diagnostic pop

/// A product of cache-sized planes by one thread: nothing is allocated.
template <class T>
void matmul_small(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, T alpha, T beta) {
  if (b.transposed && !a.transposed) {
    if constexpr (Eigen::internal::packet_traits<T>::size > 1) {
      if (a.rows >= 12 && a.cols > 0) return matmul_by_panels(a, b, c, alpha, beta);
    }
    return matmul_by_dots(a.data, a.ld, b.data, b.ld, c.data, c.ld, a.rows, b.cols, a.cols, alpha, beta);
  }
  constexpr Index width = Eigen::internal::packet_traits<T>::size;
  const Index row = a.transposed ? 1 : a.ld, column = a.transposed ? a.ld : 1;
  const Index M = c.rows, N = c.cols, K = a.cols;
  Index j = 0;
  if (!b.transposed) {
    if (M == 1) {  // more sums at once hide the latency of each
      for (; j + 8 * width <= N; j += 8 * width) {
        broadcast_tile<1, 8>(a.data, row, column, b.data + j, b.ld, c.data + j, c.ld, K, alpha, beta);
      }
    }
    for (; j + tile_vectors * width <= N; j += tile_vectors * width) {
      broadcast_panel<tile_vectors>(a.data, row, column, b.data + j, b.ld, c.data + j, c.ld, M, K, alpha,
                                    beta);
    }
    for (; j + width <= N; j += width) {
      broadcast_panel<1>(a.data, row, column, b.data + j, b.ld, c.data + j, c.ld, M, K, alpha, beta);
    }
  }
  const Index b_row = b.transposed ? 1 : b.ld, b_column = b.transposed ? b.ld : 1;
  for (; j < N; ++j) {
    for (Index i = 0; i < M; ++i) {
      T total = 0;
      for (Index k = 0; k < K; ++k) total += a.data[i * row + k * column] * b.data[k * b_row + j * b_column];
      T& out = c.data[i * c.ld + j];
      out = beta == T(0) ? alpha * total : alpha * total + beta * out;
    }
  }
}

/// Eigen's blocking of a product, with the packed panels in memory of ours: its own would come from malloc.
template <class T>
class Blocking : public Eigen::internal::level3_blocking<T, T> {
 public:
  Blocking(Index M, Index N, Index K) {
    this->m_mc = M;
    this->m_nc = N;
    this->m_kc = K;
    Eigen::internal::computeProductBlockingSizes<T, T, 1>(this->m_kc, this->m_mc, this->m_nc, Index{1});
  }
  Index bytes() const { return (elements_a() + elements_b()) * static_cast<Index>(sizeof(T)) + 128; }
  /// Takes memory of the given size; a piece of a product whose panels would not fit takes narrower ones.
  void use(void* memory, Index capacity) {
    while (bytes() > capacity && (this->m_nc > 4 || this->m_mc > 4)) {
      Index& larger = elements_b() >= elements_a() ? this->m_nc : this->m_mc;
      larger = std::max<Index>(4, larger / 2);
    }
    this->m_blockA = static_cast<T*>(memory);
    this->m_blockB = this->m_blockA + elements_a();
  }

 private:
  static Index whole_lines(Index n) { return (n + 15) / 16 * 16; }
  Index elements_a() const { return whole_lines(this->m_mc * this->m_kc); }
  Index elements_b() const { return whole_lines(this->m_kc * this->m_nc); }
};

template <class T, int OrderA, int OrderB>
void run_eigen(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, T alpha, Blocking<T>& blocking) {
  // Eigen's kernel writes column-major results: C^T = B^T A^T.
  Eigen::internal::general_matrix_matrix_product<Index, T, OrderB, false, T, OrderA, false, Eigen::ColMajor,
                                                 1>::run(c.cols, c.rows, a.cols, b.data, b.ld, a.data, a.ld,
                                                         c.data, 1, c.ld, alpha, blocking, nullptr);
}

/// C += alpha A B.
template <class T>
void matmul_by_eigen(Matrix<const T> a, Matrix<const T> b, Matrix<T> c, T alpha, Blocking<T>& blocking) {
  constexpr int rows = Eigen::RowMajor,
                columns = Eigen::ColMajor;  // a row-major plane, seen transposed, is by columns
  if (a.transposed) {
    b.transposed ? run_eigen<T, rows, rows>(a, b, c, alpha, blocking)
                 : run_eigen<T, rows, columns>(a, b, c, alpha, blocking);
  } else {
    b.transposed ? run_eigen<T, columns, rows>(a, b, c, alpha, blocking)
                 : run_eigen<T, columns, columns>(a, b, c, alpha, blocking);
  }
}

/// C *= beta, with 0 clearing even NaN.
template <class T>
void scale(Matrix<T> c, T beta) {
  if (beta == T(1)) return;
  for (Index i = 0; i < c.rows; ++i) {
    T* row = c.data + i * c.ld;
    if (beta == T(0)) {
      std::fill_n(row, c.cols, T(0));
    } else {
      for (Index j = 0; j < c.cols; ++j) row[j] *= beta;
    }
  }
}

/// Whether matmul_by_panels serves better than Eigen. With 32 registers of AVX-512 it makes 100 to 113 GFLOP/s
/// where Eigen makes 70 to 86 (one thread of an EPYC 9004); with 16 registers Eigen's tiles are the better.
template <class T>
bool prefer_panels(Matrix<const T> a, Matrix<const T> b) {
  return tile_vectors == 4 && b.cols >= 8 && a.cols > 0;
}

/// Whether the tiles serve better than Eigen: few rows, so that reading the weights is most of the work.
template <class T>
bool prefer_dots(Matrix<const T> a, Matrix<const T> b) {
  return !a.transposed && b.transposed && a.rows <= 16;
}

}  // namespace mttt::detail
