// How a segment of a recording takes fast weights over from the one before it, and gives gradients back.
//
// Formula: first weights of session b = those carried in if it continues, else the learned start;
//          their gradient goes back to where they came from, and to nobody else.
// Shapes:  fast weights (B, H, size); learned start (H, size); position (B).
// Units:   positions in tokens.
// Errors:  a session that continues from inside of a mini-batch gets weights of NaN: a kernel cannot refuse
//          it (check_carry in core/carry.hpp can).
// Not supported: none.
// Source:  none.
#pragma once

#include <cmath>
#include <cstdint>

#include "mttt/core/tensor.hpp"

namespace mttt::detail {

/// weights = carried ones of sessions that continue, else the learned start.
template <class A>
struct EnterWeights {
  const A *learned, *carried;
  const std::int64_t* position;
  const std::uint8_t* continuing;
  A* weights;
  Index heads, size, mini_batch;
  template <class Team>
  MTTT_HD void operator()(Team team, Index session_head) const {
    const Index b = session_head / heads;
    const bool goes_on = active(continuing, b);
    const A spoilt = goes_on && position[b] % mini_batch != 0 ? static_cast<A>(NAN) : A(0);
    const A* from = goes_on ? carried + session_head * size : learned + session_head % heads * size;
    A* to = weights + session_head * size;
    team.for_each(size, [=](Index i) { to[i] = from[i] + spoilt; });
  }
};

/// position after the segment
struct LeavePosition {
  const std::int64_t* from;  // null: all sessions started anew
  const std::uint8_t* continuing;
  std::int64_t* to;
  Index steps;
  MTTT_HD void operator()(Index b) const {
    to[b] = (from != nullptr && active(continuing, b) ? from[b] : 0) + steps;
  }
};

/// Of the gradient of the first weights: the share of sessions that continue moves to `carried`, 0 for the
/// others; the share of those that started anew stays.
template <class A>
struct DivideGradient {
  A *gradient, *carried;  // carried: null if nobody wants it
  const std::uint8_t* continuing;
  bool any;  // sessions continue at all
  Index heads, size;
  template <class Team>
  MTTT_HD void operator()(Team team, Index session_head) const {
    const bool goes_on = any && active(continuing, session_head / heads);
    A* from = gradient + session_head * size;
    if (carried != nullptr) {
      A* to = carried + session_head * size;
      team.for_each(size, [=](Index i) { to[i] = goes_on ? from[i] : A(0); });
    }
    if (goes_on) team.for_each(size, [=](Index i) { from[i] = 0; });
  }
};

}  // namespace mttt::detail
