// Sequential and Repeat: blocks one after the other, each feeding the next.
//
// Formula: y = f_n(... f_1(f_0(x))).
// Shapes:  x (B, T, in of the first), y (B, out_time(T), out of the last); blocks may change the number of
//          steps. Parameters are named "0", "1", ... by position; a block without weights keeps its number.
// Units:   none.
// Errors:  static_assert when a block does not take the channels that the one before it gives, or when a
//          repeated block changes the shape.
// Not supported: a number of blocks that is known at run time only.
// Source:  torch.nn.Sequential, torch.nn.ModuleList (names).
#pragma once

#include <algorithm>
#include <array>
#include <tuple>
#include <type_traits>
#include <utility>

#include "mttt/nn/residual.hpp"

namespace mttt {

namespace detail {

template <class... Blocks>
consteval bool channels_chain() {
  const Index in[]{Blocks::in...}, out[]{Blocks::out...};
  for (std::size_t i = 1; i < sizeof...(Blocks); ++i) {
    if (in[i] != out[i - 1]) return false;
  }
  return true;
}

/// Whether `Next` takes the activation that `Block` is on its way in.
template <class Block, class Next, class B>
consteval bool takes_activation() {
  if constexpr (requires { typename Block::Function; }) {
    return JoinsActivation<Next, typename Block::Function, B>;
  } else {
    return false;
  }
}

/// The least number of steps that every block of the chain can take; or, that it can carry its state after.
template <bool carrying, class... Blocks>
consteval Index least_multiple() {
  for (Index multiple = 1;; ++multiple) {
    Index steps = multiple;
    const bool fits = ((steps % mttt::time_multiple<Blocks>() == 0 &&
                        (!carrying || steps % CarriedOf<Blocks>::multiple == 0) &&
                        ((steps = mttt::out_time<Blocks>(steps)), true)) &&
                       ...);
    if (fits) return multiple;
  }
}

}  // namespace detail

template <class... Blocks>
struct Sequential {
  static_assert(sizeof...(Blocks) > 0, "Sequential: needs at least one block");
  static_assert(detail::channels_chain<Blocks...>(),
                "Sequential: each block must take as many channels as the block before it gives");

  static constexpr std::size_t count = sizeof...(Blocks);
  template <std::size_t I>
  using Block = std::tuple_element_t<I, std::tuple<Blocks...>>;

  using T = typename Block<0>::T;
  static constexpr Index in = Block<0>::in, out = Block<count - 1>::out,
                         time_multiple = detail::least_multiple<false, Blocks...>();

  struct Params {
    std::tuple<typename Blocks::Params...> parts;
    static void visit(auto&& f, auto&&... p) { f("", p.parts...); }
  };
  struct Saved {
    std::tuple<typename Blocks::Saved...> parts;
  };
  struct State {
    std::tuple<typename detail::StateOf<Blocks>::type...> parts;
    static void visit(auto&& f, auto&&... s) { f("", s.parts...); }
  };
  struct Carried {
    std::tuple<typename detail::CarriedOf<Blocks>::State...> parts;
    static void visit(auto&& f, auto&&... s) { f("", s.parts...); }
  };
  struct CarriedGradient {
    std::tuple<typename detail::CarriedOf<Blocks>::Gradient...> parts;
    static void visit(auto&& f, auto&&... s) { f("", s.parts...); }
  };
  static constexpr Index carry_multiple = detail::least_multiple<true, Blocks...>();
  static Carried carried(const State& state) {
    const auto each = [&]<std::size_t... I>(std::index_sequence<I...>) {
      return Carried{{carried_of<Blocks>(std::get<I>(state.parts))...}};
    };
    return each(std::make_index_sequence<count>{});
  }

  static constexpr Index out_time(Index steps) {
    ((steps = mttt::out_time<Blocks>(steps)), ...);
    return steps;
  }

