// Carry: what links a segment of a long recording to those before and after it, in training.
//
// A recording too long for one pass is cut into segments. `forward` of a block that carries takes a Carry as
// its last argument: the state to start from and where to leave the state after the segment. `backward`,
// called for the segments in reverse, takes a CarryGradient: the gradient of the state that the segment left,
// and where to put that of the state which it started from. Without one, the gradient ends at the segment's
// borders.
//
// A block that carries declares
//   Carried          what forward hands on: a State of the block, or that part of it that segments need
//   CarriedGradient  its gradient
//   carry_multiple   steps: a segment that others follow has a multiple of them
// and, where Carried is but a part of State, carried(state), which gives that part of one, in place: what
// carried_of calls.
//
// Formula: (y_1, S_1) = forward(x_1, S_0),  (y_2, S_2) = forward(x_2, S_1), ... equals forward(x_1 x_2 ...).
// Shapes:  Carried, CarriedGradient: as State, a row a session.
// Units:   steps.
// Errors:  check_carry refuses states of another number of sessions, and those that end inside of a unit.
// Not supported: gradients through what a block's Carried leaves out (attention: its window starts anew with
//          every segment).
// Source:  truncated back-propagation through time: Williams and Peng 1990.
#pragma once

#include <string>
#include <vector>

#include "mttt/core/concepts.hpp"

namespace mttt {

template <class S>
struct Carry {
  const S* from = nullptr;  // the state to start from; null: all sessions start anew
  const S* to = nullptr;    // receives the state after the segment; null: nobody goes on. It may be *from
  Mask continuing = {};     // the sessions that start from *from; the others start anew
};

template <class G>
struct CarryGradient {
  const G* to = nullptr;  // of the state that the segment left; null: 0
  const G* from =
      nullptr;  // overwritten with that of the state it started from; null: not wanted. It may be *to
};

template <class Block>
concept Carries = requires {
  typename Block::Carried;
  typename Block::CarriedGradient;
  Block::carry_multiple;
};

namespace detail {

/// What composites declare: the part's types, or nothing.
template <class Block>
struct CarriedOf {
  using State = NoState;
  using Gradient = NoState;
  static constexpr Index multiple = 1;
};
template <Carries Block>
struct CarriedOf<Block> {
  using State = typename Block::Carried;
  using Gradient = typename Block::CarriedGradient;
  static constexpr Index multiple = Block::carry_multiple;
};

/// forward and backward of a part that carries, or does not.
template <class Block>
void forward_carried(auto& be, const auto& p, auto x, auto y, auto& saved, const auto& carry) {
  if constexpr (Carries<Block>) {
    Block::forward(be, p, x, y, saved, carry);
  } else {
    Block::forward(be, p, x, y, saved);
  }
}
template <class Block>
void backward_carried(auto& be, const auto& p, const auto& saved, auto dy, auto dx, auto& grad,
                      const auto& carry) {
  if constexpr (Carries<Block>) {
    Block::backward(be, p, saved, dy, dx, grad, carry);
  } else {
    Block::backward(be, p, saved, dy, dx, grad);
  }
}

/// The part of a Carry or CarryGradient that `member` of its aggregates names.
template <class S>
Carry<S> part_of(const auto& carry, const auto& member) {
  return {carry.from == nullptr ? nullptr : &member(*carry.from),
          carry.to == nullptr ? nullptr : &member(*carry.to), carry.continuing};
}
template <class G>
CarryGradient<G> gradient_part_of(const auto& carry, const auto& member) {
  return {carry.to == nullptr ? nullptr : &member(*carry.to),
          carry.from == nullptr ? nullptr : &member(*carry.from)};
}

/// A copy in the arena, for what backward reads after the caller may have changed it.
template <class B>
Mask keep(B& be, Mask mask) {
  if (mask.data() == nullptr) return mask;
  const auto kept = be.template make<std::uint8_t, dyn>(mask.size());
  be.copy(mask.data(), kept.data(), mask.size());
  return kept;
}
template <class B, class S>
S keep_state(B& be, const S& state) {
  S kept{};
  for_each_tensor(
      [&](std::string_view, auto& to, const auto& from) {
        using Tens = std::remove_cvref_t<decltype(to)>;
        to = Tens(be.template make<typename Tens::value_type, dyn>(from.size()).data(), from.extents());
        be.copy(from.data(), to.data(), from.size());
      },
      kept, state);
  return kept;
}

}  // namespace detail

/// What of a block's State, which may be that of a stream, segments hand on: in place.
template <class Block>
typename detail::CarriedOf<Block>::State carried_of(const auto& state) {
  if constexpr (!Carries<Block>) {
    return {};
  } else if constexpr (requires { Block::carried(state); }) {
    return Block::carried(state);
  } else {
    return state;
  }
}

/// Refuses a Carry that forward of `batch` sessions cannot take. With `positions`, it waits for the backend
/// and refuses as well continuing sessions that are inside of a unit of `multiple` steps, whose segment would
/// start at a place of its own. Where nobody asks, those sessions' numbers become NaN.
template <class B, class S>
void check_carry(B& be, const Carry<S>& carry, Index batch, Index multiple, bool positions = true) {
  const auto check_batch = [&](std::string_view name, const auto& t) {
    if (t.extent(0) == batch) return;
    fail("carried state: " + std::string(name), std::to_string(t.extent(0)) + " sessions",
         std::to_string(batch), "use a state of as many sessions as the batch");
  };
  if (carry.to != nullptr) for_each_tensor(check_batch, *carry.to);
  if (carry.continuing.data() != nullptr) check_batch("continuing", carry.continuing);
  if (carry.from == nullptr) return;
  for_each_tensor(check_batch, *carry.from);
  if (!positions) return;
  std::vector<std::uint8_t> continuing(static_cast<std::size_t>(batch), 1);
  if (carry.continuing.data() != nullptr) be.to_host(carry.continuing.data(), continuing.data(), batch);
  const auto check = [&](std::string_view name, const auto& t) {
    using T = std::remove_const_t<typename std::remove_cvref_t<decltype(t)>::value_type>;
    if constexpr (std::is_same_v<T, std::int64_t>) {
      if (!name.ends_with("position")) return;
      std::vector<T> position(static_cast<std::size_t>(batch));
      be.to_host(t.data(), position.data(), batch);
      for (std::size_t b = 0; b < position.size(); ++b) {
        if (continuing[b] == 0 || position[b] % multiple == 0) continue;
        fail("carried state: " + std::string(name) + " of session " + std::to_string(b),
             std::to_string(position[b]), "a multiple of " + std::to_string(multiple),
             "cut recordings into segments of whole mini-batches; only the last may have any length");
      }
    }
  };
  for_each_tensor(check, *carry.from);
}

}  // namespace mttt
