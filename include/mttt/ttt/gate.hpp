// Gated: adds a block's output through a learned gate, so that a pretrained model starts almost as it was.
//
// Formula: y = base + tanh(alpha) * inner(x), alpha per channel; as a block, base = x.
//          Where alpha is exactly 0, y is base to the bit, whatever inner(x) is.
// Shapes:  base, x, y (B, T, dim); alpha (dim).
// Units:   none.
// Errors:  none.
// Not supported: inner blocks whose widths differ.
// Source:  "One-Minute Video Generation with Test-Time Training" (2025), section 3.1; ttt-video-dit
//          SSMGating.
#pragma once

#include <cmath>

#include "mttt/core/carry.hpp"
#include "mttt/nn/linear.hpp"

namespace mttt {

namespace detail {

/// tanh(alpha), once a channel: the rows that use it are many.
template <class T, class A>
struct GateOpening {
  const T* alpha;
  A* opening;
  MTTT_HD void operator()(Index i) const { opening[i] = std::tanh(wide(alpha[i])); }
};

/// y = base + opening t; one team a row.
template <class T, class A>
struct AddGated {
  const A* opening;
  const T *base, *t;
  T* y;
  Index width;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const A* h = opening;
    const T *b = base + row * width, *in = t + row * width;
    T* out = y + row * width;
    team.map(
        width, [](A gate, A from, A branch) { return gate == A(0) ? from : from + gate * branch; }, out, h, b,
        in);
  }
};

/// dt = opening dy
template <class T, class A>
struct AddGatedBackward {
  const A* opening;
  const T* dy;
  T* dt;
  Index width;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const A* h = opening;
    const T* up = dy + row * width;
    T* out = dt + row * width;
    team.map(width, Product{}, out, h, up);
  }
};

/// dalpha += (1 - tanh(alpha)^2) * column sums of dy t
template <class A, class G>
struct AlphaGradient {
  const A* opening;
  AddParts<A, G> sums;
  MTTT_HD void operator()(Index c) const { sums.grad[c] += (A(1) - opening[c] * opening[c]) * sums.total(c); }
};

}  // namespace detail

struct GateConfig {
  double initial_alpha = 0.1;
};

template <GateConfig C, class Inner, class B>
struct Gated {
  static_assert(Inner::in == Inner::out, "Gated: the inner block must keep the width");
  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr Index in = Inner::in, out = in, dim = in;

  struct Params {
    typename Inner::Params inner;
    Tensor<T, dim> alpha;
    static void visit(auto&& f, auto&&... p) {
      f("ttt", p.inner...);
      f("gating_alpha", p.alpha...);
    }
  };
  struct Saved {
    typename Inner::Saved inner;
    Sequence<const T, dim> base, t;  // t = inner(x)
  };
  /// Where a step leaves, for those who look, the inner block's input, the base and what is added to it before
  /// the gate, (B, T, dim) each.
  struct Tap {
    Sequence<T, dim> x, base, t;
  };
  using State = typename Inner::State;
  using Carried = typename detail::CarriedOf<Inner>::State;
  using CarriedGradient = typename detail::CarriedOf<Inner>::Gradient;
  static constexpr Index carry_multiple = detail::CarriedOf<Inner>::multiple;
  static Carried carried(const State& state) { return carried_of<Inner>(state); }

  static void init(Params& p, Rng& rng) {
    Inner::init(p.inner, rng);
    init_constant(p.alpha, C.initial_alpha);
  }

  static void forward(B& be, const Params& p, Sequence<const T, dim> x, Sequence<T, dim> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    forward_onto(be, p, x, x, y, saved, carry);
  }
  /// y = base + tanh(alpha) inner(x)
  static void forward_onto(B& be, const Params& p, Sequence<const T, dim> base, Sequence<const T, dim> x,
                           Sequence<T, dim> y, Saved& saved, const Carry<Carried>& carry = {}) {
    const auto t = be.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1));
    detail::forward_carried<Inner>(be, p.inner, x, t, saved.inner, carry);
    saved.base = base;
    saved.t = t;
    add(be, p, base, t, y);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, dim> dy,
                       Sequence<T, dim> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    backward_onto(be, p, saved, dy, dx, grad, carry);
    add_to(be, dy.data(), dx.data(), dx.size());
  }
  /// dx of the inner block's input alone; that of base is dy itself.
  static void backward_onto(B& be, const Params& p, const Saved& saved, Sequence<const T, dim> dy,
                            Sequence<T, dim> dx, auto& grad,
                            const CarryGradient<CarriedGradient>& carry = {}) {
    const auto scope = be.scope();
    const Index rows = dy.flat_rows().extent(0);
    const auto dt = be.template make<T, dyn, dyn, dim>(dy.extent(0), dy.extent(1));
    const auto h = opening(be, p);
    be.rows(rows, detail::AddGatedBackward<T, A>{h.data(), dy.data(), dt.data(), dim}, 0, 2 * dim);
    if (!left_out(grad.alpha)) {
      const auto parts = sum_column_parts(be, dy.data(), saved.t.data(), nullptr, nullptr, rows, dim);
      using G = typename decltype(grad.alpha)::value_type;
      be.for_each(dim, detail::AlphaGradient<A, G>{h.data(),
                                                   {parts.data(), grad.alpha.data(), parts.extent(0), dim}});
    }
    detail::backward_carried<Inner>(be, p.inner, saved.inner, dt, dx, grad.inner, carry);
  }

  static void step(B& be, const Params& p, State& state, Sequence<const T, dim> x, Sequence<T, dim> y,
                   Mask mask, const Tap* tap = nullptr) {
    step_onto(be, p, state, x, x, y, mask, tap);
  }
  static void step_onto(B& be, const Params& p, State& state, Sequence<const T, dim> base,
                        Sequence<const T, dim> x, Sequence<T, dim> y, Mask mask, const Tap* tap = nullptr) {
    const auto scope = be.scope();
    const auto t = be.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1));
    Inner::step(be, p.inner, state, x, t, mask);
    if (tap != nullptr) keep(be, *tap, base, x, t);
    add(be, p, base, t, y);
  }
  static void reset(B& be, const Params& p, State& state, Mask mask) {
    Inner::reset(be, p.inner, state, mask);
  }
  static void keep(B& be, const Tap& tap, Sequence<const T, dim> base, Sequence<const T, dim> x,
                   Sequence<const T, dim> t) {
    be.copy(base.data(), tap.base.data(), base.size());
    be.copy(x.data(), tap.x.data(), x.size());
    be.copy(t.data(), tap.t.data(), t.size());
  }

 private:
  static Tensor<A, dim> opening(B& be, const Params& p) {
    const auto h = be.template make<A, dim>();
    be.for_each(dim, detail::GateOpening<T, A>{p.alpha.data(), h.data()});
    return h;
  }
  static void add(B& be, const Params& p, Sequence<const T, dim> base, Sequence<const T, dim> t,
                  Sequence<T, dim> y) {
    be.rows(y.flat_rows().extent(0),
            detail::AddGated<T, A>{opening(be, p).data(), base.data(), t.data(), y.data(), dim}, 0, 2 * dim);
  }
};

}  // namespace mttt
