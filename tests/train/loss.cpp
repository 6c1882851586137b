#include "mttt/train/loss.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/rng.hpp"

namespace {
using namespace mttt;
using mttt::test::contains;

template <class T>
struct Problem {
  Index rows, card;
  std::vector<T> logits, gradient;
  std::vector<std::int32_t> targets;
  std::vector<float> weights;

  Problem(Index r, Index c, std::uint64_t seed) : rows(r), card(c) {
    Rng rng(seed);
    for (Index i = 0; i < r * c; ++i) logits.push_back(static_cast<T>(3 * rng.normal()));
    gradient.assign(logits.size(), static_cast<T>(NAN));
    for (Index i = 0; i < r; ++i) {
      targets.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(c))));
      weights.push_back(static_cast<float>(rng.uniform() * 2));
    }
  }
  Tensor<T, dyn, dyn> matrix(std::vector<T>& v) { return {v.data(), {rows, card}}; }
  CrossEntropy operator()(Cpu<T>& be, double scale = 1) {
    return cross_entropy(be, matrix(logits), {targets.data(), {rows}}, {weights.data(), {rows}},
                         matrix(gradient), scale);
  }
  double by_hand(std::vector<double>* gradient_by_hand = nullptr, double scale = 1) const {
    double total = 0, weight = 0;
    for (const float w : weights) weight += static_cast<double>(w);
    for (Index r = 0; r < rows; ++r) {
      const double w = static_cast<double>(weights[static_cast<std::size_t>(r)]);
      const auto logit = [&](Index i) {
        return static_cast<double>(logits[static_cast<std::size_t>(r * card + i)]);
      };
      double sum = 0;
      for (Index i = 0; i < card; ++i) sum += std::exp(logit(i));
      const Index target = targets[static_cast<std::size_t>(r)];
      total += w == 0 ? 0 : w * (std::log(sum) - logit(target));
      for (Index i = 0; gradient_by_hand != nullptr && i < card; ++i) {
        gradient_by_hand->push_back(
            w == 0 ? 0 : scale * w / weight * (std::exp(logit(i)) / sum - (i == target ? 1 : 0)));
      }
    }
    return total / weight;
  }
};
}  // namespace

TEMPLATE_TEST_CASE("Cross-entropy equals the formula in float64", "", float, double) {
  Cpu<TestType> be;
  const double tolerance =
      std::is_same_v<TestType, float> ? 2e-6 : 1e-13;  // exp of float: 2 units in the last place
  for (const Index card : {Index{1}, Index{2}, Index{17}, Index{2049}}) {
    Problem<TestType> problem(23, card, static_cast<std::uint64_t>(card));
    const auto result = problem(be, 0.25);
    std::vector<double> expected;
    CHECK(result.loss == Approx(problem.by_hand(&expected, 0.25)).epsilon(tolerance).margin(tolerance));
    double weight = 0, worst = 0;
    for (const float w : problem.weights) weight += static_cast<double>(w);
    CHECK(result.weight == Approx(weight).epsilon(1e-14));
    for (std::size_t i = 0; i < expected.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(problem.gradient[i]) - expected[i]));
    CHECK(worst <= tolerance / 4);
  }
}

TEST_CASE("Cross-entropy's gradient equals central differences") {
  Cpu<double> be;
  Problem<double> problem(5, 7, 3);
  problem.weights[2] = 0;
  problem(be);
  const auto gradient = problem.gradient;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    const double kept = problem.logits[i], h = 1e-5;
    problem.logits[i] = kept + h;
    const double above = problem(be).loss;
    problem.logits[i] = kept - h;
    const double below = problem(be).loss;
    problem.logits[i] = kept;
    CHECK((above - below) / (2 * h) == Approx(gradient[i]).margin(1e-9));
  }
}

TEST_CASE("Rows of weight 0 are not read and get no gradient") {
  Cpu<float> be;
  Problem<float> problem(6, 9, 5);
  for (const std::size_t row : {std::size_t{0}, std::size_t{4}}) {
    problem.weights[row] = 0;
    problem.targets[row] = row == 0 ? -1 : 1 << 30;
    for (std::size_t i = 0; i < 9; ++i) problem.logits[row * 9 + i] = std::numeric_limits<float>::quiet_NaN();
  }
  std::vector<float> losses(6);
  const auto result =
      cross_entropy(be, problem.matrix(problem.logits), {problem.targets.data(), {6}},
                    {problem.weights.data(), {6}}, problem.matrix(problem.gradient), 1, {losses.data(), {6}});
  CHECK(std::isfinite(result.loss));
  double sum = 0, weight = 0;
  for (std::size_t r = 0; r < 6; ++r) {
    sum += static_cast<double>(problem.weights[r]) * static_cast<double>(losses[r]);
    weight += static_cast<double>(problem.weights[r]);
    for (std::size_t i = 0; i < 9; ++i) {
      const float g = problem.gradient[r * 9 + i];
      CHECK(std::isfinite(g));
      CHECK((g == 0) == (r == 0 || r == 4));
    }
  }
  CHECK(result.loss == Approx(sum / weight).epsilon(1e-12));
  CHECK(losses[0] == 0);
  CHECK(losses[1] > 0);
}

