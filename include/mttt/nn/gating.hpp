// SiluGating: the gated feed-forward of the temporal transformer and the depformer.
//
// Formula: [a | b] = x linear_in^T,  g = silu(a) * b,  y = g linear_out^T
//          backward, with dg = dy linear_out:  da = dg * b * silu'(a),  db = dg * silu(a)
// Shapes:  x, y (B, T, dim); linear_in (2 hidden, dim), rows a | b; linear_out (dim, hidden).
// Units:   none.
// Errors:  none.
// Not supported: biases; gates other than SiLU.
// Source:  Shazeer 2020 (arXiv 2002.05202); kyutai-labs/moshi modules/gating.py `ActivationGating`.
#pragma once

#include <cmath>

#include "mttt/backend/fused.hpp"
#include "mttt/core/concepts.hpp"
#include "mttt/math/scalar.hpp"
#include "mttt/nn/linear.hpp"

namespace mttt {

struct GatingConfig {
  Index dim, hidden;
};

/// The hidden width that published configurations mean by `dim_feedforward`: about two thirds of it, so that
/// the three matrices weigh what two did without a gate.
consteval Index gating_hidden(Index dim, Index dim_feedforward) {
  return dim_feedforward == 4 * dim ? 21 * dim / 8 : 2 * dim_feedforward / 3;
}

namespace detail {

/// One row: g = F(a) * b of h = [a | b].
template <class F, class T>
struct GateRow {
  const T* h;
  T* g;
  Index hidden;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *a = h + row * 2 * hidden, *b = a + hidden;
    T* to = g + row * hidden;
    team.map(
        hidden, [](auto x, auto other) { return F::f(x) * other; }, to, a, b);
  }
};

/// One row of dh = [da | db]; dg is overwritten by g itself, which the gradient of linear_out needs.
template <class F, class T>
struct GateRowBackward {
  const T* h;
  T *dg_to_g, *dh;
  Index hidden;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *a = h + row * 2 * hidden, *b = a + hidden;
    T *g = dg_to_g + row * hidden, *da = dh + row * 2 * hidden, *db = da + hidden;
    team.map(
        hidden, [](auto x, auto other, auto up) { return up * other * F::df(x); }, da, a, b, g);
    team.map(
        hidden, [](auto x, auto up) { return up * F::f(x); }, db, a, g);
    team.map(
        hidden, [](auto x, auto other) { return F::f(x) * other; }, g, a, b);
  }
};

}  // namespace detail

template <GatingConfig C, class B>
struct SiluGating {
  using T = typename B::Scalar;
  static constexpr Index in = C.dim, out = C.dim, hidden = C.hidden;

  struct Params {
    Weight<B, 2 * hidden, in> linear_in;
    Weight<B, out, hidden> linear_out;
    static void visit(auto&& f, auto&&... p) {
      f("linear_in.weight", p.linear_in...);
      f("linear_out.weight", p.linear_out...);
    }
  };
  struct Saved {
    Sequence<const T, in> x;
    Sequence<const T, 2 * hidden> h;  // g is cheap to make again, and as large as half of h
  };
  using State = NoState;

  static void init(Params& p, Rng& rng) {
    init_truncated_normal(p.linear_in, 1.0 / std::sqrt(static_cast<double>(in)), rng);
    init_truncated_normal(p.linear_out, 1.0 / std::sqrt(static_cast<double>(hidden)), rng);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const auto h = be.template make<T, dyn, dyn, 2 * hidden>(x.extent(0), x.extent(1));
    saved = {x, h};
    apply(be, p, x, y, h);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const auto dg = be.template make<T, dyn, dyn, hidden>(dy.extent(0), dy.extent(1));
    const auto dh = be.template make<T, dyn, dyn, 2 * hidden>(dy.extent(0), dy.extent(1));
    be.matmul(dy.matrix(), p.linear_out.matrix(), dg.matrix());
    be.rows(dy.flat_rows().extent(0),
            detail::GateRowBackward<Silu, T>{saved.h.data(), dg.data(), dh.data(), hidden}, 0, 40 * hidden);
    be.matmul(dy.matrix().t(), dg.matrix(), grad.linear_out.matrix(), 1, 1);  // dg holds g by now
    be.matmul(dh.matrix(), p.linear_in.matrix(), dx.matrix());
    be.matmul(dh.matrix().t(), saved.x.matrix(), grad.linear_in.matrix(), 1, 1);
  }

  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    const auto scope = be.scope();
    apply(be, p, x, y, be.template make<T, dyn, dyn, 2 * hidden>(x.extent(0), x.extent(1)));
  }
  static void reset(B&, const Params&, State&, Mask) {}

  /// y = x + step(norm(x)), on a backend with product_step.
  static void residual_step(B& be, const Params& p, NormRows<T> norm, Sequence<const T, in> x,
                            Sequence<T, out> y) {
    const auto scope = be.scope();
    const auto g = be.template make<T, dyn, dyn, hidden>(x.extent(0), x.extent(1));
    if (!be.template gated_step<Silu>(x.matrix(), norm, p.linear_in.matrix(), g.matrix())) {
      const auto h = be.template make<T, dyn, dyn, 2 * hidden>(x.extent(0), x.extent(1));
      be.template product_step<Identity>(x.matrix(), norm, p.linear_in.matrix(), h.matrix());
      be.rows(x.flat_rows().extent(0), detail::GateRow<Silu, T>{h.data(), g.data(), hidden}, 0, 20 * hidden);
    }
    be.template product_step<Identity>(g.matrix(), {}, p.linear_out.matrix(), y.matrix(),
                                       {.addend = x.data()});
  }

 private:
  static void apply(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y,
                    Sequence<T, 2 * hidden> h) {
    const auto scope = be.scope();
    const auto g = be.template make<T, dyn, dyn, hidden>(x.extent(0), x.extent(1));
    be.matmul(x.matrix(), p.linear_in.matrix().t(), h.matrix());
    be.rows(x.flat_rows().extent(0), detail::GateRow<Silu, T>{h.data(), g.data(), hidden}, 0, 20 * hidden);
    be.matmul(g.matrix(), p.linear_out.matrix().t(), y.matrix());
  }
};

}  // namespace mttt
