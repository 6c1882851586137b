// Interleaved RoPE against its formula in long double: late positions, offsets, modulo, slices, and its
// inverse.
#include "mttt/nn/rope.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"

namespace {
using namespace mttt;
constexpr Index batch = 2, steps = 5, heads = 3, head_dim = 8, padding = 7;
constexpr Index width = heads * head_dim + padding;  // a slice of a wider row
constexpr double max_period = 300;

std::vector<double> example() {
  std::vector<double> x(batch * steps * width);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = std::sin(1.3 * static_cast<double>(i) + 0.2);
  return x;
}

/// Rows at `strides`, session b at offset positions[b].
std::vector<double> expected(std::vector<double> x, Strides strides, const std::int64_t* positions,
                             Index modulo) {
  for (Index b = 0; b < batch; ++b) {
    for (Index t = 0; t < steps; ++t) {
      std::int64_t position = (positions ? positions[b] : 0) + t;
      if (modulo > 0) position %= modulo;
      for (Index h = 0; h < heads; ++h) {
        for (Index i = 0; i < head_dim / 2; ++i) {
          double* pair = &x[b * strides.batch + t * strides.step + h * head_dim + 2 * i];
          const long double angle =
              position * std::pow(static_cast<long double>(max_period), -2.0L * i / head_dim);
          const double re = pair[0], im = pair[1];
          pair[0] = static_cast<double>(re * std::cos(angle) - im * std::sin(angle));
          pair[1] = static_cast<double>(re * std::sin(angle) + im * std::cos(angle));
        }
      }
    }
  }
  return x;
}

template <class T>
std::vector<T> rotated(const std::vector<double>& x, Strides strides, const std::int64_t* positions,
                       Index modulo, bool and_back = false) {
  Cpu<T> be;
  std::vector<T> y(x.begin(), x.end());
  rope(be, y.data(), batch, steps, strides, heads, head_dim, positions, modulo, max_period,
       Rotation::forward);
  if (and_back) {
    rope(be, y.data(), batch, steps, strides, heads, head_dim, positions, modulo, max_period,
         Rotation::backward);
  }
  return y;
}

template <class T>
double difference(const std::vector<T>& a, const std::vector<double>& b) {
  return laws::largest_difference(a.data(), b.data(), static_cast<Index>(b.size()));
}

constexpr Strides time_inner{steps * width, width}, time_outer{width, batch*width};
}  // namespace

TEST_CASE("RoPE is the published rotation, at any position") {
  const auto x = example();
  const std::int64_t early[batch] = {0, 3}, late[batch] = {48000, 3 * 86400 * 25};  // three days of frames
  for (const std::int64_t* positions : {static_cast<const std::int64_t*>(nullptr), early, late}) {
    for (const Strides strides : {time_inner, time_outer}) {
      const auto y = expected(x, strides, positions, 0);
      CHECK(difference(rotated<double>(x, strides, positions, 0), y) < 1e-9);
      CHECK(difference(rotated<float>(x, strides, positions, 0), y) < 3e-7);
    }
  }
}

TEST_CASE("RoPE leaves what lies beside its slice alone") {
  const auto x = example();
  const auto y = rotated<double>(x, time_inner, nullptr, 0);
  for (Index row = 0; row < batch * steps; ++row) {
    for (Index c = heads * head_dim; c < width; ++c) CHECK(y[row * width + c] == x[row * width + c]);
  }
}

TEST_CASE("RoPE counts positions modulo M") {
  const auto x = example();
  const std::int64_t positions[batch] = {2, 1000003};
  CHECK(difference(rotated<double>(x, time_inner, positions, 4), expected(x, time_inner, positions, 4)) <
        1e-14);
  CHECK(difference(rotated<double>(x, time_inner, nullptr, 3), expected(x, time_inner, nullptr, 3)) < 1e-14);
}

TEST_CASE("RoPE backward is the inverse") {
  const auto x = example();
  const std::int64_t positions[batch] = {48000, 17};
  CHECK(difference(rotated<double>(x, time_outer, positions, 0, true), x) < 1e-14);
}