  static void init(Params& p, Rng& rng) {
    const auto each = [&]<std::size_t... I>(std::index_sequence<I...>) {
      (Block<I>::init(std::get<I>(p.parts), rng), ...);
    };
    each(std::make_index_sequence<count>{});
  }

  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    forward_from<0>(be, p, x, y, saved, carry);
  }

  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    const auto scope = be.scope();
    const Stages stages = make_stages(be, dx.extent(0), dx.extent(1));
    backward_from<count - 1>(be, p, saved, dy, dx, grad, stages, carry);
  }

  template <class B>
  requires(Streamable<Blocks, B>&&...) static void step(B& be, const Params& p, State& state,
                                                        Sequence<const T, in> x, Sequence<T, out> y,
                                                        Mask mask) {
    const auto scope = be.scope();
    const Stages stages = make_stages(be, x.extent(0), x.extent(1));
    step_from<0, 0>(be, p, state, x, y, mask, stages, nullptr);
  }
  /// The step plus `addend`, where the last block adds it on its way out.
  template <class F, class B>
  requires(std::is_same_v<F, Identity>&& JoinsSum<Block<count - 1>, F, B>) static void step_joined(
      B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y, Mask mask,
      const T* addend) {
    const auto scope = be.scope();
    const Stages stages = make_stages(be, x.extent(0), x.extent(1));
    step_from<0, 0>(be, p, state, x, y, mask, stages, addend);
  }
  template <class B>
  requires(Streamable<Blocks, B>&&...) static void reset(B& be, const Params& p, State& state, Mask mask) {
    const auto each = [&]<std::size_t... I>(std::index_sequence<I...>) {
      (Block<I>::reset(be, std::get<I>(p.parts), std::get<I>(state.parts), mask), ...);
    };
    each(std::make_index_sequence<count>{});
  }

 private:
  /// What passes between the blocks when nothing of it is kept: two buffers, taken in turn.
  struct Stages {
    Index batch;
    std::array<Index, count> steps;  // that each block takes
    std::array<T*, 2> buffers;

    template <std::size_t I>
    Sequence<T, Block<I>::in> input(std::size_t turn = I % 2) const {
      return {buffers[turn], {batch, steps[I], Block<I>::in}};
    }
  };

  template <class B>
  static Stages make_stages(B& be, Index batch, Index steps) {
    Stages stages{batch, {}, {}};
    constexpr std::array<Index, count> widths{Blocks::in...};
    std::size_t i = 0;
    ((stages.steps[i++] = steps, steps = mttt::out_time<Blocks>(steps)), ...);
    Index largest = 0;
    for (i = 1; i < count; ++i) largest = std::max(largest, batch * stages.steps[i] * widths[i]);
    for (T*& buffer : stages.buffers) buffer = be.template make<T, dyn>(largest).data();
    return stages;
  }

  template <std::size_t I>
  struct Part {
    auto& operator()(auto& all) const { return std::get<I>(all.parts); }
  };

  template <std::size_t I, class B>
  static void forward_from(B& be, const Params& p, Sequence<const T, Block<I>::in> x, Sequence<T, out> y,
                           Saved& saved, const Carry<Carried>& carry) {
    const auto own = detail::part_of<typename detail::CarriedOf<Block<I>>::State>(carry, Part<I>{});
    if constexpr (I + 1 == count) {
      detail::forward_carried<Block<I>>(be, std::get<I>(p.parts), x, y, std::get<I>(saved.parts), own);
    } else {
      const auto h =
          be.template make<T, dyn, dyn, Block<I>::out>(x.extent(0), mttt::out_time<Block<I>>(x.extent(1)));
      detail::forward_carried<Block<I>>(be, std::get<I>(p.parts), x, h, std::get<I>(saved.parts), own);
      forward_from<I + 1>(be, p, h, y, saved, carry);
    }
  }

  template <std::size_t I, class B>
  static void backward_from(B& be, const Params& p, const Saved& saved, Sequence<const T, Block<I>::out> dy,
                            Sequence<T, in> dx, auto& grad, const Stages& stages,
                            const CarryGradient<CarriedGradient>& carry) {
    const auto& part = std::get<I>(saved.parts);
    const auto own =
        detail::gradient_part_of<typename detail::CarriedOf<Block<I>>::Gradient>(carry, Part<I>{});
    if constexpr (I == 0) {
      detail::backward_carried<Block<0>>(be, std::get<0>(p.parts), part, dy, dx, std::get<0>(grad.parts),
                                         own);
    } else {
      const auto dh = stages.template input<I>();
      detail::backward_carried<Block<I>>(be, std::get<I>(p.parts), part, dy, dh, std::get<I>(grad.parts),
                                         own);
      backward_from<I - 1>(be, p, saved, dh, dx, grad, stages, carry);
    }
  }

  template <std::size_t I, class B>
  static consteval bool pairs() {
    constexpr std::size_t next = I + 1 == count ? I : I + 1;
    return next != I && detail::takes_activation<Block<I>, Block<next>, B>();
  }
  /// Block I and those behind it; their outputs take turns in the two buffers.
  template <std::size_t I, std::size_t turn, class B>
  static void step_from(B& be, const Params& p, State& state, Sequence<const T, Block<I>::in> x,
                        Sequence<T, out> y, Mask mask, const Stages& stages, const T* addend) {
    if constexpr (pairs<I, B>()) {
      step_block<I + 1, turn, typename Block<I>::Function>(be, p, state, x, y, mask, stages, addend);
    } else {
      step_block<I, turn, Identity>(be, p, state, x, y, mask, stages, addend);
    }
  }
  template <std::size_t I, std::size_t turn, class F, class B>
  static void step_block(B& be, const Params& p, State& state, Sequence<const T, Block<I>::in> x,
                         Sequence<T, out> y, Mask mask, const Stages& stages, const T* addend) {
    const auto& part = std::get<I>(p.parts);
    auto& own = std::get<I>(state.parts);
    if constexpr (I + 1 < count) {
      const auto h = stages.template input<I + 1>(turn);
      if constexpr (std::is_same_v<F, Identity>) {
        Block<I>::step(be, part, own, x, h, mask);
      } else {
        Block<I>::template step_joined<F>(be, part, own, x, h, mask);
      }
      step_from<I + 1, 1 - turn>(be, p, state, h, y, mask, stages, addend);
    } else if constexpr (JoinsSum<Block<I>, F, B>) {
      Block<I>::template step_joined<F>(be, part, own, x, y, mask, addend);
    } else if constexpr (std::is_same_v<F, Identity>) {
      Block<I>::step(be, part, own, x, y, mask);
    } else {
      Block<I>::template step_joined<F>(be, part, own, x, y, mask);
    }
  }
};

