// Rotary position embedding: turns each pair of channels by an angle that grows with the position.
//
// Formula: (x_2i, x_2i+1) turned by  p * max_period^(-2i / head_dim),  p = position (mod `modulo` if that is
//          not 0). Backward turns by the opposite angle: the rotation is orthogonal.
// Shapes:  x: batch x steps rows of heads * head_dim channels, the rows at batch and step strides; in place.
//          positions (batch), the position of step 0 of each session. In bf16, rows start at even elements.
// Units:   positions in steps; angles in radians, in double, so that late positions are as exact as early
//          ones. Strides in elements.
// Errors:  none; head_dim is even, which blocks assert at compile time.
// Not supported: the half-split layout (first half against second half); scaled or interpolated periods.
// Source:  Su et al. 2021 (arXiv 2104.09864); kyutai-labs/moshi modules/rope.py `apply_rope`, interleaved.
#pragma once

#include <cmath>

#include "mttt/backend/backend.hpp"

namespace mttt {

/// How far apart, in elements, the rows of neighbouring sessions and of neighbouring steps lie.
struct Strides {
  Index batch, step;
};

enum class Rotation { forward, backward };

namespace detail {

/// Row (b, t) of the table: head_dim / 2 cosines, then as many sines.
template <class A>
struct RopeTable {
  const std::int64_t* positions;
  A* table;
  Index steps, half, modulo;
  double log_period, sign;
  MTTT_HD void operator()(Index i) const {
    const Index row = i / half, pair = i % half, b = row / steps, t = row % steps;
    const std::int64_t counted = (positions == nullptr ? 0 : positions[b]) + t;
    const std::int64_t position = modulo > 0 ? counted % modulo : counted;
    const double frequency = std::exp(-log_period * static_cast<double>(pair) / static_cast<double>(half));
    const double angle = sign * frequency * static_cast<double>(position);
    table[row * 2 * half + pair] = static_cast<A>(std::cos(angle));
    table[row * 2 * half + half + pair] = static_cast<A>(std::sin(angle));
  }
};

/// Two neighbouring channels; in bf16, read and written as one.
template <class T>
struct alignas(sizeof(T) == 2 ? 4 : alignof(T)) RopePair {
  T re, im;
};

template <class T, class A>
MTTT_HD RopePair<T> turned(RopePair<T> x, A cosine, A sine) {
  const A re = wide(x.re), im = wide(x.im);
#ifdef __CUDA_ARCH__  // which of two products is rounded must not be each kernel's own choice
  return {static_cast<T>(fma(re, cosine, -(im * sine))), static_cast<T>(fma(re, sine, im * cosine))};
#endif
  return {static_cast<T>(re * cosine - im * sine), static_cast<T>(re * sine + im * cosine)};
}

/// One head of one row.
template <class T, class A>
struct RopeHead {
  T* x;
  const A* table;
  Index steps, heads, half, table_batch_stride;
  Strides strides;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index row = i / heads, b = row / steps, t = row % steps;
    const A *cosine = table + b * table_batch_stride + t * 2 * half, *sine = cosine + half;
    auto* pairs = reinterpret_cast<RopePair<T>*>(x + b * strides.batch + t * strides.step) + i % heads * half;
    team.for_each(half, [=](Index pair) { pairs[pair] = turned(pairs[pair], cosine[pair], sine[pair]); });
  }
};

}  // namespace detail

/// Rotates x in place. Null positions are 0; modulo 0 is none. Several head groups that lie next to each
/// other (queries and keys of one projection) are rotated by one call with the sum of their heads.
template <class B, class T>
void rope(B& be, T* x, Index batch, Index steps, Strides strides, Index heads, Index head_dim,
          const std::int64_t* positions, Index modulo, double max_period, Rotation direction) {
  using A = typename B::Accum;
  const auto scope = be.scope();
  const Index half = head_dim / 2, rows = (positions == nullptr ? 1 : batch) * steps;
  const auto table = be.template make<A, dyn>(rows * 2 * half);
  const double sign = direction == Rotation::forward ? 1 : -1;
  be.for_each(rows * half,
              detail::RopeTable<A>{positions, table.data(), steps, half, modulo, std::log(max_period), sign});
  be.rows(batch * steps * heads,
          detail::RopeHead<T, A>{x, table.data(), steps, heads, half,
                                 positions == nullptr ? 0 : steps * 2 * half, strides},
          0, half * 6);
}

}  // namespace mttt
