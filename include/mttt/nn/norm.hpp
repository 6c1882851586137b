// RmsNorm and LayerNorm: every row of channels brought to unit size, then scaled by learned weights.
//
// Formula: RmsNorm    y = x * alpha * r,  r = 1 / sqrt(mean(x^2) + eps)
//          LayerNorm  y = n * weight + bias,  n = (x - mean) * r,  r = 1 / sqrt(var(x) + eps), var biased
//          backward, with g = dy * weight:  dx = r (g - mean(g) - n mean(g n)), without mean(g) for RmsNorm
// Shapes:  x, y (B, T, dim); alpha (1, 1, dim) as published; weight, bias (dim).
// Units:   none.
// Errors:  none.
// Not supported: norms over more than the last extent.
// Source:  Zhang & Sennrich 2019 and kyutai-labs/moshi modules/transformer.py `RMSNorm`; torch.nn.LayerNorm.
#pragma once

#include <cmath>

#include "mttt/backend/fused.hpp"
#include "mttt/core/concepts.hpp"
#include "mttt/nn/linear.hpp"

namespace mttt {

struct NormConfig {
  Index dim;
  double eps = 1e-5;
};

namespace detail {

/// One row: y = (x - mean) * r * weight + bias, leaving mean (if Centred) and r for the way back.
template <class T, class A, bool Centred>
struct Normalise {
  const T *x, *weight, *bias;  // bias null without one
  T* y;
  A *mean, *r;  // (rows); mean null unless Centred; both null when nothing is kept
  Index dim;
  A eps;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *in = x + row * dim, *w = weight, *shift = bias;
    T* out = y + row * dim;
    A m = 0;
    if constexpr (Centred)
      m = team.template sum<A>(
              dim, [](A v) { return v; }, in) /
          static_cast<A>(dim);
    const A square = team.template sum<A>(
        dim, [=](A v) { return (v - m) * (v - m); }, in);
    const A scale = A(1) / std::sqrt(square / static_cast<A>(dim) + eps);
    if (shift != nullptr) {
      team.map(
          dim, [=](A v, A weight_i, A bias_i) { return (v - m) * scale * weight_i + bias_i; }, out, in, w,
          shift);
    } else {
      team.map(
          dim, [=](A v, A weight_i) { return (v - m) * scale * weight_i; }, out, in, w);
    }
    if (mean != nullptr && team.leader()) mean[row] = m;
    if (r != nullptr && team.leader()) r[row] = scale;
  }
};

template <class T, class A, bool Centred>
struct NormaliseBackward {
  const T *x, *weight, *dy;
  const A *mean, *r;
  T* dx;
  Index dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *in = x + row * dim, *w = weight, *up = dy + row * dim;
    T* out = dx + row * dim;
    const A scale = r[row], width = static_cast<A>(dim);
    const A m = Centred ? mean[row] : A(0);
    A g_mean = 0;
    if constexpr (Centred) {
      g_mean = team.template sum<A>(
                   dim, [](A d, A weight_i) { return d * weight_i; }, up, w) /
               width;
    }
    const A gn_mean =
        team.template sum<A>(
            dim, [=](A v, A d, A weight_i) { return d * weight_i * ((v - m) * scale); }, in, up, w) /
        width;
    team.map(
        dim,
        [=](A v, A d, A weight_i) { return scale * (d * weight_i - g_mean - (v - m) * scale * gn_mean); },
        out, in, up, w);
  }
};

}  // namespace detail

template <NormConfig C, class B>
struct RmsNorm {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr Index in = C.dim, out = C.dim;

  struct Params {
    Tensor<T, 1, 1, C.dim> alpha;
    static void visit(auto&& f, auto&&... p) { f("alpha", p.alpha...); }
  };
  struct Saved {
    Sequence<const T, in> x;
    Tensor<A, dyn> r;  // (B * T)
  };
  using State = NoState;

  static void init(Params& p, Rng&) { init_constant(p.alpha, 1.0); }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    saved = {x, be.template make<A, dyn>(x.flat_rows().extent(0))};
    apply(be, p, x, y, saved.r.data());
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const Index rows = dy.flat_rows().extent(0);
    const T* x = saved.x.data();
    be.rows(rows,
            detail::NormaliseBackward<T, A, false>{x, p.alpha.data(), dy.data(), nullptr, saved.r.data(),
                                                   dx.data(), C.dim},
            0, 4 * C.dim);
    sum_product_columns(be, dy.data(), x, nullptr, saved.r.data(), grad.alpha.data(), rows, C.dim);
  }

  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    apply(be, p, x, y, nullptr);
  }
  static void reset(B&, const Params&, State&, Mask) {}
  /// For a product that norms the rows it reads.
  static NormRows<T> rows(const Params& p) { return {p.alpha.data(), nullptr, C.eps}; }

 private:
  static void apply(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, A* r) {
    be.rows(x.flat_rows().extent(0),
            detail::Normalise<T, A, false>{x.data(), p.alpha.data(), nullptr, y.data(), nullptr, r, C.dim,
                                           static_cast<A>(C.eps)},
            0, 3 * C.dim);
  }
};

template <NormConfig C, class B>
struct LayerNorm {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr Index in = C.dim, out = C.dim;

  struct Params {
    Tensor<T, C.dim> weight, bias;
    static void visit(auto&& f, auto&&... p) {
      f("weight", p.weight...);
      f("bias", p.bias...);
    }
  };
  struct Saved {
    Sequence<const T, in> x;
    Tensor<A, dyn> mean, r;  // (B * T)
  };
  using State = NoState;

  static void init(Params& p, Rng&) {
    init_constant(p.weight, 1.0);
    init_constant(p.bias, 0.0);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const Index rows = x.flat_rows().extent(0);
    saved = {x, be.template make<A, dyn>(rows), be.template make<A, dyn>(rows)};
    apply(be, p, x, y, saved.mean.data(), saved.r.data());
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const Index rows = dy.flat_rows().extent(0);
    const T* x = saved.x.data();
    const A *mean = saved.mean.data(), *r = saved.r.data();
    be.rows(rows,
            detail::NormaliseBackward<T, A, true>{x, p.weight.data(), dy.data(), mean, r, dx.data(), C.dim},
            0, 6 * C.dim);
    sum_product_columns(be, dy.data(), x, mean, r, grad.weight.data(), rows, C.dim);
    sum_columns(be, dy.data(), grad.bias.data(), rows, C.dim);
  }

  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    apply(be, p, x, y, nullptr, nullptr);
  }
  static void reset(B&, const Params&, State&, Mask) {}

 private:
  static void apply(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, A* mean, A* r) {
    be.rows(x.flat_rows().extent(0),
            detail::Normalise<T, A, true>{x.data(), p.weight.data(), p.bias.data(), y.data(), mean, r, C.dim,
                                          static_cast<A>(C.eps)},
            0, 4 * C.dim);
  }
};

}  // namespace mttt
