// WithWeights: a backend whose models hold their large weights in 16, 8 or 4 bits, all else as before.
//
//   WithWeights<Int8, Cuda<bf16>> be;                                   // or be(plain.as<bf16>()), its GPU
//   Store<Moshi<C, decltype(be)>::Params, decltype(be)> params(be);     // half the memory
//   load_params("model.safetensors", be, params);                       // rounds what is not in 8 bits yet
//
//   WithWeights<f16, Cpu<float>> be;     // weights in 16 bits: f16 or bf16, on the CPU; convolutions' too
//
// It is the backend that it derives from, but for one product; as<U>() gives a plain one, for a codec that
// shares its memory and its order of work.
//
// Formula: C = alpha A W^T + beta C, W as core/quantised.hpp has it.
// Shapes:  A (M, in), W (out, in), C (M, out).
// Units:   elements.
// Errors:  as the backend's own; training does not compile.
// Not supported: A transposed; products with W itself.
// Source:  none.
//
// A backend may bring a kernel of its own for few rows, which reads the weights once, as they are:
//   quantised_product(a, w, c, alpha, beta)   false, and nothing done, for shapes that it does not take
// Other products go by panels of W, turned into numbers of the type that A holds.
#pragma once

#include <algorithm>
#include <utility>

#include "mttt/backend/backend.hpp"
#include "mttt/core/quantised.hpp"

namespace mttt {

namespace detail {
template <class N>
struct WidenRow {
  const N* from;
  Index ld;
  float* to;  // (rows, cols)
  Index cols;
  template <class Team>
  MTTT_HD void operator()(Team team, Index r) const {
    const N* in = from + r * ld;
    float* out = to + r * cols;
    team.for_each(cols, [=](Index i) { out[i] = in[i]; });
  }
};
}  // namespace detail

template <class Format, Backend Base>
class WithWeights : public Base {
 public:
  using Weights = Format;
  using Base::Base;
  using Base::matmul;
  explicit WithWeights(Base base) : Base(std::move(base)) {}

  template <class U, class V>
  requires ProductTypes<U, U, V>
  void matmul(Matrix<U> a, TransposedQuantised<Format> w, Matrix<V> c, Wide<V> alpha = 1, Wide<V> beta = 0) {
    if constexpr (requires { this->quantised_product(a, w.weight, c, alpha, beta); }) {
      if (this->quantised_product(a, w.weight, c, alpha, beta)) return;
    }
    by_panels(a, w.weight, c, alpha, beta);
  }

  /// The same without the backend's own kernel: what it is tested against.
  template <class U, class V>
  void by_panels(Matrix<U> a, QuantisedMatrix<Format> w, Matrix<V> c, Wide<V> alpha = 1, Wide<V> beta = 0) {
    using T = std::remove_const_t<U>;
    const auto scope = this->scope();
    const Index most = std::min(w.rows, std::max<Index>(256, panel_size / std::max<Index>(1, w.cols)));
    T* panel = this->template make<T, dyn, dyn>(most, w.cols).data();
    for (Index first = 0; first < w.rows; first += most) {
      const Index rows = std::min(most, w.rows - first);
      this->rows(rows, detail::DequantiseRow<Format, T>{w.take_rows(first, first + rows), panel}, 0,
                 4 * w.cols);
      Base::matmul(a, Matrix<const T>{panel, rows, w.cols, w.cols}.t(),
                   Matrix<V>{c.data + first, c.rows, rows, c.ld}, alpha, beta);
    }
  }

  /// What a backward pass asks for first.
  template <class U, class V>
  void matmul(Matrix<U>, QuantisedMatrix<Format>, Matrix<V>, Wide<V> = 1, Wide<V> = 0) {
    static_assert(sizeof(U) == 0,
                  "mttt: weights in 8 or 4 bits are not trained: train on the plain backend "
                  "and quantise the result");
  }

 private:
  static constexpr Index panel_size = Index{1} << 22;  // weights: what a CPU's last cache holds
};

/// Weights in 16 bits are Tensors like others, of another number type. Products of few rows widen them as
/// they come from memory, others widen them first.
template <NarrowNumber N, Backend Base>
requires std::same_as<typename Base::Scalar, float>
class WithWeights<N, Base> : public Base {
 public:
  using Weights = N;
  using Base::Base;
  explicit WithWeights(Base base) : Base(std::move(base)) {}

  /// All products: clang++ 14 does not tell a base's function from one of other constraints.
  template <class U, class W, class V>
  requires ProductTypes<U, W, V> || std::same_as<std::remove_const_t<W>, N>
  void matmul(Matrix<U> a, Matrix<W> w, Matrix<V> c, Wide<V> alpha = 1, Wide<V> beta = 0) {
    if constexpr (std::same_as<std::remove_const_t<W>, N>) {
      narrow_matmul(Matrix<const float>(a), Matrix<const N>(w), c, alpha, beta);
    } else {
      Base::matmul(a, w, c, alpha, beta);
    }
  }

 private:
  void narrow_matmul(Matrix<const float> a, Matrix<const N> w, Matrix<float> c, float alpha, float beta) {
    if (w.transposed && this->narrow_product(a, w.t(), c, alpha, beta)) return;
    const auto scope = this->scope();
    const Index rows = w.transposed ? w.cols : w.rows, cols = w.transposed ? w.rows : w.cols;
    float* widened = this->template make<float, dyn, dyn>(rows, cols).data();
    this->rows(rows, detail::WidenRow<N>{w.data, w.ld, widened, cols}, 0, cols);
    const Matrix<const float> by{widened, rows, cols, cols};
    Base::matmul(a, w.transposed ? by.t() : by, c, alpha, beta);
  }
};

}  // namespace mttt
