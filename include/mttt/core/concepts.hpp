// What a block is: the concepts that composites, the trainer and the streamer ask for.
//
// A block is a struct of four aggregates and a handful of static functions (see docs/adding-a-block.md):
//   Params  its weights                                        visit(f, p...)
//   Saved   what backward needs                                views into the arena, filled by forward
//   State   what the next frame needs, one row a session       visit(f, s...)
//   init    (params, rng)
//   forward (be, params, x, y, saved)
//   backward(be, params, saved, dy, dx, grad)
//   step    (be, params, state, x, y, mask)
//   reset   (be, params, state, mask)
//
// Shapes:  x (B, T, in), y (B, out_time(T), out); `grad` accumulates, `dx` overwrites; x outlives Saved.
// Units:   none.
// Errors:  a failed concept names what is missing.
// Not supported: blocks with several inputs; such composites (depformer, Moshi, Mimi) have functions of their
//          own.
// Source:  none.
#pragma once

#include <concepts>

#include "mttt/core/rng.hpp"
#include "mttt/core/visit.hpp"

namespace mttt {

namespace detail {
struct AnyVisitor {
  template <class... T>
  void operator()(T&&...) const {}
};
}  // namespace detail

/// The block has Params that can be walked and initialised.
template <class Block>
concept HasParams = requires(typename Block::Params p, const typename Block::Params cp, Rng rng) {
  Block::Params::visit(detail::AnyVisitor{}, p);
  Block::Params::visit(detail::AnyVisitor{}, cp, p);
  Block::init(p, rng);
};

/// The block has forward and backward, with Saved between them.
template <class Block, class B>
concept Trainable = HasParams<Block> &&
    requires(B be, const typename Block::Params p, typename Block::Params grad, typename Block::Saved saved,
             Sequence<const typename B::Scalar, Block::in> x, Sequence<typename B::Scalar, Block::out> y,
             Sequence<const typename B::Scalar, Block::out> dy, Sequence<typename B::Scalar, Block::in> dx) {
  Block::forward(be, p, x, y, saved);
  Block::backward(be, p, saved, dy, dx, grad);
};

/// The block can run frame by frame: it is causal and its State is of constant size.
template <class Block, class B>
concept Streamable = HasParams<Block> &&
    requires(B be, const typename Block::Params p, typename Block::State state,
             Sequence<const typename B::Scalar, Block::in> x, Sequence<typename B::Scalar, Block::out> y,
             Mask mask) {
  Block::State::visit(detail::AnyVisitor{}, state);
  Block::step(be, p, state, x, y, mask);
  Block::reset(be, p, state, mask);
};

/// For blocks without weights, or without memory of earlier frames.
struct NoParams {
  static void visit(auto&&, auto&&...) {}
};
struct NoState {
  static void visit(auto&&, auto&&...) {}
};

/// Time steps that a block makes of `steps`: itself, unless the block resamples.
template <class Block>
constexpr Index out_time(Index steps) {
  if constexpr (requires { Block::out_time(steps); }) {
    return Block::out_time(steps);
  } else {
    return steps;
  }
}

/// Input steps must come in multiples of this (a strided convolution's stride); 1 if the block says nothing.
template <class Block>
constexpr Index time_multiple() {
  if constexpr (requires { Block::time_multiple; }) {
    return Block::time_multiple;
  } else {
    return 1;
  }
}

}  // namespace mttt
