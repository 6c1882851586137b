// bf16: the upper half of a float, a type to store numbers in; every computation is done in float.
//
// Formula: widening is exact and implicit; narrowing rounds to nearest, ties to even, and must be asked for.
//          NaN stays NaN. `wide(x)` is x in the type to compute in: float for bf16, else its own.
// Shapes:  scalars.   Units: none.
// Errors:  none.
// Not supported: arithmetic in bf16.
// Source:  bfloat16 is the upper half of IEEE 754 binary32; on the GPU the instruction cvt.rn.bf16.f32.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "mttt/core/macros.hpp"

namespace mttt {

constexpr float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t(bits) << 16);
}

constexpr std::uint16_t float_to_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)  // NaN: cut the payload; one that would vanish becomes quiet
    return std::uint16_t((bits >> 16) | ((bits & 0x007f0000u) == 0 ? 0x40u : 0u));
  return std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct bf16 {
  std::uint16_t bits;

  bf16() = default;
  template <class N>
  requires std::is_arithmetic_v<N> MTTT_HD explicit bf16(N value) : bits(narrow(static_cast<float>(value))) {}
  MTTT_HD operator float() const {  // NOLINT: implicit on purpose, it loses nothing
    return std::bit_cast<float>(std::uint32_t(bits) << 16);
  }

  MTTT_HD bf16& operator+=(float x) { return *this = bf16(float(*this) + x); }
  MTTT_HD bf16& operator-=(float x) { return *this = bf16(float(*this) - x); }
  MTTT_HD bf16& operator*=(float x) { return *this = bf16(float(*this) * x); }

 private:
  MTTT_HD static std::uint16_t narrow(float value) {
#ifdef __CUDA_ARCH__
    std::uint16_t half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    return float_to_bfloat16(value);
#endif
  }
};
static_assert(sizeof(bf16) == 2 && std::is_trivially_copyable_v<bf16>);

/// What tensors of activations, weights and states may hold.
template <class T>
concept StorageType = std::floating_point<T> || std::same_as<T, bf16>;

/// The type to compute in with numbers stored as T.
template <class T>
struct WideOf {
  using type = T;
};
template <>
struct WideOf<bf16> {
  using type = float;
};
template <class T>
using Wide = typename WideOf<std::remove_const_t<T>>::type;

template <class T>
MTTT_HD constexpr Wide<T> wide(T x) {
  return static_cast<Wide<T>>(x);
}

/// Distance of 1 to the next number that T can hold.
template <StorageType T>
constexpr double epsilon() {
  if constexpr (std::is_same_v<T, bf16>) {
    return 0x1p-7;
  } else {
    return static_cast<double>(std::numeric_limits<T>::epsilon());
  }
}

}  // namespace mttt
