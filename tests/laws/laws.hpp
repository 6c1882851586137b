// Holds one block to every law and reports each as a section. Gradients are taken in float64, streaming in
// both, the rest in float32.
#pragma once

#include <cstddef>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"

/// Allocations of this process so far, counted by tests/allocations.cpp.
std::size_t allocation_count();

namespace mttt::testing {

inline void demand(const laws::Verdict& verdict) {
  INFO(verdict.says);
  CHECK(verdict.holds);
}

/// float32 sums in another order: a few hundred terms of relative error 6e-8 each.
inline constexpr double float_tolerance = 2e-5;

/// `Block` is a class template over the backend: a lambda-free alias, so that a failure names the block.
template <template <class> class Block>
void hold_to_training_laws(laws::Options options = {}) {
  SECTION("gradient") {
    Cpu<double> be;
    demand(laws::gradient<Block<Cpu<double>>>(be, options));
  }
  SECTION("causality") {
    Cpu<float> be;
    demand(laws::causality<Block<Cpu<float>>>(be, options));
  }
  SECTION("bf16 storage") {
    Cpu<bf16> be;
    demand(laws::storage<Block<Cpu<bf16>>, Block<Cpu<float>>>(be, options));
  }
}

template <template <class> class Block>
void hold_to_all_laws(laws::Options options = {}) {
  hold_to_training_laws<Block>(options);
  using Float = Block<Cpu<float>>;
  Cpu<float> be;
  SECTION("streaming in float64") {
    Cpu<double> exact;
    demand(laws::streaming<Block<Cpu<double>>>(exact, options));
  }
  SECTION("streaming in float32") {
    options.tolerance = float_tolerance;
    demand(laws::streaming<Float>(be, options));
  }
  SECTION("masking") { demand(laws::masking<Float>(be, options)); }
  SECTION("reset") { demand(laws::reset<Float>(be, options)); }
  SECTION("snapshot") { demand(laws::snapshot<Float>(be, options)); }
  SECTION("no allocation") { demand(laws::no_allocation<Float>(be, allocation_count, options)); }
}

}  // namespace mttt::testing
