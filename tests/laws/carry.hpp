// Holds a block that carries its state from segment to segment to the laws of it.
#pragma once

#include "laws.hpp"
#include "mttt/laws_carry.hpp"

namespace mttt::testing {

/// Sums in another order, in float64.
inline constexpr double exact_tolerance = 1e-10;

template <template <class> class Block>
void hold_to_carried_gradient(laws::Options options = {}) {
  SECTION("gradient through the carried state") {
    Cpu<double> be;
    demand(laws::carried_gradient<Block<Cpu<double>>>(be, options));
  }
}

/// For blocks that carry all of their State.
template <template <class> class Block>
void hold_to_carry_laws(laws::Options options = {}) {
  hold_to_carried_gradient<Block>(options);
  options.tolerance = exact_tolerance;
  Cpu<double> be;
  SECTION("segments") { demand(laws::segments<Block<Cpu<double>>>(be, options)); }
  SECTION("forward, then step") { demand(laws::prefix<Block<Cpu<double>>>(be, options)); }
}

}  // namespace mttt::testing
