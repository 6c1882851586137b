// Residual: a block around which the input passes unchanged.
//
// Formula: y = x + f(x);  dx = dy + df/dx^T dy.
// Shapes:  x, y (B, T, C).
// Units:   none.
// Errors:  static_assert on a block whose output is not shaped as its input.
// Not supported: a projection on the shortcut.
// Source:  He et al. 2015 (arXiv 1512.03385).
#pragma once

#include "mttt/backend/fused.hpp"
#include "mttt/core/carry.hpp"
#include "mttt/nn/elementwise.hpp"

namespace mttt {

namespace detail {

/// A block's State; none for a block that cannot be streamed and declares none.
template <class Block>
struct StateOf {
  using type = NoState;
};
template <class Block>
requires requires { typename Block::State; }
struct StateOf<Block> {
  using type = typename Block::State;
};

template <class Block>
inline constexpr bool keeps_shape =
    Block::in == Block::out&& mttt::out_time<Block>(time_multiple<Block>()) == time_multiple<Block>();

}  // namespace detail

/// The block applies an activation F that stands before it on its way in: step_joined<F>(be, ..., mask).
template <class Block, class F, class B>
concept JoinsActivation = requires(B& be, const typename Block::Params& p,
                                   typename detail::StateOf<Block>::type& state,
                                   Sequence<const typename Block::T, Block::in> x,
                                   Sequence<typename Block::T, Block::out> y, Mask mask) {
  Block::template step_joined<F>(be, p, state, x, y, mask);
};
/// It also adds something to what it gives: step_joined<F>(be, ..., mask, addend).
template <class Block, class F, class B>
concept JoinsSum = requires(B& be, const typename Block::Params& p,
                            typename detail::StateOf<Block>::type& state,
                            Sequence<const typename Block::T, Block::in> x,
                            Sequence<typename Block::T, Block::out> y, Mask mask,
                            const typename Block::T* addend) {
  Block::template step_joined<F>(be, p, state, x, y, mask, addend);
};

/// Has the parameter names of Inner.
template <class Inner>
struct Residual {
  static_assert(detail::keeps_shape<Inner>,
                "Residual: the inner block must give as many channels and steps as it takes");

  using T = typename Inner::T;
  static constexpr Index in = Inner::in, out = Inner::out, time_multiple = mttt::time_multiple<Inner>();

  using Params = typename Inner::Params;
  using Saved = typename Inner::Saved;
  using State = typename detail::StateOf<Inner>::type;
  using Carried = typename detail::CarriedOf<Inner>::State;
  using CarriedGradient = typename detail::CarriedOf<Inner>::Gradient;
  static constexpr Index carry_multiple = detail::CarriedOf<Inner>::multiple;
  static Carried carried(const State& state) { return carried_of<Inner>(state); }

  static void init(Params& p, Rng& rng) { Inner::init(p, rng); }

  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    // Inner's output stays in the arena: its Saved may refer to it, and y must hold the sum.
    const auto branch = be.template make<T, dyn, dyn, out>(x.extent(0), x.extent(1));
    detail::forward_carried<Inner>(be, p, x, branch, saved, carry);
    sum<B, T>(be, x.data(), branch.data(), y.data(), y.size());
  }

  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    detail::backward_carried<Inner>(be, p, saved, dy, dx, grad, carry);
    add_to<B, T>(be, dy.data(), dx.data(), dx.size());
  }

  template <class B>
  requires Streamable<Inner, B>
  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    if constexpr (JoinsSum<Inner, Identity, B>) {
      Inner::template step_joined<Identity>(be, p, state, x, y, mask, x.data());
    } else {
      Inner::step(be, p, state, x, y, mask);
      add_to<B, T>(be, x.data(), y.data(), y.size());
    }
  }
  template <class B>
  requires Streamable<Inner, B>
  static void reset(B& be, const Params& p, State& state, Mask mask) { Inner::reset(be, p, state, mask); }
};

}  // namespace mttt
