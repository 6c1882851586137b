// Products of row-major planes through cuBLAS, which thinks in columns: C^T = B^T A^T.
//
// Few rows times a plane of weights are taken by streamed_rows.cuh, or by few_rows.cuh, whose sums do not
// depend on their number.
//
// A plane whose rows overlap (the windows of a convolution: rows `ld` apart that are longer than ld) is none
// that cuBLAS accepts. It is taken apart into strips of ld columns, which are.
//
// Formula: C = alpha op(A) op(B) + beta C for a grid of planes; beta 0 clears whatever C holds.
// Shapes:  A (M, K), B (K, N), C (M, N); C is never transposed and does not overlap.
// Units:   elements.
// Errors:  those of check.cuh.
// Not supported: short cuts unasked: float32 is float32 until tf32(true), which lets products of float32 round
//          their factors to TF32 (windows.cuh; what that does not take, cuBLAS does so).
// Source:  cuBLAS, cublas<t>gemmStridedBatched.
#pragma once

#include <algorithm>
#include <utility>

#include "mttt/backend/cuda/few_rows.cuh"
#include "mttt/backend/cuda/many_rows.cuh"
#include "mttt/backend/cuda/memory.cuh"
#include "mttt/backend/cuda/streamed_rows.cuh"
#include "mttt/backend/cuda/tuning.cuh"
#include "mttt/backend/cuda/windows.cuh"
#include "mttt/core/tensor.hpp"

namespace mttt::detail {

/// Columns [first, first + n) of every plane.
template <class T>
MatrixGrid<T> strip_columns(MatrixGrid<T> m, Index first, Index n) {
  m.first.data += m.first.transposed ? first * m.first.ld : first;
  m.first.cols = n;
  return m;
}
template <class T>
MatrixGrid<T> strip_rows(MatrixGrid<T> m, Index first, Index n) {
  return strip_columns(m.t(), first, n).t();
}

/// Length of a stored row.
template <class T>
Index row_length(const Matrix<T>& m) {
  return m.transposed ? m.rows : m.cols;
}

class Gemm {
 public:
  Gemm(const Launcher& launch, int capability, int processors)
      : launch_(launch),
        capability_(capability),
        processors_(processors),
        workspace_(tuning::cublas_workspace, MemoryUse::workspace) {
    check(cublasCreate(&handle_.value), "starting cuBLAS");
    check(cublasSetStream(handle_.value, launch.stream()), "choosing a stream");
    // A workspace of ours: cuBLAS then allocates nothing, and takes the same algorithm every time.
    check(cublasSetWorkspace(handle_.value, workspace_.data(), tuning::cublas_workspace),
          "setting a workspace");
    tf32(false);
  }

