// WithWeights: a backend whose models hold their large weights in 8 or 4 bits, and everything else as before.
//
//   WithWeights<Int8, Cuda<bf16>> be;                                   // or be(plain.as<bf16>()), its GPU
//   Store<Moshi<C, decltype(be)>::Params, decltype(be)> params(be);     // half the memory
//   load_params("model.safetensors", be, params);                       // rounds what is not in 8 bits yet
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

}  // namespace mttt
