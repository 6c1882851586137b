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

#include "mttt/core/f16.hpp"

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
  if constexpr (std::is_same_v<T, f16>) return DType::F16;
  static_assert(NarrowNumber<T> || (std::is_arithmetic_v<T> && sizeof(T) <= 8),
                "mttt: dtype_of needs a built-in number type, bf16 or f16");
  if constexpr (std::is_same_v<T, bool>) return DType::BOOL;
  constexpr bool wide[4] = {sizeof(T) == 1, sizeof(T) == 2, sizeof(T) == 4, sizeof(T) == 8};
  if constexpr (std::is_floating_point_v<T>) return wide[3] ? DType::F64 : DType::F32;
  if constexpr (std::is_signed_v<T>) {
    return wide[3] ? DType::I64 : wide[2] ? DType::I32 : wide[1] ? DType::I16 : DType::I8;
  }
  return wide[3] ? DType::U64 : wide[2] ? DType::U32 : wide[1] ? DType::U16 : DType::U8;
}

}  // namespace mttt