  void tf32(bool on) {
    tf32_ = on && capability_ >= 80;
    // Without the flag, parts of a long sum may meet in bf16.
    check(cublasSetMathMode(handle_.value, static_cast<cublasMath_t>(
                                               (tf32_ ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH) |
                                               CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
          "choosing a precision");
  }
  bool tf32() const { return tf32_; }

  /// y (a.rows of every session, n), its sessions one after the other; bias (n / a whole number) or null.
  void multiply_windows(const Windows<float>& a, const WindowWeights<float>& w, Matrix<float> y,
                        const float* bias, Index bias_width) {
    if (y.rows * y.cols == 0) return;
    require_windows(a);
    window_product(launch_, processors_,
                   {a, w, y.data, y.cols, y.ld, a.rows * y.ld, bias, std::max<Index>(1, bias_width), 1, 0});
  }
  /// grad[k * k_stride + n * n_stride] += , bias[n] += ; bias may be null.
  void add_window_gradient(const Windows<float>& a, Matrix<const float> d, float* grad, Index k_stride,
                           Index n_stride, float* bias) {
    require_windows(a);
    window_gradient(launch_, a, d, grad, k_stride, n_stride, bias, 1, 1,
                    static_cast<float*>(workspace_.data()), tuning::cublas_workspace / 4);
  }

  /// A and B hold T; C holds V, which is T or, for bf16, float.
  template <class T, class V>
  void grid(Index outer, Index inner, MatrixGrid<const T> a, MatrixGrid<const T> b, MatrixGrid<V> c,
            Wide<V> alpha, Wide<V> beta) {
    if (outer * inner * c.first.rows * c.first.cols == 0) return;
    if (outer * inner == 1 && (beta == Wide<V>(0) || beta == Wide<V>(1)) &&
        takes_few_rows(a.first, b.first)) {
      const Finish<V> finish{.addend = beta == Wide<V>(0) ? nullptr : c.first.data};
      if constexpr (std::is_same_v<T, bf16>) {
        const Matrix<const T> w = b.first.t();
        if (w.ld == w.cols &&
            streamed<Identity>(a.first, {}, weight_rows(w), c.first, finish, c.first.ld, alpha, false))
          return;
      }
      few<Identity, false, T, V>(a.first, {}, b.first.t(), c.first, finish, c.first.ld, alpha);
      return;
    }
    if constexpr (std::is_same_v<T, float> && std::is_same_v<V, float>) {
      if (tf32_ && as_windows(outer, inner, a, b, c, alpha, beta)) return;
    }
    if (overlaps(a.first)) {
      strips(a.first, [&](Index first, Index n) {
        a.first.transposed
            ? grid<T, V>(outer, inner, strip_rows(a, first, n), b, strip_rows(c, first, n), alpha, beta)
            : grid<T, V>(outer, inner, strip_columns(a, first, n), strip_rows(b, first, n), c, alpha,
                         first == 0 ? beta : Wide<V>(1));
      });
    } else if (overlaps(b.first)) {
      strips(b.first, [&](Index first, Index n) {
        b.first.transposed ? grid<T, V>(outer, inner, strip_columns(a, first, n), strip_rows(b, first, n), c,
                                        alpha, first == 0 ? beta : Wide<V>(1))
                           : grid<T, V>(outer, inner, a, strip_columns(b, first, n),
                                        strip_columns(c, first, n), alpha, beta);
      });
    } else {
      batches<T, V>(outer, inner, a, b, c, alpha, beta);
    }
  }

  /// y = addend + scale * F(alpha norm(x) w^T + bias) for any number of rows.
  template <class F, bool normed, class T, class V>
  void few(Matrix<const T> x, NormRows<T> norm, Matrix<const T> w, Matrix<V> y, Finish<V> finish,
           Index addend_ld, Wide<V> alpha = 1) {
    const bool aligned = whole_packs(x.data, x.cols) && whole_packs(w.data, w.ld) &&
                         (x.rows == 1 || whole_packs(x.data, x.ld)) &&
                         (!normed || (whole_packs(norm.weight, 0) && whole_packs(norm.bias, 0)));
    const PlainRows<T, normed> in{x.data,      x.ld,      static_cast<int>(x.cols),
                                  norm.weight, norm.bias, static_cast<Wide<T>>(norm.eps)};
    product_of_rows(launch_, processors_, in, RowWeights<T>{w.data, w.ld, 0, in.depth}, aligned, x.rows,
                    w.rows, WriteRows<F, T, V>{y.data, y.ld, addend_ld, finish, alpha});
  }
  /// The same by weights that stream through shared memory; false, and nothing done, for what that does not
  /// take. `known` weights are parameters, which no kernel that was queued just before writes.
  template <class F, class W, class V>
  bool streamed(Matrix<const bf16> x, NormRows<bf16> norm, WeightRows<W> w, Matrix<V> y, Finish<V> finish,
                Index addend_ld, float alpha, bool known) {
    return norm.bias == nullptr &&
           streamed_rows<false>(launch_, capability_, processors_, x, norm.weight, norm.eps, w, y.cols, known,
                                WriteStreamed<F, V>{y.data, y.ld, addend_ld, finish, alpha});
  }
  /// y = F(a) * b, [a | b] = norm(x) w^T.
  template <class F, class W>
  bool streamed_gate(Matrix<const bf16> x, NormRows<bf16> norm, WeightRows<W> w, Matrix<bf16> y) {
    return norm.bias == nullptr &&
           streamed_rows<true>(launch_, capability_, processors_, x, norm.weight, norm.eps, w, y.cols, true,
                               WriteGated<F>{y.data, y.ld});
  }
  template <class F, class T>
  void conv_step(const ConvStep<T>& conv, Finish<T> finish) {
    const Index depth = conv.kernel * conv.in;
    const bool aligned =
        whole_packs(conv.x, conv.in) && whole_packs(conv.previous, 0) && whole_packs(conv.weight, 0);
    product_of_rows(launch_, processors_, WindowRows<F, T>{conv, static_cast<int>(depth)},
                    RowWeights<T>{conv.weight, depth, 0, static_cast<int>(depth)}, aligned,
                    conv.sessions * conv.steps, conv.out,
                    WriteRows<Identity, T, T>{conv.y, conv.out, conv.out, finish, 1});
  }
  template <class F, class T>
  void conv_transpose_step(const ConvTransposeStep<T>& conv) {
    const int in = static_cast<int>(conv.in), rows_a_session = static_cast<int>(conv.steps + conv.taps() - 1);
    const bool aligned = whole_packs(conv.x, conv.in) && whole_packs(conv.weight, 0);
    product_of_rows(launch_, processors_,
                    TapRows<F, T>{conv.x, static_cast<int>(conv.steps), in, rows_a_session,
                                  static_cast<int>(conv.taps()) * in},
                    RowWeights<T>{conv.weight, conv.in, (conv.stride * conv.out - 1) * conv.in, in}, aligned,
                    conv.sessions * rows_a_session, conv.stride * conv.out,
                    WriteSamples<T>{conv, rows_a_session});
  }

 private:
  static void require_windows(const Windows<float>& a) {
    if (a.length < Index{1} << 30 && a.sessions * a.rows < Index{1} << 31) return;
    fail("a convolution on a GPU", std::to_string(a.length) + " numbers a session", "less than 2^30",
         "cut the recording into segments");
  }

  template <class T>
  static bool takes_few_rows(const Matrix<const T>& a, const Matrix<const T>& b) {
    constexpr Index most = Index{1} << 17;  // columns and depth that a kernel's grid and its 32 bits hold
    return a.rows <= tuning::few_rows<T> && !a.transposed && b.transposed && a.cols > 0 && a.cols <= most &&
           b.cols <= most;
  }

  struct Handle {
    cublasHandle_t value = nullptr;
    Handle() = default;
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
      if (value != nullptr) cublasDestroy(value);
    }
  };

  template <class T>
  static bool overlaps(const Matrix<T>& m) {
    const Index stored_rows = m.transposed ? m.cols : m.rows;
    return stored_rows > 1 && m.ld < row_length(m);
  }
  template <class T, class F>
  static void strips(const Matrix<T>& m, const F& f) {
    const Index length = row_length(m);
    for (Index first = 0; first < length; first += m.ld) f(first, std::min(m.ld, length - first));
  }

  /// False, and nothing done, for products that are none of windows.cuh's.
  bool as_windows(Index outer, Index inner, const MatrixGrid<const float>& a,
                  const MatrixGrid<const float>& b, const MatrixGrid<float>& c, float alpha, float beta) {
    const Matrix<const float>&x = a.first, &w = b.first;
    const bool one_factor = outer == 1 || b.outer_stride == 0;
    const Index columns = std::max(w.cols, w.rows), most = Index{1} << 20, largest = Index{1} << 30;
    if (inner != 1 || outer * c.first.rows >= largest || columns > most || x.cols == 0 ||
        std::max(x.rows, x.cols) * x.ld >= largest || std::max(w.rows, w.cols) * w.ld >= largest)
      return false;
    if (!x.transposed && one_factor) {
      const auto [k_stride, n_stride] = w.transposed ? std::pair{Index{1}, w.ld} : std::pair{w.ld, Index{1}};
      window_product(launch_, processors_,
                     {{x.data, outer, x.rows, x.cols, x.ld, 0, a.outer_stride, (x.rows - 1) * x.ld + x.cols},
                      {w.data, x.cols, 0, k_stride, n_stride},
                      c.first.data,
                      c.first.cols,
                      c.first.ld,
                      c.outer_stride,
                      nullptr,
                      1,
                      alpha,
                      beta});
      return true;
    }
    if (outer == 1 && x.transposed && !w.transposed && x.cols >= 256) {
      const Matrix<const float> d = x.t();
      window_gradient(launch_, {w.data, 1, w.rows, w.cols, w.ld, 0, 0, (w.rows - 1) * w.ld + w.cols}, d,
                      c.first.data, 1, c.first.ld, nullptr, alpha, beta,
                      static_cast<float*>(workspace_.data()), tuning::cublas_workspace / 4);
      return true;
    }
    return false;
  }

  /// One call where the planes lie evenly, else one for each outer or for each inner index.
  template <class T, class V>
  void batches(Index outer, Index inner, MatrixGrid<const T> a, MatrixGrid<const T> b, MatrixGrid<V> c,
               Wide<V> alpha, Wide<V> beta) {
    const auto even = [&](const auto& m) { return m.outer_stride == inner * m.inner_stride; };
    if (inner == 1 || (even(a) && even(b) && even(c))) {
      const auto stride = [&](const auto& m) { return inner == 1 ? m.outer_stride : m.inner_stride; };
      batch<T, V>(outer * inner, a.first, stride(a), b.first, stride(b), c.first, stride(c), alpha, beta);
    } else if (outer <= inner) {
      for (Index i = 0; i < outer; ++i)
        batch<T, V>(inner, a.at(i, 0), a.inner_stride, b.at(i, 0), b.inner_stride, c.at(i, 0), c.inner_stride,
                    alpha, beta);
    } else {
      for (Index i = 0; i < inner; ++i)
        batch<T, V>(outer, a.at(0, i), a.outer_stride, b.at(0, i), b.outer_stride, c.at(0, i), c.outer_stride,
                    alpha, beta);
    }
  }

  template <class T, class V>
  void batch(Index count, Matrix<const T> a, Index a_stride, Matrix<const T> b, Index b_stride, Matrix<V> c,
             Index c_stride, Wide<V> alpha, Wide<V> beta) {
    const auto operation = [](const auto& m) { return m.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    // A plane of one row may name any ld, cuBLAS wants that of a whole row.
    const auto ld = [](const auto& m) { return std::max(m.ld, std::max<Index>(1, row_length(m))); };
    const cublasOperation_t op_a = operation(a), op_b = operation(b);
    const Index m = c.cols, n = c.rows, k = a.cols;
    cublasStatus_t status;
    if constexpr (std::is_same_v<T, float>) {
      status = count == 1 ? cublasSgemm_64(handle_.value, op_b, op_a, m, n, k, &alpha, b.data, ld(b), a.data,
                                           ld(a), &beta, c.data, ld(c))
                          : cublasSgemmStridedBatched_64(handle_.value, op_b, op_a, m, n, k, &alpha, b.data,
                                                         ld(b), b_stride, a.data, ld(a), a_stride, &beta,
                                                         c.data, ld(c), c_stride, count);
    } else if constexpr (std::is_same_v<T, double>) {
      status = count == 1 ? cublasDgemm_64(handle_.value, op_b, op_a, m, n, k, &alpha, b.data, ld(b), a.data,
                                           ld(a), &beta, c.data, ld(c))
                          : cublasDgemmStridedBatched_64(handle_.value, op_b, op_a, m, n, k, &alpha, b.data,
                                                         ld(b), b_stride, a.data, ld(a), a_stride, &beta,
                                                         c.data, ld(c), c_stride, count);
    } else {
      static_assert(std::is_same_v<T, bf16>, "Cuda::matmul takes float, double or bf16");
      constexpr auto in = CUDA_R_16BF, out = std::is_same_v<V, bf16> ? CUDA_R_16BF : CUDA_R_32F;
      status = count == 1 ? cublasGemmEx_64(handle_.value, op_b, op_a, m, n, k, &alpha, b.data, in, ld(b),
                                            a.data, in, ld(a), &beta, c.data, out, ld(c), CUBLAS_COMPUTE_32F,
                                            CUBLAS_GEMM_DEFAULT)
                          : cublasGemmStridedBatchedEx_64(handle_.value, op_b, op_a, m, n, k, &alpha, b.data,
                                                          in, ld(b), b_stride, a.data, in, ld(a), a_stride,
                                                          &beta, c.data, out, ld(c), c_stride, count,
                                                          CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    }
    check(status, "a product");
  }

  const Launcher& launch_;  // outlives this
  int capability_, processors_;
  bool tf32_ = false;
  CudaMemory workspace_;
  Handle handle_;  // destroyed first
};

}  // namespace mttt::detail
