// Scalar functions with their derivatives side by side.
//
// Each is a struct with f(x), df(x) and, where the inner loop differentiates its own gradient, ddf(x).
//
// Shapes:  scalars.   Units: none.
// Errors:  none; NaN in, NaN out.
// Not supported: float functions to the last bit: exp is within 2 units in the last place, so that it
//          vectorises.
// Source:  sigmoid, SiLU (Elfwing 2017), GELU and its tanh form (Hendrycks 2016), ELU (Clevert 2015); exp as
//          in Cephes.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "mttt/core/macros.hpp"

namespace mttt {

/// In a namespace of its own: beside the exp of C, which nvcc calls unqualified, no `using namespace mttt`
/// may bring another.
namespace math {

/// exp for float without branches: 2^n times a polynomial of the remainder. 0 below -87.3, e^88.7 above 88.7.
MTTT_HD MTTT_INLINE float exp(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  const float clamped = x < -87.33f ? -87.33f : (x > 88.72f ? 88.72f : x);  // NaN passes both comparisons
  // To the nearest whole number by a shift of the mantissa: std::floor does not vectorise unless the compiler
  // is told that nobody reads the floating-point exceptions.
  const float shifted = clamped * 1.44269504088896341f + 0x1.8p23f;
  const float n = shifted - 0x1.8p23f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors: n reaches 128, one past the exponent range of a single factor.
  const std::int32_t whole = std::bit_cast<std::int32_t>(shifted) - 0x4B400000, half = whole >> 1;
  const float scale_a = std::bit_cast<float>((half + 127) << 23);
  const float scale_b = std::bit_cast<float>((whole - half + 127) << 23);
  const float y = p * scale_a * scale_b;
  return x < -87.33f ? 0.0f : y;
#endif
}
MTTT_HD inline double exp(double x) { return std::exp(x); }

}  // namespace math

struct Sigmoid {
  template <class T>
  MTTT_HD static T f(T x) {
    return T(1) / (T(1) + math::exp(-x));
  }
  template <class T>
  MTTT_HD static T df(T x) {
    const T s = f(x);
    return s * (T(1) - s);
  }
};

struct Silu {
  template <class T>
  MTTT_HD static T f(T x) {
    return x * Sigmoid::f(x);
  }
  template <class T>
  MTTT_HD static T df(T x) {
    const T s = Sigmoid::f(x);
    return s * (T(1) + x * (T(1) - s));
  }
};

/// The exact GELU, x * Phi(x).
struct Gelu {
  template <class T>
  MTTT_HD static T f(T x) {
    return T(0.5) * x * (T(1) + std::erf(x * T(0.70710678118654752)));
  }
  template <class T>
  MTTT_HD static T df(T x) {
    const T cdf = T(0.5) * (T(1) + std::erf(x * T(0.70710678118654752)));
    return cdf + x * T(0.39894228040143268) * math::exp(-T(0.5) * x * x);
  }
};

/// GELU by tanh, with the second derivative that the gradient of a TTT-MLP's inner step needs.
struct GeluTanh {
  template <class T>
  MTTT_HD static T tanh_part(T x) {  // tanh(u) = 1 - 2 / (e^2u + 1)
    const T u = T(0.79788456080286536) * (x + T(0.044715) * x * x * x);
    return T(1) - T(2) / (math::exp(T(2) * u) + T(1));
  }
  template <class T>
  MTTT_HD static T f(T x) {
    return T(0.5) * x * (T(1) + tanh_part(x));
  }
  template <class T>
  MTTT_HD static T df(T x) {
    return slope(x, tanh_part(x));
  }
  /// f(x), and df(x) with it: one tanh for both.
  template <class T>
  MTTT_HD static T f_and_df(T x, T& dfx) {
    const T h = tanh_part(x);
    dfx = slope(x, h);
    return T(0.5) * x * (T(1) + h);
  }
  template <class T>
  MTTT_HD static T ddf(T x) {
    const T h = tanh_part(x);
    const T du = T(0.79788456080286536) * (T(1) + T(3 * 0.044715) * x * x);
    const T ddu = T(0.79788456080286536) * T(6 * 0.044715) * x;
    const T dh = (T(1) - h * h) * du;
    return dh + T(0.5) * x * ((T(1) - h * h) * ddu - T(2) * h * dh * du);
  }

 private:
  template <class T>
  MTTT_HD static T slope(T x, T h) {
    const T du = T(0.79788456080286536) * (T(1) + T(3 * 0.044715) * x * x);
    return T(0.5) * (T(1) + h) + T(0.5) * x * (T(1) - h * h) * du;
  }
};

/// Exponential linear unit with alpha = 1.
struct Elu {
  template <class T>
  MTTT_HD static T f(T x) {
    return x > T(0) ? x : math::exp(x < T(0) ? x : T(0)) - T(1);
  }
  template <class T>
  MTTT_HD static T df(T x) {
    return x > T(0) ? T(1) : math::exp(x < T(0) ? x : T(0));
  }
};

}  // namespace mttt
