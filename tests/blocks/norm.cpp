// RmsNorm, LayerNorm and LayerScale against the formulas written out in float64.
#include "mttt/nn/norm.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"
#include "mttt/nn/layer_scale.hpp"

namespace {
using namespace mttt;
constexpr Index rows = 4, dim = 19;
constexpr double eps = 1e-3;  // large enough to be missed if it were left out or put in the wrong place

/// Row 1 is zero, row 2 constant: where only eps keeps the result finite.
std::vector<double> example() {
  std::vector<double> x(rows * dim);
  for (Index i = 0; i < rows * dim; ++i) {
    const Index r = i / dim;
    x[i] = r == 1 ? 0 : r == 2 ? 0.25 : std::sin(0.7 * double(i)) + 0.5 * double(r);
  }
  return x;
}

template <class Block, class B>
std::vector<double> run(B& be, const std::vector<double>& values) {
  using T = typename B::Scalar;
  const auto scope = be.scope();
  auto x = be.template make<T, dyn, dyn, dim>(1, rows);
  auto y = be.template make<T, dyn, dyn, dim>(1, rows);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(values[i]);
  Store<typename Block::Params, B> params(be);
  Index k = 0;
  for_each_tensor(
      [&](std::string_view, auto& t) {
        for (Index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(0.5 + 0.125 * double(k++ % 16));
      },
      *params);
  typename Block::Saved saved;
  Block::forward(be, *params, x, y, saved);
  return {y.data(), y.data() + y.size()};
}

double parameter(Index k) { return 0.5 + 0.125 * double(k % 16); }

void check(const std::vector<double>& expected, const std::vector<double>& in_double,
           const std::vector<double>& in_float) {
  CHECK(laws::largest_difference(in_double.data(), expected.data(), rows * dim) < 1e-14);
  CHECK(laws::largest_difference(in_float.data(), expected.data(), rows * dim) < 1e-6);
}
}  // namespace

TEST_CASE("RmsNorm is the published formula") {
  const auto x = example();
  std::vector<double> expected(rows * dim);
  for (Index r = 0; r < rows; ++r) {
    double square = 0;
    for (Index c = 0; c < dim; ++c) square += x[r * dim + c] * x[r * dim + c] / dim;
    for (Index c = 0; c < dim; ++c) {
      expected[r * dim + c] = x[r * dim + c] * parameter(c) / std::sqrt(square + eps);
    }
  }
  constexpr NormConfig config{.dim = dim, .eps = eps};
  Cpu<double> exact;
  Cpu<float> single;
  check(expected, run<RmsNorm<config, Cpu<double>>>(exact, x), run<RmsNorm<config, Cpu<float>>>(single, x));
}

TEST_CASE("LayerNorm is torch's formula") {
  const auto x = example();
  std::vector<double> expected(rows * dim);
  for (Index r = 0; r < rows; ++r) {
    double mean = 0, variance = 0;
    for (Index c = 0; c < dim; ++c) mean += x[r * dim + c] / dim;
    for (Index c = 0; c < dim; ++c) variance += std::pow(x[r * dim + c] - mean, 2) / dim;
    for (Index c = 0; c < dim; ++c) {
      expected[r * dim + c] =
          (x[r * dim + c] - mean) / std::sqrt(variance + eps) * parameter(c) + parameter(dim + c);
    }
  }
  constexpr NormConfig config{.dim = dim, .eps = eps};
  Cpu<double> exact;
  Cpu<float> single;
  check(expected, run<LayerNorm<config, Cpu<double>>>(exact, x),
        run<LayerNorm<config, Cpu<float>>>(single, x));
}

TEST_CASE("LayerScale multiplies each channel") {
  const auto x = example();
  std::vector<double> expected(rows * dim);
  for (Index i = 0; i < rows * dim; ++i) expected[i] = x[i] * parameter(i % dim);
  constexpr LayerScaleConfig config{.dim = dim};
  Cpu<double> exact;
  Cpu<float> single;
  check(expected, run<LayerScale<config, Cpu<double>>>(exact, x),
        run<LayerScale<config, Cpu<float>>>(single, x));
}

TEST_CASE("Parameters start and are named as published") {
  Cpu<float> be;
  Rng rng(1);
  std::string names;
  const auto collect = [&](std::string_view name, auto& t) {
    names += std::string(name) + " " + std::to_string(t.extents().size()) + ";";
  };
  Store<RmsNorm<NormConfig{.dim = 3}, Cpu<float>>::Params, Cpu<float>> rms(be);
  RmsNorm<NormConfig{.dim = 3}, Cpu<float>>::init(*rms, rng);
  for_each_tensor(collect, *rms);
  Store<LayerNorm<NormConfig{.dim = 3}, Cpu<float>>::Params, Cpu<float>> layer(be);
  LayerNorm<NormConfig{.dim = 3}, Cpu<float>>::init(*layer, rng);
  for_each_tensor(collect, *layer);
  Store<LayerScale<LayerScaleConfig{.dim = 3}, Cpu<float>>::Params, Cpu<float>> scale(be);
  LayerScale<LayerScaleConfig{.dim = 3}, Cpu<float>>::init(*scale, rng);
  for_each_tensor(collect, *scale);
  CHECK(names == "alpha 3;weight 1;bias 1;scale 1;");
  CHECK(rms->alpha(0, 0, 2) == 1);
  CHECK(layer->weight(1) == 1);
  CHECK(layer->bias(1) == 0);
  CHECK(scale->scale(0) == 1e-4f);
}
