// Linear: y = x W^T + b.
//
// Formula: y = x W^T + b;  dx = dy W;  dW += dy^T x;  db += sum of dy over rows.
// Shapes:  x (B, T, in), weight (out, in), bias (out), y (B, T, out).
// Units:   none.
// Errors:  none.
// Not supported: none.
// Source:  torch.nn.Linear.
#pragma once

#include <cmath>

#include "mttt/core/concepts.hpp"
#include "mttt/core/quantised.hpp"
#include "mttt/nn/elementwise.hpp"

namespace mttt {

struct LinearConfig {
  Index in, out;
  bool bias = false;
};

/// Fills a tensor in host memory with normal numbers of the given deviation, cut at three deviations; one
/// that a Store has left out draws none.
template <class T, Index... E>
void init_truncated_normal(Tensor<T, E...> tensor, double deviation, Rng& rng) {
  if (left_out(tensor)) return;
  for (Index i = 0; i < tensor.size(); ++i)
    tensor.data()[i] = static_cast<T>(deviation * rng.truncated_normal());
}
/// The same numbers, rounded to the format.
template <class Format, Index out, Index in>
void init_truncated_normal(QuantisedTensor<Format, out, in> weight, double deviation, Rng& rng) {
  std::array<float, static_cast<std::size_t>(in)> row;
  for (Index r = 0; r < out; ++r) {
    for (auto& w : row) w = static_cast<float>(deviation * rng.truncated_normal());
    Format::quantise(row.data(), in, &weight.values(r, 0), &weight.scales(r, 0));
  }
}
template <class T, Index... E>
void init_constant(Tensor<T, E...> tensor, double value) {
  if (left_out(tensor)) return;
  for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<T>(value);
}

template <LinearConfig C, class B>
struct Linear {
  using T = typename B::Scalar;
  using Accum = typename B::Accum;
  static constexpr Index in = C.in, out = C.out;

  struct Params {
    Weight<B, C.out, C.in> weight;
    Tensor<T, C.bias ? C.out : 0> bias;  // of no elements without bias
    static void visit(auto&& f, auto&&... p) {
      f("weight", p.weight...);
      if constexpr (C.bias) f("bias", p.bias...);
    }
  };
  struct Saved {
    Sequence<const T, in> x;
  };
  using State = NoState;

  static void init(Params& p, Rng& rng) {
    init_truncated_normal(p.weight, 1.0 / std::sqrt(static_cast<double>(in)), rng);
    if constexpr (C.bias) init_constant(p.bias, 0.0);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    saved.x = x;
    apply(be, p, x, y);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    weight_backward(be, saved, saved.x, dy, input_backward(be, p, dy, dx.matrix()), grad);
  }

  /// Forward and backward in parts, for callers whose x is there again only between the two halves of
  /// backward, or whose dx has several summands (beta 1). `Low` is what an adapter keeps (nn/lora.hpp).
  struct Low {};
  static Low make_low(B&, Index, Index) { return {}; }
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      Low) {
    forward(be, p, x, y, saved);
  }
  static Low input_backward(B& be, const Params& p, Sequence<const T, out> dy, Matrix<T> dx, Accum beta = 0) {
    be.matmul(dy.matrix(), p.weight.matrix(), dx, 1, beta);
    return {};
  }
  static void weight_backward(B& be, const Saved&, Sequence<const T, in> x, Sequence<const T, out> dy, Low,
                              auto& grad) {
    add_product(be, dy.matrix().t(), x.matrix(), grad.weight.matrix());
    if constexpr (C.bias) sum_columns(be, dy.data(), grad.bias.data(), dy.flat_rows().extent(0), out);
  }

  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    apply(be, p, x, y);
  }
  static void reset(B&, const Params&, State&, Mask) {}

 private:
  static void apply(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y) {
    be.matmul(x.matrix(), p.weight.matrix().t(), y.matrix());
    if constexpr (C.bias) add_row(be, p.bias.data(), y.data(), y.flat_rows().extent(0), out);
  }
};

}  // namespace mttt
