// Weights in 16, 8 and 4 bits: what rounding to them loses, their products against sums written out, in every
// set of instructions that this processor has, and the same bits in any batch and with any number of threads.
#include <cmath>
#include <cstring>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/codec/conv_transpose1d.hpp"
#include "mttt/core/quantise.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"

namespace {
using namespace mttt;
using detail::Instructions;

std::vector<Instructions> instructions_here() {
  std::vector<Instructions> all{Instructions::plain};
  if (detail::processor_instructions() >= Instructions::avx2) all.push_back(Instructions::avx2);
  if (detail::processor_instructions() >= Instructions::avx512_vnni) all.push_back(Instructions::avx512_vnni);
  return all;
}

std::vector<float> normal_numbers(Index n, std::uint64_t seed, double deviation = 1) {
  Rng rng(seed);
  std::vector<float> numbers(static_cast<std::size_t>(n));
  for (float& x : numbers) x = static_cast<float>(deviation * rng.normal());
  return numbers;
}

template <class Format>
struct Rounded {
  Index out, in;
  std::vector<float> exact;
  std::vector<typename Format::Value> values;
  std::vector<typename Format::Scale> scales;

  Rounded(Index n, Index k, std::vector<float> numbers)
      : out(n),
        in(k),
        exact(std::move(numbers)),
        values(static_cast<std::size_t>(n * Format::values(k))),
        scales(static_cast<std::size_t>(n * Format::scales(k))) {
    for (Index r = 0; r < n; ++r)
      Format::quantise(exact.data() + r * k, k, values.data() + r * Format::values(k),
                       scales.data() + r * Format::scales(k));
  }
  Rounded(Index n, Index k, std::uint64_t seed, double deviation = 0.02)
      : Rounded(n, k, normal_numbers(n * k, seed, deviation)) {}
  QuantisedMatrix<Format> matrix() const { return {values.data(), scales.data(), out, in}; }
  double at(Index r, Index i) const {
    return static_cast<double>(Format::weight(matrix().row(r), matrix().row_scales(r), i));
  }
  double exact_at(Index r, Index i) const {
    return static_cast<double>(exact[static_cast<std::size_t>(r * in + i)]);
  }
  double relative_error() const {
    double error = 0, all = 0;
    for (Index r = 0; r < out; ++r) {
      for (Index i = 0; i < in; ++i) {
        error += std::pow(at(r, i) - exact_at(r, i), 2);
        all += std::pow(exact_at(r, i), 2);
      }
    }
    return std::sqrt(error / all);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("what is in a format already comes back to the bit", "", Int8, Int4) {
  const Rounded<TestType> once(5, 100, 1);
  std::vector<float> numbers(500);
  for (Index i = 0; i < 500; ++i)
    numbers[static_cast<std::size_t>(i)] = static_cast<float>(once.at(i / 100, i % 100));
  const Rounded<TestType> twice(5, 100, numbers);
  for (Index i = 0; i < 500; ++i) CHECK(twice.at(i / 100, i % 100) == once.at(i / 100, i % 100));
}

TEST_CASE("Int8 errs by half a step of the row at most") {
  const Rounded<Int8> rounded(7, 333, 2);
  for (Index r = 0; r < 7; ++r) {
    double largest = 0;
    for (Index i = 0; i < 333; ++i) largest = std::max(largest, std::abs(rounded.exact_at(r, i)));
    for (Index i = 0; i < 333; ++i)
      CHECK(std::abs(rounded.at(r, i) - rounded.exact_at(r, i)) <= (0.5 + 1e-4) * largest / 127);
  }
  // Normal numbers: a row's largest of 4096 is about 3.6 deviations, its step a 127th of that, and the error
  // of rounding a step / sqrt(12).
  CHECK(Rounded<Int8>(64, 4096, 3).relative_error() == Approx(3.6 / 127 / std::sqrt(12.0)).epsilon(0.1));
}

TEST_CASE("Int4 errs by 8.2 % of normal weights, and less than its largest on -8") {
  CHECK(Rounded<Int4>(64, 4096, 4).relative_error() == Approx(0.082).epsilon(0.02));  // found by simulation
  std::vector<float> group(32, 0.0f);
  group[3] = -0.8f, group[20] = 0.3f;
  const Rounded<Int4> sparse(1, 32, group);
  CHECK(sparse.at(0, 3) == Approx(-0.8).epsilon(0.005));  // a bf16 scale
  CHECK(sparse.at(0, 20) == Approx(0.3).epsilon(0.005));
  CHECK(sparse.at(0, 0) == 0);
}

TEMPLATE_TEST_CASE("zeros, huge and tiny weights are weights too", "", Int8, Int4) {
  for (const float size : {0.0f, 1e-36f, 1e-30f, 1e30f, 3e38f}) {
    const Rounded<TestType> rounded(2, 40, std::vector<float>(80, size));
    for (Index i = 0; i < 80; ++i) {
      const double w = static_cast<double>(size);
      CHECK(std::abs(rounded.at(i / 40, i % 40) - w) <= 0.005 * w);
    }
  }
}

TEMPLATE_TEST_CASE("products of few rows are those of the weights in the format", "", Int8, Int4) {
  using Shape = std::array<Index, 3>;  // rows, out, in
  for (const auto [M, N, K] : {Shape{1, 64, 128},
                               {1, 7, 1},
                               {2, 33, 31},
                               {3, 12, 129},
                               {4, 5, 352},
                               {5, 130, 176},
                               {16, 20, 1000},
                               {1, 3, 11264}}) {
    const Rounded<TestType> w(N, K, 5);
    const Index lda = K + 3, ldc = N + 2;
    const auto a = normal_numbers(M * lda, 6);
    const auto before = normal_numbers(M * ldc, 7);
    for (const auto instructions : instructions_here()) {
      CAPTURE(M, N, K, static_cast<int>(instructions));
      for (const float beta : {0.0f, 0.5f}) {
        auto c = before;
        Cpu<float> be(1);
        REQUIRE(be.quantised_product(Matrix<const float>{a.data(), M, K, lda}, w.matrix(),
                                     Matrix<float>{c.data(), M, N, ldc}, 2.0f, beta, instructions));
        for (Index m = 0; m < M; ++m) {
          // An element of a row errs by at most half of its block's largest / 32639, and float sums by an
          // epsilon a block.
          double largest = 0;
          for (Index k = 0; k < K; ++k)
            largest =
                std::max(largest, std::abs(static_cast<double>(a[static_cast<std::size_t>(m * lda + k)])));
          for (Index n = 0; n < ldc; ++n) {
            const auto at = static_cast<std::size_t>(m * ldc + n);
            double sum = 0, weights = 0, moduli = 0;
            for (Index k = 0; n < N && k < K; ++k) {
              const double x = static_cast<double>(a[static_cast<std::size_t>(m * lda + k)]);
              sum += x * w.at(n, k), weights += std::abs(w.at(n, k)), moduli += std::abs(x * w.at(n, k));
            }
            const double expected =
                n < N ? 2 * sum + static_cast<double>(beta * before[at]) : static_cast<double>(before[at]);
            const double bound =
                2 * (weights * 0.51 * largest / 32639 + 1e-7 * (5 + static_cast<double>(K) / 128) * moduli) +
                1e-6;
            REQUIRE(std::abs(static_cast<double>(c[at]) - expected) <= (n < N ? bound : 0));
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("a row has the same bits in any batch and with any number of threads", "", Int8, Int4) {
  const Index N = 1021, K = 1100;
  const Rounded<TestType> w(N, K, 8);
  const auto a = normal_numbers(16 * K, 9);
  for (const auto instructions : instructions_here()) {
    std::vector<float> alone(static_cast<std::size_t>(16 * N)), together = alone;
    Cpu<float> one(1);
    for (Index m = 0; m < 16; ++m)
      one.quantised_product(Matrix<const float>{a.data() + m * K, 1, K, K}, w.matrix(),
                            Matrix<float>{alone.data() + m * N, 1, N, N}, 1, 0, instructions);
    for (const int threads : {1, 2, 3, 7}) {
      for (const Index M : {2, 3, 4, 16}) {
        Cpu<float> be(threads);
        be.quantised_product(Matrix<const float>{a.data(), M, K, K}, w.matrix(),
                             Matrix<float>{together.data(), M, N, N}, 1, 0, instructions);
        CHECK(std::memcmp(alone.data(), together.data(), static_cast<std::size_t>(M * N) * 4) == 0);
      }
    }
  }
}

TEMPLATE_TEST_CASE("a backend with quantised weights multiplies alike with few and with many rows", "", Int8,
                   Int4) {
  const Index N = 70, K = 200, M = 40;
  const Rounded<TestType> w(N, K, 10);
  const auto a = normal_numbers(M * K, 11);
  const auto product = [&](auto be, Index rows) {
    using T = typename decltype(be)::Scalar;
    std::vector<T> x(a.size()), c(static_cast<std::size_t>(M * N));
    std::transform(a.begin(), a.end(), x.begin(), [](float v) { return static_cast<T>(v); });
    for (Index m = 0; m < M; m += rows)
      be.matmul(Matrix<T>{x.data() + m * K, rows, K, K}, w.matrix().t(),
                Matrix<T>{c.data() + m * N, rows, N, N});
    return std::vector<double>(c.begin(), c.end());
  };
  const auto exact = product(WithWeights<TestType, Cpu<double>>(1), M);
  const auto few = product(WithWeights<TestType, Cpu<float>>(1), 4);
  const auto many = product(WithWeights<TestType, Cpu<float>>(1), M);
  const auto few_bf16 = product(WithWeights<TestType, Cpu<bf16>>(1), 4);
  double error_few = 0, error_many = 0, error_bf16 = 0, all = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error_few += std::pow(few[i] - exact[i], 2), error_many += std::pow(many[i] - exact[i], 2);
    error_bf16 += std::pow(few_bf16[i] - exact[i], 2), all += std::pow(exact[i], 2);
  }
  CHECK(std::sqrt(error_few / all) < 4e-5);   // 16 bits: largest / rms is 3 to 4, times 1 / (32639 sqrt(12))
  CHECK(std::sqrt(error_many / all) < 1e-6);  // float
  CHECK(std::sqrt(error_bf16 / all) < 4e-3);  // x and c of 8 bits, 2^-9 / sqrt(3) each
}

TEMPLATE_TEST_CASE("NaN and infinity in a row make its products NaN, and no others", "", Int8, Int4) {
  const Index K = 300;
  const Rounded<TestType> w(9, K, 12);
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    auto a = normal_numbers(2 * K, 13);
    a[K + 150] = bad;
    for (const auto instructions : instructions_here()) {
      std::vector<float> c(18);
      Cpu<float>(1).quantised_product(Matrix<const float>{a.data(), 2, K, K}, w.matrix(),
                                      Matrix<float>{c.data(), 2, 9, 9}, 1, 0, instructions);
      for (std::size_t i = 0; i < 9; ++i) CHECK((std::isfinite(c[i]) && std::isnan(c[9 + i])));
    }
  }
}

namespace {
template <class N>
std::vector<N> narrow_numbers(Index n, std::uint64_t seed) {
  const auto wide_ones = normal_numbers(n, seed, 0.02);
  std::vector<N> numbers;
  for (const float x : wide_ones) numbers.push_back(N(x));
  return numbers;
}

/// Conv and Plain are one block with weights in f16 and in float32: they give the same, stepped and at once,
/// once these are rounded.
template <class Conv, class Plain>
void steps_as_rounded() {
  using Narrow = WithWeights<f16, Cpu<float>>;
  static_assert(std::is_same_v<typename Conv::Weight::value_type, f16>);
  Cpu<float> be(1);
  Narrow narrow(2);
  Rng rng(14);
  Store<typename Plain::Params, Cpu<float>> params(be);
  Plain::init(*params, rng);
  Store<typename Conv::Params, Narrow> small(narrow);
  quantise(params, small);
  CHECK(100 * small.bytes() < 51 * params.bytes());
  for (Index i = 0; i < params->weight.size(); ++i) params->weight.data()[i] = small->weight.data()[i];
  const Index steps = 40;
  const auto x = be.make<float, dyn, dyn, Plain::in>(1, steps);
  laws::fill_normal(x, 1, rng);
  const auto make = [&] { return be.make<float, dyn, dyn, Plain::out>(1, Plain::out_time(steps)); };
  const auto expected = make(), offline = make(), streamed = make();
  typename Plain::Saved saved;
  typename Conv::Saved narrow_saved;
  Plain::forward(be, *params, x, expected, saved);
  Conv::forward(narrow, *small, x, offline, narrow_saved);
  Store<typename Conv::State, Narrow> state(narrow);
  Conv::reset(narrow, *small, *state, Mask{});
  for (Index at = 0; at < steps; at += 2)
    Conv::step(narrow, *small, *state, Sequence<const float, Plain::in>(&x(0, at, 0), {1, 2, Plain::in}),
               Sequence<float, Plain::out>(&streamed(0, Plain::out_time(at), 0),
                                           {1, Plain::out_time(2), Plain::out}),
               Mask{});
  CHECK(laws::largest_difference(expected.data(), offline.data(), expected.size()) < 1e-5);
  CHECK(laws::largest_difference(expected.data(), streamed.data(), expected.size()) < 1e-5);
}
}  // namespace

TEMPLATE_TEST_CASE("products of few rows with weights in 16 bits are those of the same weights", "", f16,
                   bf16) {
  using Shape = std::array<Index, 3>;  // rows, out, in
  for (const auto [M, N, K] :
       {Shape{1, 64, 128}, {1, 7, 1}, {2, 33, 31}, {3, 12, 129}, {4, 5, 352}, {16, 20, 1000}, {2, 9, 0}}) {
    const Index ldw = K + 5, lda = K + 3, ldc = N + 2;
    const auto w = narrow_numbers<TestType>(N * ldw, 15);
    const auto a = normal_numbers(M * lda, 16), before = normal_numbers(M * ldc, 17);
    for (const auto instructions : instructions_here()) {
      CAPTURE(M, N, K, static_cast<int>(instructions));
      for (const float beta : {0.0f, 0.5f}) {
        auto c = before;
        Cpu<float> be(1);
        REQUIRE(be.narrow_product(Matrix<const float>{a.data(), M, K, lda},
                                  Matrix<const TestType>{w.data(), N, K, ldw},
                                  Matrix<float>{c.data(), M, N, ldc}, 2.0f, beta, instructions));
        for (Index m = 0; m < M; ++m) {
          for (Index n = 0; n < ldc; ++n) {
            const auto at = static_cast<std::size_t>(m * ldc + n);
            double sum = 0, moduli = 0;
            for (Index k = 0; n < N && k < K; ++k) {
              const double product = static_cast<double>(a[static_cast<std::size_t>(m * lda + k)]) *
                                     static_cast<double>(wide(w[static_cast<std::size_t>(n * ldw + k)]));
              sum += product, moduli += std::abs(product);
            }
            const double expected =
                n < N ? 2 * sum + static_cast<double>(beta * before[at]) : static_cast<double>(before[at]);
            REQUIRE(std::abs(static_cast<double>(c[at]) - expected) <= (n < N ? 2e-6 * moduli + 1e-6 : 0));
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("a row has the same bits in any batch, by weights in 16 bits", "", f16, bf16) {
  const Index N = 1021, K = 700;
  const auto w = narrow_numbers<TestType>(N * K, 18);
  const auto a = normal_numbers(16 * K, 19);
  const Matrix<const TestType> weights{w.data(), N, K, K};
  for (const auto instructions : instructions_here()) {
    std::vector<float> alone(static_cast<std::size_t>(16 * N)), together = alone;
    Cpu<float> one(1), several(3);
    for (Index m = 0; m < 16; ++m)
      one.narrow_product(Matrix<const float>{a.data() + m * K, 1, K, K}, weights,
                         Matrix<float>{alone.data() + m * N, 1, N, N}, 1, 0, instructions);
    for (const Index M : {2, 3, 4, 16}) {
      several.narrow_product(Matrix<const float>{a.data(), M, K, K}, weights,
                             Matrix<float>{together.data(), M, N, N}, 1, 0, instructions);
      CHECK(std::memcmp(alone.data(), together.data(), static_cast<std::size_t>(M * N) * 4) == 0);
    }
  }
}

TEST_CASE("large convolutions of a backend with weights in f16 hold them, small ones do not") {
  using Narrow = WithWeights<f16, Cpu<float>>;
  constexpr Conv1dConfig conv{.in = 256, .out = 1024, .kernel = 2};
  steps_as_rounded<Conv1d<conv, Narrow>, Conv1d<conv, Cpu<float>>>();
  constexpr ConvTranspose1dConfig transposed{.in = 512, .out = 256, .kernel = 4, .stride = 2};
  steps_as_rounded<ConvTranspose1d<transposed, Narrow>, ConvTranspose1d<transposed, Cpu<float>>>();
  constexpr Conv1dConfig small{.in = 64, .out = 64, .kernel = 7};
  static_assert(std::is_same_v<Conv1d<small, Narrow>::Weight::value_type, float>);
}

TEST_CASE("f16 refuses weights that it does not hold") {
  using Narrow = WithWeights<f16, Cpu<float>>;
  constexpr LinearConfig config{.in = 3, .out = 2};
  Cpu<float> be(1);
  Narrow narrow(1);
  Store<Linear<config, Cpu<float>>::Params, Cpu<float>> params(be);
  Store<Linear<config, Narrow>::Params, Narrow> small(narrow);
  for (Index i = 0; i < 6; ++i) params->weight.data()[i] = i == 0 ? 1e-7f : 65504.0f;
  quantise(params, small);
  CHECK(float(small->weight(0, 0)) == Approx(1e-7).epsilon(0.2));  // subnormal
  CHECK(float(small->weight(1, 2)) == 65504);
  const float x[2][3] = {{1, 0, 0}, {0, 0, 1}};
  float up[2][2], down[2][3];  // by rows of the weights and, as a gradient is, by columns
  narrow.matmul(Matrix<const float>{x[0], 2, 3, 3}, small->weight.matrix().t(),
                Matrix<float>{up[0], 2, 2, 2});
  CHECK(up[1][0] == 65504);
  narrow.matmul(Matrix<const float>{up[0], 2, 2, 2}, small->weight.matrix(), Matrix<float>{down[0], 2, 3, 3});
  CHECK(down[0][1] == up[0][0] * 65504 + up[0][1] * 65504);
  params->weight(1, 1) = 65520;
  CHECK_THROWS_WITH(quantise(params, small), mttt::test::contains("to store in f16"));
}
