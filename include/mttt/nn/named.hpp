// Named: a block whose parameters and state lie one name deeper.
//
// Formula: that of Inner; Named<"model", Inner> calls its parameter "weight" "model.weight".
// Shapes:  those of Inner.   Units: those of Inner.
// Errors:  those of Inner.
// Not supported: empty names.
// Source:  the attribute names of torch modules.
#pragma once

#include "mttt/nn/residual.hpp"

namespace mttt {

/// Text as a template argument.
template <std::size_t N>
struct FixedName {
  char text[N]{};
  consteval FixedName(const char (&from)[N]) {  // NOLINT: implicit on purpose
    for (std::size_t i = 0; i < N; ++i) text[i] = from[i];
  }
  constexpr std::string_view view() const { return {text, N - 1}; }
};

template <FixedName name, class Inner>
struct Named {
  using T = typename Inner::T;
  static constexpr Index in = Inner::in, out = Inner::out, time_multiple = mttt::time_multiple<Inner>();

  template <class P>
  struct Holder {
    P inner;
    static void visit(auto&& f, auto&&... p) { f(name.view(), p.inner...); }
  };
  using Params = Holder<typename Inner::Params>;
  using Saved = typename Inner::Saved;
  using State = Holder<typename detail::StateOf<Inner>::type>;
  using Carried = Holder<typename detail::CarriedOf<Inner>::State>;
  using CarriedGradient = Holder<typename detail::CarriedOf<Inner>::Gradient>;
  static constexpr Index carry_multiple = detail::CarriedOf<Inner>::multiple;
  static Carried carried(const State& state) { return {carried_of<Inner>(state.inner)}; }

  static constexpr Index out_time(Index steps) { return mttt::out_time<Inner>(steps); }

  static void init(Params& p, Rng& rng) { Inner::init(p.inner, rng); }

  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    detail::forward_carried<Inner>(
        be, p.inner, x, y, saved,
        detail::part_of<typename detail::CarriedOf<Inner>::State>(carry, OfInner{}));
  }
  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    detail::backward_carried<Inner>(
        be, p.inner, saved, dy, dx, grad.inner,
        detail::gradient_part_of<typename detail::CarriedOf<Inner>::Gradient>(carry, OfInner{}));
  }
  template <class B>
  requires Streamable<Inner, B>
  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    Inner::step(be, p.inner, state.inner, x, y, mask);
  }
  template <class B>
  requires Streamable<Inner, B>
  static void reset(B& be, const Params& p, State& state, Mask mask) {
    Inner::reset(be, p.inner, state.inner, mask);
  }

 private:
  struct OfInner {
    auto& operator()(auto& carried) const { return carried.inner; }
  };
};

}  // namespace mttt