/// N blocks of one type in a row, each with its own weights.
template <Index N, class Block>
struct Repeat {
  static_assert(N > 0, "Repeat: needs at least one block");
  static_assert(detail::keeps_shape<Block>,
                "Repeat: the block must give as many channels and steps as it takes");

  using T = typename Block::T;
  static constexpr Index in = Block::in, out = Block::out, time_multiple = mttt::time_multiple<Block>();

  template <class P>
  struct Parts {
    std::array<P, N> parts;
    static void visit(auto&& f, auto&&... p) { f("", p.parts...); }
  };
  using Params = Parts<typename Block::Params>;
  using State = Parts<typename detail::StateOf<Block>::type>;
  using Carried = Parts<typename detail::CarriedOf<Block>::State>;
  using CarriedGradient = Parts<typename detail::CarriedOf<Block>::Gradient>;
  static constexpr Index carry_multiple = detail::CarriedOf<Block>::multiple;
  static Carried carried(const State& state) {
    Carried all;
    for (std::size_t i = 0; i < N; ++i) all.parts[i] = carried_of<Block>(state.parts[i]);
    return all;
  }
  struct Saved {
    std::array<typename Block::Saved, N> parts;
  };

  static void init(Params& p, Rng& rng) {
    for (auto& part : p.parts) Block::init(part, rng);
  }

  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    for (std::size_t i = 0; i < N; ++i) {
      const auto h = i + 1 == N ? y : be.template make<T, dyn, dyn, out>(x.extent(0), x.extent(1));
      const auto own = detail::part_of<typename detail::CarriedOf<Block>::State>(carry, Part{i});
      detail::forward_carried<Block>(be, p.parts[i], x, h, saved.parts[i], own);
      x = h;
    }
  }

  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    const auto scope = be.scope();
    const auto buffers = make_buffers(be, dx);
    for (std::size_t i = N; i-- > 0;) {
      const auto dh = i == 0 ? dx : buffers[i % 2];
      const auto own = detail::gradient_part_of<typename detail::CarriedOf<Block>::Gradient>(carry, Part{i});
      detail::backward_carried<Block>(be, p.parts[i], saved.parts[i], dy, dh, grad.parts[i], own);
      dy = dh;
    }
  }

  template <class B>
  requires Streamable<Block, B>
  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    const auto scope = be.scope();
    const auto buffers = make_buffers(be, y);
    for (std::size_t i = 0; i < N; ++i) {
      const auto h = i + 1 == N ? y : buffers[i % 2];
      Block::step(be, p.parts[i], state.parts[i], x, h, mask);
      x = h;
    }
  }
  template <class B>
  requires Streamable<Block, B>
  static void reset(B& be, const Params& p, State& state, Mask mask) {
    for (std::size_t i = 0; i < N; ++i) Block::reset(be, p.parts[i], state.parts[i], mask);
  }

 private:
  struct Part {
    std::size_t i;
    auto& operator()(auto& all) const { return all.parts[i]; }
  };

  template <class B>
  static std::array<Sequence<T, in>, 2> make_buffers(B& be, Sequence<T, in> like) {
    if (N == 1) return {};
    return {be.template make<T, dyn, dyn, in>(like.extent(0), like.extent(1)),
            be.template make<T, dyn, dyn, in>(like.extent(0), like.extent(1))};
  }
};

}  // namespace mttt
