// Products of few rows against sums in double on the host, and the bits of a row in any batch.
#include <cstring>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/cuda.cuh"
#include "mttt/math/scalar.hpp"
#include "mttt/nn/elementwise.hpp"

namespace {
using namespace mttt;

/// The same random numbers on host and GPU.
template <class T>
struct Both {
  std::vector<T> host;
  T* device;
  Both(auto& be, Index n, Rng& rng, double scale = 1) : host(static_cast<std::size_t>(n)) {
    for (T& x : host) x = static_cast<T>(scale * rng.truncated_normal());
    device = be.template make<T, dyn>(n).data();
    be.to_device(host.data(), device, n);
  }
  double at(Index i) const { return static_cast<double>(wide(host[static_cast<std::size_t>(i)])); }
};

template <class T>
std::vector<T> fetch(auto& be, const T* device, Index n) {
  std::vector<T> host(static_cast<std::size_t>(n));
  be.to_host(device, host.data(), n);
  return host;
}

/// Sums of `depth` terms of about 1 in two orders, and V's rounding of the result.
template <class T, class V>
double tolerance(Index depth, double value) {
  return 8 * epsilon<Wide<T>>() * std::sqrt(static_cast<double>(depth)) * (1 + std::abs(value)) +
         (std::is_same_v<V, bf16> ? epsilon<V>() * std::abs(value) : 0);
}

/// C = alpha A B^T + beta C for all numbers of rows that one kernel takes against the host, with leading
/// dimensions of `pad` more.
template <class T, class V>
void products_agree(Index depth, Index cols, Index pad, Wide<V> alpha = 1, Wide<V> beta = 0) {
  Cuda<T> be;
  Rng rng{7};
  constexpr Index most = tuning::few_rows<T>;
  const Index lda = depth + pad, ldb = depth + 2 * pad, ldc = cols + pad;
  const Both<T> a(be, most * lda, rng), b(be, cols * ldb, rng);
  const Both<V> c(be, most * ldc, rng);
  std::vector<V> all;
  for (Index rows = most; rows > 0; --rows) {
    be.to_device(c.host.data(), c.device, most * ldc);
    be.matmul(Matrix<const T>{a.device, rows, depth, lda}, Matrix<const T>{b.device, cols, depth, ldb}.t(),
              Matrix<V>{c.device, rows, cols, ldc}, alpha, beta);
    const auto got = fetch(be, c.device, most * ldc);
    if (rows == most) {
      all = got;
      double worst = 0;
      for (Index m = 0; m < most; ++m) {
        for (Index n = 0; n < cols; ++n) {
          long double sum = 0;  // its own rounding must not count
          for (Index k = 0; k < depth; ++k)
            sum += static_cast<long double>(a.at(m * lda + k)) * static_cast<long double>(b.at(n * ldb + k));
          const double value = static_cast<double>(alpha) * static_cast<double>(sum) +
                               static_cast<double>(beta) * c.at(m * ldc + n);
          const double error =
              std::abs(static_cast<double>(wide(got[static_cast<std::size_t>(m * ldc + n)])) - value);
          worst = std::max(worst, error / tolerance<T, V>(depth, value));
        }
      }
      INFO("depth " << depth << ", columns " << cols << ", padding " << pad << ": " << worst
                    << " tolerances");
      CHECK(worst <= 1);
    }
    for (Index m = 0; m < most; ++m) {  // a row's bits do not depend on the others; the rest stays as it was
      for (Index n = 0; n < ldc; ++n) {
        const auto i = static_cast<std::size_t>(m * ldc + n);
        const V& expected = m < rows && n < cols ? all[i] : c.host[i];
        if (std::memcmp(&got[i], &expected, sizeof(V)) != 0) {
          INFO(rows << " rows, depth " << depth << ", columns " << cols << ", padding " << pad << ", row "
                    << m << ", column " << n);
          CHECK(std::memcmp(&got[i], &expected, sizeof(V)) == 0);
          return;
        }
      }
    }
    // A row alone, wherever it lies in memory.
    if (beta == Wide<V>(0) && rows < most) {
      be.matmul(Matrix<const T>{a.device + rows * lda, 1, depth, lda},
                Matrix<const T>{b.device, cols, depth, ldb}.t(), Matrix<V>{c.device, 1, cols, ldc}, alpha);
      const auto alone = fetch(be, c.device, cols);
      CHECK(std::memcmp(alone.data(), &all[static_cast<std::size_t>(rows * ldc)],
                        static_cast<std::size_t>(cols) * sizeof(V)) == 0);
    }
  }
}

template <class T, class V>
void all_shapes() {
  for (const Index depth : {1, 3, 8, 31, 64, 127, 512, 1000, 2049}) {
    for (const Index cols : {1, 5, 8, 130}) {
      for (const Index pad : {0, 3, 8}) products_agree<T, V>(depth, cols, pad);
    }
  }
  products_agree<T, V>(512, 2048, 0);
  products_agree<T, V>(1024, 300, 0);
  products_agree<T, V>(2816, 133, 0);
  products_agree<T, V>(4096, 21, 0);
  products_agree<T, V>(11264, 260, 0, Wide<V>(0.5), 1);
  products_agree<T, V>(2048, 516, 8, 1, 1);
  products_agree<T, V>(300, 40, 0, Wide<V>(0.5), 0);
  products_agree<T, V>(300, 40, 3, Wide<V>(-2), 1);
}

enum class Normed { no, layer_norm, rms_norm };

template <class F, class T>
void fused_agree(Index rows, Index depth, Index cols, Normed normed, bool finished) {
  Cuda<T> be;
  Rng rng{9};
  const Both<T> x(be, rows * depth, rng), w(be, cols * depth, rng, 1 / std::sqrt(static_cast<double>(depth)));
  const Both<T> norm_weight(be, depth, rng), norm_bias(be, depth, rng);
  const Both<T> bias(be, cols, rng), scale(be, cols, rng), addend(be, rows * cols, rng);
  const auto y = be.template make<T, dyn>(rows * cols);
  constexpr double eps = 1e-5;
  be.template product_step<F>(
      Matrix<const T>{x.device, rows, depth, depth},
      normed == Normed::layer_norm ? NormRows<T>{norm_weight.device, norm_bias.device, eps}
      : normed == Normed::rms_norm ? NormRows<T>{norm_weight.device, nullptr, eps}
                                   : NormRows<T>{},
      Matrix<const T>{w.device, cols, depth, depth}, Matrix<T>{y.data(), rows, cols, cols},
      finished ? Finish<T>{bias.device, scale.device, addend.device} : Finish<T>{});
  const auto got = fetch<T>(be, y.data(), y.size());
  double worst = 0;
  for (Index m = 0; m < rows; ++m) {
    std::vector<double> row;
    double mean = 0, square = 0;
    for (Index k = 0; k < depth; ++k) row.push_back(x.at(m * depth + k));
    if (normed == Normed::layer_norm) {
      for (const double v : row) mean += v / static_cast<double>(depth);
    }
    for (const double v : row) square += (v - mean) * (v - mean) / static_cast<double>(depth);
    if (normed != Normed::no) {
      for (Index k = 0; k < depth; ++k) {
        double& v = row[static_cast<std::size_t>(k)];
        v = (v - mean) / std::sqrt(square + eps) * norm_weight.at(k) +
            (normed == Normed::layer_norm ? norm_bias.at(k) : 0);
      }
    }
    for (Index n = 0; n < cols; ++n) {
      double value = 0;
      for (Index k = 0; k < depth; ++k) value += row[static_cast<std::size_t>(k)] * w.at(n * depth + k);
      if (finished) value += bias.at(n);
      value = F::f(value);
      if (finished) value = value * scale.at(n) + addend.at(m * cols + n);
      const double error =
          std::abs(static_cast<double>(wide(got[static_cast<std::size_t>(m * cols + n)])) - value);
      // Four stages round; a normed row may be rounded to T before it is multiplied.
      const double rounded = normed == Normed::no || !std::is_same_v<T, bf16> ? 0 : 4 * epsilon<T>();
      worst = std::max(worst, error / (4 * tolerance<T, T>(depth, value) + rounded));
    }
  }
  INFO(rows << " rows, depth " << depth << ", columns " << cols << ": " << worst << " tolerances");
  CHECK(worst <= 1);
}

template <class T>
void all_fused() {
  for (const Index rows : {1, 2, 3, 7, 19, 40}) {
    for (const Index depth : {12, 37, 512}) {
      for (const Normed normed : {Normed::no, Normed::layer_norm, Normed::rms_norm}) {
        fused_agree<Identity, T>(rows, depth, 24, normed, false);
        fused_agree<Identity, T>(rows, depth, 1100, normed, true);
        fused_agree<Gelu, T>(rows, depth, 9, normed, true);
      }
    }
  }
}
/// y = silu(a) * b, [a | b] = norm(x) w^T, and the same bits in any batch.
void gate_agrees(Index depth, Index cols) {
  Cuda<bf16> be;
  Rng rng{5};
  constexpr Index most = 4;
  constexpr double eps = 1e-5;
  const Both<bf16> x(be, most * depth, rng), alpha(be, depth, rng),
      w(be, 2 * cols * depth, rng, 1 / std::sqrt(static_cast<double>(depth)));
  std::vector<bf16> all;
  for (Index rows = most; rows > 0; --rows) {
    const auto y = be.make<bf16, dyn>(rows * cols);
    REQUIRE(be.gated_step<Silu>(
        Matrix<const bf16>{x.device, rows, depth, depth}, {alpha.device, nullptr, eps},
        Matrix<const bf16>{w.device, 2 * cols, depth, depth}, Matrix<bf16>{y.data(), rows, cols, cols}));
    const auto got = fetch<bf16>(be, y.data(), y.size());
    if (rows == most) {
      all = got;
    } else {
      INFO(rows << " rows, depth " << depth << ", columns " << cols);
      CHECK(std::memcmp(got.data(), all.data(), got.size() * sizeof(bf16)) == 0);
      continue;
    }
    double worst = 0;
    for (Index m = 0; m < rows; ++m) {
      double square = 0;
      for (Index k = 0; k < depth; ++k) square += x.at(m * depth + k) * x.at(m * depth + k);
      const double scale = 1 / std::sqrt(square / static_cast<double>(depth) + eps);
      for (Index n = 0; n < cols; ++n) {
        double a = 0, b = 0;
        for (Index k = 0; k < depth; ++k) {
          const double normed = x.at(m * depth + k) * scale * alpha.at(k);
          a += normed * w.at(n * depth + k);
          b += normed * w.at((cols + n) * depth + k);
        }
        const double value = a / (1 + std::exp(-a)) * b,
                     got_value = static_cast<double>(wide(got[static_cast<std::size_t>(m * cols + n)]));
        worst = std::max(worst, std::abs(got_value - value) / (0.01 * std::abs(value) + 0.03));
      }
    }
    INFO("depth " << depth << ", columns " << cols << ": " << worst << " tolerances");
    CHECK(worst <= 1);
  }
}

/// A chain whose products start before their rows are there gives what waiting for each gives.
void chain_agrees() {
  Cuda<bf16> be;
  Rng rng{3};
  constexpr Index dim = 1024, hidden = 2816, layers = 6;
  const Both<bf16> up(be, layers * 2 * hidden * dim, rng, 0.03), down(be, layers * dim * hidden, rng, 0.03),
      alpha(be, dim, rng), start(be, dim, rng);
  const auto x = be.make<bf16, dyn>((layers + 1) * dim), g = be.make<bf16, dyn>(hidden);
  const auto run = [&](bool wait) {
    be.fill(x.data(), x.size(), bf16(-7.0f));
    be.fill(g.data(), g.size(), bf16(-7.0f));
    be.copy(static_cast<const bf16*>(start.device), x.data(), dim);
    for (Index l = 0; l < layers; ++l) {
      bf16 *from = x.data() + l * dim, *to = from + dim;
      be.gated_step<Silu>(Matrix<const bf16>{from, 1, dim, dim}, {alpha.device, nullptr, 1e-8},
                          Matrix<const bf16>{up.device + l * 2 * hidden * dim, 2 * hidden, dim, dim},
                          Matrix<bf16>{g.data(), 1, hidden, hidden});
      if (wait) be.synchronize();
      be.product_step<Identity>(Matrix<const bf16>{g.data(), 1, hidden, hidden}, {},
                                Matrix<const bf16>{down.device + l * dim * hidden, dim, hidden, hidden},
                                Matrix<bf16>{to, 1, dim, dim}, {.addend = from});
      if (wait) be.synchronize();
    }
    return fetch<bf16>(be, x.data(), x.size());
  };
  const auto expected = run(true);
  for (int i = 0; i < 20; ++i)
    CHECK(std::memcmp(run(false).data(), expected.data(), expected.size() * sizeof(bf16)) == 0);
}
/// Products with weights in a format: plain, with a norm before and a sum behind, gated; the same bits in any
/// batch, and those of products by panels of numbers but for the order of sums.
template <class Format>
void quantised_agrees(Index depth, Index cols) {
  WithWeights<Format, Cuda<bf16>> be;
  Rng rng{8};
  constexpr Index most = 4;
  constexpr double eps = 1e-5;
  const Index rows_of_w = 2 * cols;
  std::vector<typename Format::Value> values(static_cast<std::size_t>(rows_of_w * Format::values(depth)));
  std::vector<typename Format::Scale> scales(static_cast<std::size_t>(rows_of_w * Format::scales(depth)));
  std::vector<float> row(static_cast<std::size_t>(depth));
  for (Index r = 0; r < rows_of_w; ++r) {
    for (float& x : row)
      x = static_cast<float>(rng.truncated_normal() / std::sqrt(static_cast<double>(depth)));
    Format::quantise(row.data(), depth, &values[static_cast<std::size_t>(r * Format::values(depth))],
                     &scales[static_cast<std::size_t>(r * Format::scales(depth))]);
  }
  const auto device_values = be.template make<typename Format::Value, dyn>(static_cast<Index>(values.size()));
  const auto device_scales = be.template make<typename Format::Scale, dyn>(static_cast<Index>(scales.size()));
  be.to_device(values.data(), device_values.data(), device_values.size());
  be.to_device(scales.data(), device_scales.data(), device_scales.size());
  const QuantisedMatrix<Format> both{device_values.data(), device_scales.data(), rows_of_w, depth},
      w = both.take_rows(0, cols);
  const auto weight = [&](Index n, Index k) {
    return static_cast<double>(Format::weight(&values[static_cast<std::size_t>(n * Format::values(depth))],
                                              &scales[static_cast<std::size_t>(n * Format::scales(depth))],
                                              k));
  };
  const Both<bf16> x(be, most * depth, rng), alpha(be, depth, rng), addend(be, most * cols, rng);
  std::vector<bf16> all[3];
  for (Index rows = most; rows > 0; --rows) {
    REQUIRE(be.steps_products(rows, w));
    const Matrix<const bf16> from{x.device, rows, depth, depth};
    const auto y = be.template make<bf16, dyn>(3 * most * cols);
    const auto result = [&](Index i) { return Matrix<bf16>{y.data() + i * most * cols, rows, cols, cols}; };
    const NormRows<bf16> norm{alpha.device, nullptr, eps};
    REQUIRE(be.quantised_product(from, w, result(0), 1.0f, 0.0f));
    be.template product_step<Identity>(from, norm, w, result(1), {.addend = addend.device});
    REQUIRE(be.template gated_step<Silu>(from, norm, both, result(2)));
    for (Index i = 0; i < 3; ++i) {
      const auto got = fetch<bf16>(be, result(i).data, rows * cols);
      INFO("product " << i << ", " << rows << " rows, depth " << depth << ", columns " << cols);
      if (rows < most) {
        CHECK(std::memcmp(got.data(), all[i].data(), got.size() * sizeof(bf16)) == 0);
        continue;
      }
      all[i] = got;
      double worst = 0;
      for (Index m = 0; m < rows; ++m) {
        double square = 0;
        for (Index k = 0; k < depth; ++k) square += x.at(m * depth + k) * x.at(m * depth + k);
        const double scale = 1 / std::sqrt(square / static_cast<double>(depth) + eps);
        for (Index n = 0; n < cols; ++n) {
          double a = 0, b = 0;
          for (Index k = 0; k < depth; ++k) {
            const double factor = x.at(m * depth + k) * (i == 0 ? 1 : scale * alpha.at(k));
            a += factor * weight(n, k);
            if (i == 2) b += factor * weight(cols + n, k);
          }
          const double value = i == 0 ? a : i == 1 ? a + addend.at(m * cols + n) : a / (1 + std::exp(-a)) * b;
          const double error =
              std::abs(static_cast<double>(wide(got[static_cast<std::size_t>(m * cols + n)])) - value);
          worst = std::max(worst, error / (0.01 * std::abs(value) + 0.03));
        }
      }
      CHECK(worst <= 1);
    }
  }
}
}  // namespace

