// member_matmul: one member's share of a product of planes that a whole team multiplies.
//
// A member takes tiles of R x R outputs whose rows and columns lie far apart: neighbouring members then read
// neighbouring columns, and each element that is read serves R products. Where B is transposed, members begin at
// different places of the sum, so that neighbours read different banks of shared memory.
//
// Formula: C = alpha A B + beta C. The order of an output's sum depends on the extents alone.
// Shapes:  A (M, K), B (K, N), C (M, N) row-major planes; C is not transposed.
// Units:   elements.
// Errors:  none.
// Not supported: planes of 2^31 elements or more; tensor cores.
// Source:  none.
#pragma once

#include "mttt/core/tensor.hpp"

namespace mttt::detail {

template <int R, class T>
MTTT_HD void matmul_tiles(int member, int members, const Matrix<const T>& a, const Matrix<const T>& b,
                          const Matrix<T>& c, T alpha, T beta) {
  const int rows = static_cast<int>(c.rows), cols = static_cast<int>(c.cols),
            depth = static_cast<int>(a.cols);
  const int down = (rows + R - 1) / R, across = (cols + R - 1) / R;
  const int a_row = static_cast<int>(a.transposed ? 1 : a.ld),
            a_next = static_cast<int>(a.transposed ? a.ld : 1);
  const int b_column = static_cast<int>(b.transposed ? b.ld : 1),
            b_next = static_cast<int>(b.transposed ? 1 : b.ld);
  for (int tile = member; tile < down * across; tile += members) {
    const int i = tile / across, j = tile % across;
    const T *from_a[R], *from_b[R];
    T sum[R][R] = {};
    for (int r = 0; r < R; ++r) {  // beyond the edge: the first again, and not written
      from_a[r] = a.data + (i + r * down < rows ? i + r * down : i) * a_row;
      from_b[r] = b.data + (j + r * across < cols ? j + r * across : j) * b_column;
    }
    const int start = b.transposed && depth > 0 ? j % depth : 0;
    for (int step = 0; step < depth; ++step) {
      const int k = start + step < depth ? start + step : start + step - depth;
      T row[R], column[R];
      for (int r = 0; r < R; ++r) row[r] = from_a[r][k * a_next], column[r] = from_b[r][k * b_next];
      for (int r = 0; r < R; ++r) {
        for (int s = 0; s < R; ++s) sum[r][s] += row[r] * column[s];
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int s = 0; s < R; ++s) {
        if (i + r * down >= rows || j + s * across >= cols) continue;
        T& out = c.data[(i + r * down) * c.ld + j + s * across];
        out = beta == T(0) ? alpha * sum[r][s] : alpha * sum[r][s] + beta * out;
      }
    }
  }
}

/// Tiles as large as leave some to every warp or two.
template <class T>
MTTT_HD void member_matmul(int member, int members, const Matrix<const T>& a, const Matrix<const T>& b,
                           const Matrix<T>& c, T alpha, T beta) {
  if (c.rows * c.cols >= 2048) {
    matmul_tiles<4>(member, members, a, b, c, alpha, beta);
  } else if (c.rows * c.cols >= 256) {
    matmul_tiles<2>(member, members, a, b, c, alpha, beta);
  } else {
    matmul_tiles<1>(member, members, a, b, c, alpha, beta);
  }
}

}  // namespace mttt::detail
