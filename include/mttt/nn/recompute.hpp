// Recompute: a block that keeps only its input for backward and runs forward again there: memory for time.
//
// Formula: that of Inner.
// Shapes:  those of Inner.
// Units:   none.
// Errors:  none.
// Not supported: random numbers inside Inner; blocks here have none.
// Source:  Chen et al. 2016 (arXiv 1604.06174), activation checkpointing.
#pragma once

#include "mttt/nn/residual.hpp"

namespace mttt {

/// Has the parameter names of Inner. Best around a whole layer: what it holds between the passes is x, and a
/// copy of the state that was carried in.
template <class Inner>
struct Recompute {
  using T = typename Inner::T;
  static constexpr Index in = Inner::in, out = Inner::out, time_multiple = mttt::time_multiple<Inner>();
  static constexpr bool recomputes = true;

  using Params = typename Inner::Params;
  using Carried = typename detail::CarriedOf<Inner>::State;
  using CarriedGradient = typename detail::CarriedOf<Inner>::Gradient;
  static constexpr Index carry_multiple = detail::CarriedOf<Inner>::multiple;
  struct Saved {
    Sequence<const T, in> x;
    bool carried = false;
    Carried from;
    Mask continuing;
  };
  using State = typename detail::StateOf<Inner>::type;
  static Carried carried(const State& state) { return carried_of<Inner>(state); }

  static constexpr Index out_time(Index steps) { return mttt::out_time<Inner>(steps); }

  static void init(Params& p, Rng& rng) { Inner::init(p, rng); }

  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    saved.x = x;
    saved.carried = carry.from != nullptr;
    if (saved.carried) saved.from = detail::keep_state(be, *carry.from);
    saved.continuing = detail::keep(be, carry.continuing);
    const auto scope = be.scope();
    typename Inner::Saved forgotten;
    detail::forward_carried<Inner>(be, p, x, y, forgotten, carry);
  }

  /// What Inner's forward saved, in the arena.
  template <class B>
  static typename Inner::Saved again(B& be, const Params& p, const Saved& saved) {
    const auto y = be.template make<T, dyn, dyn, out>(saved.x.extent(0), out_time(saved.x.extent(1)));
    const Carry<Carried> carry{saved.carried ? &saved.from : nullptr, nullptr, saved.continuing};
    typename Inner::Saved inner;
    detail::forward_carried<Inner>(be, p, saved.x, y, inner, carry);
    return inner;
  }

  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    const auto scope = be.scope();
    const auto inner = again(be, p, saved);
    detail::backward_carried<Inner>(be, p, inner, dy, dx, grad, carry);
  }

  template <class B>
  requires Streamable<Inner, B>
  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask, auto... more) {
    Inner::step(be, p, state, x, y, mask, more...);
  }
  template <class B>
  requires Streamable<Inner, B>
  static void reset(B& be, const Params& p, State& state, Mask mask) { Inner::reset(be, p, state, mask); }
};

}  // namespace mttt
