// f16: IEEE 754 binary16, a type to store weights in; every computation is done in float.
//
// Formula: widening is exact and implicit; narrowing rounds to nearest, ties to even, and must be asked for.
//          Of 11 significant bits, bf16 has 8: weights err by 4.9e-4 of themselves at most, an eighth of what
//          they err in bf16. In return numbers from 65520 on become infinite, those below 6.1e-5 lose bits.
// Shapes:  scalars.   Units: none.
// Errors:  none.
// Not supported: arithmetic in f16; activations and states of this type.
// Source:  IEEE 754-2008, binary16.
#pragma once

#include "mttt/core/bf16.hpp"

namespace mttt {

constexpr float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  // A subnormal is mantissa * 2^-24: shift its leading one to bit 10, where it becomes the implicit one.
  const int shift = std::countl_zero(mantissa) - 21;
  mantissa = (mantissa << shift) & 0x3ffu;
  return std::bit_cast<float>(sign | (std::uint32_t(113 - shift) << 23) | (mantissa << 13));
}

constexpr std::uint16_t float_to_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = std::uint16_t((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    const std::uint32_t payload = (magnitude >> 13) & 0x3ffu;
    return std::uint16_t(sign | 0x7c00u | (payload == 0 ? 0x200u : payload));
  }
  if (magnitude >= 0x477ff000u)
    return std::uint16_t(sign | 0x7c00u);  // from 65520 on the nearest is infinity
  const std::uint32_t exponent = magnitude >> 23;
  if (exponent >= 113) {  // normal: rebias; a carry out of the mantissa correctly raises the exponent
    const std::uint32_t rebased = magnitude - (112u << 23);
    return std::uint16_t(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
  if (exponent < 102) return sign;  // below 2^-25, half of the smallest subnormal
  const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const std::uint32_t shift = 126 - exponent;  // 14 ... 24
  const std::uint32_t floor = mantissa >> shift;
  const std::uint32_t rest = mantissa & ((1u << shift) - 1);
  const std::uint32_t tie = 1u << (shift - 1);
  return std::uint16_t(sign | (floor + (rest > tie || (rest == tie && (floor & 1u)) ? 1u : 0u)));
}

struct f16 {
  std::uint16_t bits;

  f16() = default;
  template <class N>
  requires std::is_arithmetic_v<N>
  explicit f16(N value) : bits(float_to_half(static_cast<float>(value))) {}
  operator float() const { return half_to_float(bits); }  // NOLINT: implicit on purpose, it loses nothing
};
static_assert(sizeof(f16) == 2 && std::is_trivially_copyable_v<f16>);

template <>
struct WideOf<f16> {
  using type = float;
};

/// What weights may be stored in while activations are floats (backend/with_weights.hpp).
template <class T>
concept NarrowNumber = std::same_as<T, bf16> || std::same_as<T, f16>;

/// What a file of floats can fill.
template <class T>
concept FloatNumber = StorageType<T> || NarrowNumber<T>;

}  // namespace mttt
