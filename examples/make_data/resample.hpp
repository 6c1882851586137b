// Changes the rate of a sound by any factor upwards, without delay: what a voice that is stretched needs.
//
// Formula: y(t) = sum over k of x(k) sinc(t / ratio - k) w(t / ratio - k), w a Hann window of 32 samples on each
//          side; positions are rounded to 1/512 of a sample.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

inline constexpr int resample_reach = 32, resample_phases = 512;

/// Weights of 2 * reach samples for each phase.
inline const std::vector<float>& resample_weights() {
  static const std::vector<float> weights = [] {
    std::vector<float> table;
    for (int phase = 0; phase < resample_phases; ++phase) {
      for (int k = 1 - resample_reach; k <= resample_reach; ++k) {
        const double x = k - static_cast<double>(phase) / resample_phases, pi = 3.14159265358979;
        const double hann = 0.5 + 0.5 * std::cos(pi * x / resample_reach);
        table.push_back(static_cast<float>(x == 0 ? 1 : std::sin(pi * x) / (pi * x) * hann));
      }
    }
    return table;
  }();
  return weights;
}

/// `ratio` samples for each one of `in`; 1 or more.
inline std::vector<float> resample_up(std::span<const std::int16_t> in, double ratio) {
  const auto& weights = resample_weights();
  const auto size = static_cast<std::ptrdiff_t>(in.size());
  std::vector<float> out(static_cast<std::size_t>(static_cast<double>(in.size()) * ratio));
  for (std::size_t t = 0; t < out.size(); ++t) {
    const auto place = std::llround(static_cast<double>(t) / ratio * resample_phases);
    const std::ptrdiff_t first = place / resample_phases + 1 - resample_reach;
    const float* w = &weights[static_cast<std::size_t>(place % resample_phases) * 2 * resample_reach];
    float sum = 0;
    for (std::ptrdiff_t k = std::max<std::ptrdiff_t>(0, -first); k < 2 * resample_reach; ++k) {
      if (first + k >= size) break;
      sum += w[k] * static_cast<float>(in[static_cast<std::size_t>(first + k)]);
    }
    out[t] = sum;
  }
  return out;
}
