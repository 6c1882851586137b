// Element types of stored tensors, and exact conversions between float16, bfloat16 and float.
//
// Formula: widening is exact for every bit pattern; narrowing rounds to nearest, ties to even. Infinities
//          stay, what is too large becomes infinity, subnormals are kept (also under flush-to-zero: it is
//          integer arithmetic), and NaN stays NaN with the leading payload bits, so that 16 bits -> float
//          -> 16 bits returns every pattern.
// Shapes:  none.   Units: bytes.
// Errors:  none; dtype_from_name answers nothing for a name it does not know.
// Not supported: 8-bit floats, complex types.
// Source:  IEEE 754-2019 binary16 and binary32; bfloat16 is the upper half of binary32; safetensors' names.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "mttt/core/bf16.hpp"

namespace mttt {

enum class DType { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };

namespace detail {

struct DTypeFact {
  std::string_view name;
  std::size_t size;
};
inline constexpr std::array<DTypeFact, 13> dtype_facts{{{"F64", 8},
                                                        {"F32", 4},
                                                        {"F16", 2},
                                                        {"BF16", 2},
                                                        {"I64", 8},
                                                        {"I32", 4},
                                                        {"I16", 2},
                                                        {"I8", 1},
                                                        {"U64", 8},
                                                        {"U32", 4},
                                                        {"U16", 2},
                                                        {"U8", 1},
                                                        {"BOOL", 1}}};

}  // namespace detail

constexpr std::string_view dtype_name(DType dtype) { return detail::dtype_facts[std::size_t(dtype)].name; }
constexpr std::size_t dtype_size(DType dtype) { return detail::dtype_facts[std::size_t(dtype)].size; }
constexpr bool is_float(DType dtype) { return dtype <= DType::BF16; }

constexpr std::optional<DType> dtype_from_name(std::string_view name) {
  for (std::size_t i = 0; i < detail::dtype_facts.size(); ++i) {
    if (detail::dtype_facts[i].name == name) return DType(i);
  }
  return std::nullopt;
}

/// "F64, F32, ...": for messages.
inline std::string dtype_names() {
  std::string names;
  for (const auto& fact : detail::dtype_facts) names.append(names.empty() ? "" : ", ").append(fact.name);
  return names;
}

/// The stored type of a C++ number type.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, bf16>) return DType::BF16;
  static_assert(std::is_same_v<T, bf16> || (std::is_arithmetic_v<T> && sizeof(T) <= 8),
                "mttt: dtype_of needs a built-in number type or bf16");
  if constexpr (std::is_same_v<T, bool>) return DType::BOOL;
  constexpr bool wide[4] = {sizeof(T) == 1, sizeof(T) == 2, sizeof(T) == 4, sizeof(T) == 8};
  if constexpr (std::is_floating_point_v<T>) return wide[3] ? DType::F64 : DType::F32;
  if constexpr (std::is_signed_v<T>) {
    return wide[3] ? DType::I64 : wide[2] ? DType::I32 : wide[1] ? DType::I16 : DType::I8;
  }
  return wide[3] ? DType::U64 : wide[2] ? DType::U32 : wide[1] ? DType::U16 : DType::U8;
}

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

}  // namespace mttt