TEST_CASE("CUDA: products of few rows with weights in 8 and 4 bits") {
  for (const Index depth : {256, 1024, 2816, 4096, 11264}) {
    for (const Index cols : {3, 300}) {
      quantised_agrees<Int8>(depth, cols);
      quantised_agrees<Int4>(depth, cols);
    }
  }
}
TEST_CASE("CUDA: gated products of few rows") {
  for (const Index depth : {256, 1024, 2816, 4096}) {
    for (const Index cols : {3, 300}) gate_agrees(depth, cols);
  }
}
// More stages than the queue holds. racecheck does not see that the lanes which read a stage are ordered before
// the copy into it by __syncwarp and one lane's arrival; with every lane arriving it found nothing.
TEST_CASE("CUDA: gated products of few rows whose queue turns", "[queue]") {
  for (const Index cols : {3, 300}) gate_agrees(11264, cols);
}
TEST_CASE("CUDA: products that start before their rows are there") { chain_agrees(); }
TEST_CASE("CUDA: products of few rows") {
  SECTION("float64") { all_shapes<double, double>(); }
  SECTION("float32") { all_shapes<float, float>(); }
  SECTION("bf16") { all_shapes<bf16, bf16>(); }
  SECTION("bf16 to float32") { all_shapes<bf16, float>(); }
}
TEST_CASE("CUDA: products with a norm before and a sum behind") {
  SECTION("float64") { all_fused<double>(); }
  SECTION("float32") { all_fused<float>(); }
  SECTION("bf16") { all_fused<bf16>(); }
}
TEST_CASE("CUDA: a product of few rows is one kernel") {
  Cuda<float> be;
  const auto x = be.make<float, dyn>(4 * 4096), w = be.make<float, dyn>(64 * 4096),
             y = be.make<float, dyn>(4 * 64);
  const CudaGraph graph = be.capture([&] {
    be.matmul(Matrix<const float>{x.data(), 4, 4096, 4096}, Matrix<const float>{w.data(), 64, 4096, 4096}.t(),
              Matrix<float>{y.data(), 4, 64, 64});
  });
  CHECK(graph.nodes() == 1);
}
