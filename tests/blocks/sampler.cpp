#include "mttt/lm/sampler.hpp"

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"

namespace {
using namespace mttt;

template <class T>
std::vector<std::int32_t> draw(const std::vector<T>& logits, Index rows, const SampleOptions& options,
                               const std::vector<std::int64_t>& seeds,
                               const std::vector<std::int64_t>& frames, Index stream = 0) {
  Cpu<T> be(1);
  std::vector<std::int32_t> codes(static_cast<std::size_t>(rows), -7);
  const Index card = static_cast<Index>(logits.size()) / rows;
  sample(be, Tensor<const T, dyn, dyn>(logits.data(), {rows, card}), options, seeds.data(), frames.data(),
         stream, codes.data());
  return codes;
}

/// `n` frames of one session, which always hears the same logits.
std::vector<std::int32_t> many(const std::vector<float>& row, Index n, const SampleOptions& options,
                               std::int64_t seed = 1, Index stream = 0) {
  std::vector<float> logits;
  std::vector<std::int64_t> frames(static_cast<std::size_t>(n));
  std::iota(frames.begin(), frames.end(), 0);
  for (Index i = 0; i < n; ++i) logits.insert(logits.end(), row.begin(), row.end());
  return draw(logits, n, options, std::vector<std::int64_t>(frames.size(), seed), frames, stream);
}

/// Pearson's statistic of codes against softmax(row / temperature) over `support`.
double chi_square(const std::vector<std::int32_t>& codes, const std::vector<float>& row, double temperature,
                  const std::vector<std::size_t>& support) {
  std::vector<double> p(row.size());
  for (const auto i : support) p[i] = std::exp(row[i] / temperature);
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  std::vector<double> count(row.size());
  for (const auto code : codes) ++count[static_cast<std::size_t>(code)];
  double statistic = 0;
  for (const auto i : support) {
    const double expected = p[i] / total * static_cast<double>(codes.size());
    statistic += (count[i] - expected) * (count[i] - expected) / expected;
    count[i] = 0;
  }
  return std::accumulate(count.begin(), count.end(), 0.0) > 0 ? INFINITY : statistic;  // outside the support
}

const std::vector<float> row{0.3f, -1.0f, 2.0f, 0.0f, 1.1f, -0.4f, 0.9f, -2.0f, 1.5f, 0.2f, -0.1f};
constexpr Index draws = 40000;
}  // namespace

TEST_CASE("Frequencies are those of the softmax at the temperature") {
  std::vector<std::size_t> all(row.size());
  std::iota(all.begin(), all.end(), std::size_t{0});
  for (const double temperature : {0.5, 0.8, 1.0, 2.0}) {
    INFO("temperature " << temperature);
    const auto codes = many(row, draws, {.temperature = temperature, .top_k = 0});
    CHECK(chi_square(codes, row, temperature, all) < 35.6);  // 10 degrees of freedom, one in ten thousand
  }
}

TEST_CASE("The top k, and only they, share what the softmax gives them") {
  std::vector<std::size_t> order(row.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [](auto a, auto b) { return row[a] > row[b]; });
  for (const std::size_t k : {2u, 3u, 6u, 11u}) {
    INFO("top " << k);
    const auto codes = many(row, draws, {.temperature = 1.3, .top_k = static_cast<Index>(k)});
    CHECK(chi_square(codes, row, 1.3, {order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k)}) <
          35.6);
  }
  const auto best = many(row, 100, {.temperature = 1.3, .top_k = 1});
  CHECK(std::all_of(best.begin(), best.end(), [](auto code) { return code == 2; }));
}

TEST_CASE("Ties at the edge of the top k go to the lowest index, and -0 ties with 0") {
  Rng rng(3);
  for (int trial = 0; trial < 12; ++trial) {
    const std::size_t card = 1 + static_cast<std::size_t>(rng.below(70));
    std::vector<float> x(card);
    for (auto& value : x) value = 0.01f * static_cast<float>(rng.below(4)) - 0.01f;
    for (auto& value : x) value = value == 0 && rng.uniform() < 0.5 ? -0.0f : value;
    const std::size_t k = 1 + static_cast<std::size_t>(rng.below(card));
    std::vector<std::int32_t> order(card);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
      return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)];
    });
    const auto codes = many(x, 4000, {.temperature = 5, .top_k = static_cast<Index>(k)});
    CHECK(std::set(codes.begin(), codes.end()) ==
          std::set(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k)));
  }
}

TEST_CASE("Greedy and a temperature of 0 take the first of the largest") {
  const std::vector<float> x{1, 4, 2, 4, -INFINITY, 0};
  for (const SampleOptions& options :
       {SampleOptions{.greedy = true}, SampleOptions{.temperature = 0}, SampleOptions{.temperature = -1}}) {
    CHECK(many(x, 3, options) == std::vector<std::int32_t>{1, 1, 1});
  }
  CHECK(many({-INFINITY, -3.0f, -INFINITY}, 50, {.temperature = 1, .top_k = 0}) ==
        std::vector<std::int32_t>(50, 1));
}

TEST_CASE("A draw depends on seed, frame and stream, and on nothing else") {
  const SampleOptions options{.temperature = 1, .top_k = 9};
  const auto codes = many(row, 64, options, 5);
  CHECK(codes == many(row, 64, options, 5));
  CHECK(codes != many(row, 64, options, 6));
  CHECK(codes != many(row, 64, options, 5, 1));
  CHECK(codes != many(row, 64, options, 5 + (std::int64_t{1} << 40)));

  // Frame 17 of session 5, among neighbours, in another place of the batch, and in float64.
  std::vector<float> logits;
  Rng rng(1);
  for (int r = 0; r < 3; ++r) {
    for (const float x : row) logits.push_back(r == 1 ? x : static_cast<float>(rng.normal()));
  }
  const std::vector<std::int64_t> seeds{8, 5, 9}, frames{3, 17, 99};
  CHECK(draw(logits, 3, options, seeds, frames)[1] == codes[17]);
  const std::vector<double> wide(logits.begin(), logits.end());
  CHECK(draw(wide, 3, options, seeds, frames) == draw(logits, 3, options, seeds, frames));
}

TEST_CASE("Draws of two streams, of two frames and of two seeds are independent") {
  const SampleOptions options{.temperature = 1, .top_k = 0};
  double p_equal = 0, total = 0;
  for (const float x : row) total += std::exp(x);
  for (const float x : row) p_equal += std::pow(std::exp(x) / total, 2);
  const double deviation = std::sqrt(p_equal * (1 - p_equal) / draws);
  const auto a = many(row, draws, options);
  const auto agree = [&](const std::vector<std::int32_t>& x, const std::vector<std::int32_t>& y) {
    const double equal =
        std::inner_product(x.begin(), x.end(), y.begin(), 0.0, std::plus<>(), std::equal_to<>());
    return std::abs(equal / static_cast<double>(x.size()) - p_equal) / deviation;
  };
  CHECK(agree(a, many(row, draws, options, 1, 1)) < 4);
  CHECK(agree(a, many(row, draws, options, 2)) < 4);
  CHECK(agree({a.begin(), a.end() - 1}, {a.begin() + 1, a.end()}) < 4);
}
