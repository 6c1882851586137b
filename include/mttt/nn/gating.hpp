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
#include "mttt/nn/lora.hpp"

namespace mttt {

struct GatingConfig {
  Index dim, hidden;
  LoraConfig lora{.rank = 0};
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
  static constexpr bool adapted = C.lora.rank > 0;
  using In = WithLora<C.lora, Linear<LinearConfig{.in = in, .out = 2 * hidden}, B>>;
  using Out = WithLora<C.lora, Linear<LinearConfig{.in = hidden, .out = out}, B>>;

  struct Params {
    typename In::Params linear_in;
    typename Out::Params linear_out;
    static void visit(auto&& f, auto&&... p) {
      f("linear_in", p.linear_in...);
      f("linear_out", p.linear_out...);
    }
  };
  struct Saved {
    typename In::Saved in;
    Sequence<const T, 2 * hidden> h;
    typename Out::Saved out;  // but its x, which is g: cheap to make again, and as large as half of h
  };
  using State = NoState;

  static void init(Params& p, Rng& rng) {
    In::init(p.linear_in, rng);
    Out::init(p.linear_out, rng);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const auto h = be.template make<T, dyn, dyn, 2 * hidden>(x.extent(0), x.extent(1));
    In::forward(be, p.linear_in, x, h, saved.in);
    saved.h = h;
    const auto low = Out::make_low(be, x.extent(0), x.extent(1));  // outlives g
    const auto scope = be.scope();
    Out::forward(be, p.linear_out, gate(be, h), y, saved.out, low);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const auto dg = be.template make<T, dyn, dyn, hidden>(dy.extent(0), dy.extent(1));
    const auto dh = be.template make<T, dyn, dyn, 2 * hidden>(dy.extent(0), dy.extent(1));
    const auto low = Out::input_backward(be, p.linear_out, dy, dg.matrix());
    be.rows(dy.flat_rows().extent(0),
            detail::GateRowBackward<Silu, T>{saved.h.data(), dg.data(), dh.data(), hidden}, 0, 40 * hidden);
    Out::weight_backward(be, saved.out, dg, dy, low, grad.linear_out);  // dg holds g by now
    In::backward(be, p.linear_in, saved.in, dh, dx, grad.linear_in);
  }

  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    const auto scope = be.scope();
    const auto h = be.template make<T, dyn, dyn, 2 * hidden>(x.extent(0), x.extent(1));
    NoState none;
    In::step(be, p.linear_in, none, x, h, Mask{});
    Out::step(be, p.linear_out, none, gate(be, h), y, Mask{});
  }
  static void reset(B&, const Params&, State&, Mask) {}

  /// y = x + step(norm(x)), on a backend with product_step.
  static void residual_step(B& be, const Params& p, NormRows<T> norm, Sequence<const T, in> x,
                            Sequence<T, out> y) requires(!adapted) {
    const auto scope = be.scope();
    const auto g = be.template make<T, dyn, dyn, hidden>(x.extent(0), x.extent(1));
    if (!be.template gated_step<Silu>(x.matrix(), norm, p.linear_in.weight.matrix(), g.matrix())) {
      const auto h = be.template make<T, dyn, dyn, 2 * hidden>(x.extent(0), x.extent(1));
      be.template product_step<Identity>(x.matrix(), norm, p.linear_in.weight.matrix(), h.matrix());
      be.rows(x.flat_rows().extent(0), detail::GateRow<Silu, T>{h.data(), g.data(), hidden}, 0, 20 * hidden);
    }
    be.template product_step<Identity>(g.matrix(), {}, p.linear_out.weight.matrix(), y.matrix(),
                                       {.addend = x.data()});
  }

 private:
  static Sequence<T, hidden> gate(B& be, Sequence<T, 2 * hidden> h) {
    const auto g = be.template make<T, dyn, dyn, hidden>(h.extent(0), h.extent(1));
    be.rows(h.flat_rows().extent(0), detail::GateRow<Silu, T>{h.data(), g.data(), hidden}, 0, 20 * hidden);
    return g;
  }
};

}  // namespace mttt
