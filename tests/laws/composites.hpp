// Two blocks that change the number of steps, for the tests of composites.
#pragma once

#include "mttt/core/concepts.hpp"
#include "mttt/nn/elementwise.hpp"

namespace mttt::testing {

/// Takes `Factor` steps for one of `Factor` times the channels: the memory does not change.
template <Index Channels, Index Factor, class B>
struct Fold {
  using T = typename B::Scalar;
  static constexpr Index in = Channels, out = Channels * Factor, time_multiple = Factor;
  using Params = NoParams;
  struct Saved {};
  using State = NoState;
  static constexpr Index out_time(Index steps) { return steps / Factor; }
  static void init(Params&, Rng&) {}
  static void forward(B& be, const Params&, Sequence<const T, in> x, Sequence<T, out> y, Saved&) {
    be.copy(x.data(), y.data(), y.size());
  }
  static void backward(B& be, const Params&, const Saved&, Sequence<const T, out> dy, Sequence<T, in> dx,
                       Params&) {
    be.copy(dy.data(), dx.data(), dx.size());
  }
  static void step(B& be, const Params&, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    be.copy(x.data(), y.data(), y.size());
  }
  static void reset(B&, const Params&, State&, Mask) {}
};

/// One step becomes `Factor` of a part of the channels each.
template <Index Channels, Index Factor, class B>
struct Unfold {
  using T = typename B::Scalar;
  static constexpr Index in = Channels, out = Channels / Factor;
  using Params = NoParams;
  struct Saved {};
  using State = NoState;
  static constexpr Index out_time(Index steps) { return steps * Factor; }
  static void init(Params&, Rng&) {}
  static void forward(B& be, const Params&, Sequence<const T, in> x, Sequence<T, out> y, Saved&) {
    be.copy(x.data(), y.data(), y.size());
  }
  static void backward(B& be, const Params&, const Saved&, Sequence<const T, out> dy, Sequence<T, in> dx,
                       Params&) {
    be.copy(dy.data(), dx.data(), dx.size());
  }
  static void step(B& be, const Params&, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    be.copy(x.data(), y.data(), y.size());
  }
  static void reset(B&, const Params&, State&, Mask) {}
};

}  // namespace mttt::testing