TEST_CASE("Cross-entropy: in place, extreme logits, no gradient, nothing to weigh") {
  Cpu<float> be;
  Problem<float> problem(4, 33, 8);
  problem(be);
  auto in_place = problem.logits;
  cross_entropy(be, problem.matrix(in_place), {problem.targets.data(), {4}}, {problem.weights.data(), {4}},
                problem.matrix(in_place));
  CHECK(in_place == problem.gradient);

  const double before = problem(be).loss;
  for (float& x : problem.logits) x += 1000;  // the loss does not see a shift; float then has 6e-5 left
  CHECK(problem(be).loss == Approx(before).epsilon(1e-3));
  CHECK(cross_entropy(be, problem.matrix(problem.logits), {problem.targets.data(), {4}},
                      {problem.weights.data(), {4}})
            .loss == problem(be).loss);

  std::fill(problem.weights.begin(), problem.weights.end(), 0.0f);
  const auto nothing = problem(be);
  CHECK(nothing.loss == 0);
  CHECK(nothing.weight == 0);
  CHECK(problem.gradient == std::vector<float>(4 * 33, 0.0f));
}

TEST_CASE("Cross-entropy refuses bad targets, weights and shapes") {
  Cpu<float> be;
  Problem<float> problem(4, 8, 9);
  problem.targets[1] = 8;
  problem.targets[2] = -1;
  CHECK_THROWS_WITH(problem(be), contains("2 bad rows") && contains("targets from 0 to 7"));
  problem.targets = {0, 1, 2, 3};
  problem.weights[3] =
      GENERATE(-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity());
  CHECK_THROWS_WITH(problem(be), contains("1 bad rows"));
  CHECK_THROWS_WITH(cross_entropy(be, problem.matrix(problem.logits), {problem.targets.data(), {3}},
                                  {problem.weights.data(), {4}}),
                    contains("targets: found 3 elements; expected 4"));
}

TEST_CASE("Rows of text and audio are weighed as in moshi-finetune") {
  Cpu<float> be;
  // B = 2, K = 3 (text and two codebooks), T = 4; padding ids 3 and 0, zero token -1
  const std::vector<std::int32_t> codes{3, 7, 0,  -1, 5, 3, 0, 1, 2, -1, 4, 6,   // session 0
                                        8, 3, -1, 9,  1, 1, 1, 1, 0, 0,  0, 0};  // session 1
  const Tensor<const std::int32_t, dyn, dyn, dyn> all(codes.data(), {2, 3, 4});
  const LossConfig config{.text_padding_weight = 0.5f, .first_codebook_weight_multiplier = 100};

  std::vector<std::int32_t> targets(8);
  std::vector<float> weights(8);
  loss_rows(be, config, all, {}, 0, 1, RowOrder::time_major, {targets.data(), {8}}, {weights.data(), {8}});
  CHECK(weights == std::vector<float>{0.5f, 1, 0.5f, 0, 1, 0.5f, 0, 1});
  CHECK(targets == std::vector<std::int32_t>{3, 7, 0, 0, 8, 3, 0, 9});

  std::vector<std::uint8_t> mask(16, 1);  // (2, 2, 4): the delay of the second codebook takes its last step
  mask[7] = mask[15] = 0;
  targets.resize(16), weights.resize(16);
  loss_rows(be, config, all, {mask.data(), {2, 2, 4}}, 1, 2, RowOrder::stream_major, {targets.data(), {16}},
            {weights.data(), {16}});
  CHECK(weights == std::vector<float>{100, 100, 100, 100, 1, 0, 1, 0, 100, 100, 100, 100, 1, 1, 1, 0});
  CHECK(targets == std::vector<std::int32_t>{5, 3, 0, 1, 2, 0, 4, 0, 1, 1, 1, 1, 0, 0, 0, 0});

  loss_rows(be, config, all, {mask.data(), {2, 2, 4}}, 1, 2, RowOrder::time_major, {targets.data(), {16}},
            {weights.data(), {16}});
  CHECK(weights == std::vector<float>{100, 1, 100, 0, 100, 1, 100, 0, 100, 1, 100, 1, 100, 1, 100, 0});
  CHECK(targets == std::vector<std::int32_t>{5, 2, 3, 0, 0, 4, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0});

  CHECK_THROWS_WITH(loss_rows(be, config, all, {}, 1, 3, RowOrder::time_major, {targets.data(), {16}},
                              {weights.data(), {16}}),
                    contains("streams 1 to 3"));
  CHECK_THROWS_WITH(loss_rows(be, config, all, {mask.data(), {2, 1, 4}}, 1, 2, RowOrder::time_major,
                              {targets.data(), {16}}, {weights.data(), {16}}),
                    contains("mask"));
}
