// Embedding: look-up, sums of streams, strides, the zero code, its gradient, and refused codes.
#include "mttt/nn/embedding.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"

namespace {
using namespace mttt;
constexpr Index card = 6, dim = 67;  // more than one block of columns
using Table = Embedding<EmbeddingConfig{.card = card, .dim = dim}, Cpu<double>>;

template <class I>
CodeRows<I> flat(const std::vector<I>& codes) {
  return Tensor<const I, dyn>(codes.data(), {static_cast<Index>(codes.size())});
}
}  // namespace

TEST_CASE("Embedding copies rows, and adds those of a second stream") {
  Cpu<double> be;
  Rng rng(1);
  Store<Table::Params, Cpu<double>> table(be), other(be);
  Table::init(*table, rng);
  Table::init(*other, rng);
  const std::vector<std::int32_t> first{0, 5, -1, 2};
  const std::vector<std::int64_t> second{3, -1, -1, 1};
  std::vector<double> y(4 * dim, NAN);
  Table::forward(be, *table, flat(first), y.data());
  Table::forward(be, *other, flat(second), y.data(), Write::add);
  for (Index r = 0; r < 4; ++r) {
    for (Index c = 0; c < dim; ++c) {
      const double a = first[r] < 0 ? 0 : table->weight(first[r], c);
      const double b = second[r] < 0 ? 0 : other->weight(second[r], c);
      CHECK(y[r * dim + c] == a + b);
    }
  }
}

TEST_CASE("Embedding reads one stream of (B, K, T) tokens in place, and any order of rows") {
  Cpu<double> be;
  Rng rng(2);
  Store<Table::Params, Cpu<double>> table(be);
  Table::init(*table, rng);
  constexpr Index B = 2, K = 3, T = 4, k = 1;
  std::vector<std::int32_t> tokens(B * K * T);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>((i * 5 + i / 4) % card);
  std::vector<double> by_session(B * T * dim), by_time(B * T * dim);
  Table::forward(be, *table, CodeRows<std::int32_t>(&tokens[k * T], B, T, {K * T, 1}), by_session.data());
  Table::forward(be, *table, CodeRows<std::int32_t>(&tokens[k * T], T, B, {1, K * T}), by_time.data());
  for (Index b = 0; b < B; ++b) {
    for (Index t = 0; t < T; ++t) {
      const Index code = tokens[(b * K + k) * T + t];
      for (Index c = 0; c < dim; ++c) {
        CHECK(by_session[(b * T + t) * dim + c] == table->weight(code, c));
        CHECK(by_time[(t * B + b) * dim + c] == table->weight(code, c));
      }
    }
  }
}

TEST_CASE("Embedding's gradient is the sum over the rows that were looked up, added to what is there") {
  Cpu<double> be;
  Rng rng(3);
  Store<Table::Params, Cpu<double>> table(be), grad(be);
  Table::init(*table, rng);
  const std::vector<std::int32_t> codes{4, 0, 4, -1, 4, 2};
  const Index rows = static_cast<Index>(codes.size());
  std::vector<double> y(rows * dim), dy(rows * dim);
  for (double& v : dy) v = rng.normal();
  be.fill(grad->weight.data(), grad->weight.size(), 0.5);
  Table::backward(be, flat(codes), dy.data(), *grad);

  const auto loss = [&] {
    Table::forward(be, *table, flat(codes), y.data());
    double sum = 0;
    for (Index i = 0; i < rows * dim; ++i) sum += y[i] * dy[i];
    return sum;
  };
  double worst = 0;
  for (Index i = 0; i < table->weight.size(); ++i) {
    double& w = table->weight.data()[i];
    const double kept = w, h = 1e-3;  // the loss is linear: the step may be large
    w = kept + h;
    const double above = loss();
    w = kept - h;
    const double below = loss();
    w = kept;
    worst = std::max(worst, std::abs((above - below) / (2 * h) + 0.5 - grad->weight.data()[i]));
  }
  CHECK(worst < 1e-10);
  CHECK(grad->weight(1, 0) == 0.5);  // never looked up
}

TEST_CASE("Embedding's gradient does not depend on the number of threads") {
  using Single = Embedding<EmbeddingConfig{.card = card, .dim = 150}, Cpu<float>>;
  Rng rng(4);
  constexpr Index rows = 3000;
  std::vector<std::int32_t> codes(rows);
  std::vector<float> dy(rows * 150);
  for (auto& c : codes) c = static_cast<std::int32_t>(rng.below(card));
  for (float& v : dy) v = static_cast<float>(rng.normal());
  Cpu<float> one(1), two(2);
  Store<Single::Params, Cpu<float>> a(one), b(two);
  Single::backward(one, flat(codes), dy.data(), *a);
  Single::backward(two, flat(codes), dy.data(), *b);
  CHECK(std::vector<float>(a->weight.data(), a->weight.data() + a->weight.size()) ==
        std::vector<float>(b->weight.data(), b->weight.data() + b->weight.size()));
}

TEST_CASE("Codes outside the table are refused by name, place and range") {
  const std::vector<std::int64_t> good{-1, 0, 5}, high{0, 6}, low{0, 1, -2};
  CHECK_NOTHROW(check_codes("text tokens", good.data(), 3, card));
  CHECK_THROWS_WITH(
      check_codes("text tokens", high.data(), 2, card),
      "text tokens: found code 6 at place 1; expected 0 to 5, or -1 for none; use codes made for "
      "this model");
  CHECK_THROWS_AS(check_codes("text tokens", low.data(), 3, card), Error);
}

TEST_CASE("A code outside the table never leaves it") {
  Cpu<double> be;
  Rng rng(5);
  Store<Table::Params, Cpu<double>> table(be), grad(be);
  Table::init(*table, rng);
  const std::vector<std::int64_t> codes{card, -7, std::int64_t{1} << 62};
  std::vector<double> y(3 * dim, NAN);
  Table::forward(be, *table, flat(codes), y.data());
  Table::backward(be, flat(codes), y.data(), *grad);
  CHECK(y == std::vector<double>(3 * dim, 0.0));
}
