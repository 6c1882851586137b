// Activation: a scalar function on every element, as a block without weights.
//
// Formula: y = F::f(x);  dx = dy * F::df(x).
// Shapes:  x, y (B, T, dim).
// Units:   none.
// Errors:  none.
// Not supported: functions with learned parameters.
// Source:  math/scalar.hpp names that of each function.
#pragma once

#include "mttt/core/concepts.hpp"
#include "mttt/math/scalar.hpp"
#include "mttt/nn/elementwise.hpp"

namespace mttt {

/// F is one of math/scalar.hpp: Elu, Silu, Gelu, GeluTanh, Sigmoid.
template <class F, Index dim, class B>
struct Activation {
  using T = typename B::Scalar;
  using Function = F;
  static constexpr Index in = dim, out = dim;

  using Params = NoParams;
  struct Saved {
    Sequence<const T, in> x;
  };
  using State = NoState;

  static void init(Params&, Rng&) {}

  static void forward(B& be, const Params&, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    saved.x = x;
    be.map(x.size(), detail::Activate<F>{}, y.data(), x.data());
  }
  static void backward(B& be, const Params&, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, Params&) {
    be.map(dy.size(), detail::ActivateBackward<F>{}, dx.data(), saved.x.data(), dy.data());
  }
  static void step(B& be, const Params&, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    be.map(x.size(), detail::Activate<F>{}, y.data(), x.data());
  }
  static void reset(B&, const Params&, State&, Mask) {}
};

}  // namespace mttt
