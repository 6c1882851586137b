// The split residual quantiser against direct distances, and its straight-through gradients.
#include "mttt/codec/rvq.hpp"

#include <cmath>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"

namespace {
using namespace mttt;
constexpr RvqConfig config{.dim = 12, .codebook_dim = 5, .card = 33, .n_q = 5, .semantic_q = 2};

template <class T>
using Rvq = SplitRvq<config, Cpu<T>>;

template <class T>
struct Quantiser {
  using B = Cpu<T>;
  using Q = Rvq<T>;
  B be;
  Store<typename Q::Params, B> params{be};
  Store<typename Q::Codebooks, B> tables{be};
  Rng rng{7};

  Quantiser() {
    Q::init(*params, rng);
    for_each_tensor(
        [&](std::string_view name, auto& t) {
          if (!name.ends_with("cluster_usage")) return;
          for (Index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(0.5 + rng.uniform());
        },
        *params);
    params->rvq_first.layers[0].cluster_usage(3) = 0;  // never used: its vector is embedding_sum / 1e-5
    Q::derive(be, *params, *tables);
  }
  Sequence<T, 12> input(Index sessions, Index steps) {
    const auto x = be.template make<T, dyn, dyn, 12>(sessions, steps);
    laws::fill_normal(x, 1, rng);
    return x;
  }
  Codes<> codes(Index sessions, Index n, Index steps) {
    return be.template make<std::int32_t, dyn, dyn, dyn>(sessions, n, steps);
  }
};

double embedding(const auto& level, Index code, Index i) {
  return level.embedding_sum(code, i) / std::max(1e-5, static_cast<double>(level.cluster_usage(code)));
}

/// One branch on one row, by the definition: the codes, and what is left of the projected row in `r`.
template <class Branch>
std::vector<std::int32_t> nearest(const Branch& branch, const auto& x, std::vector<double>& r) {
  r.assign(config.codebook_dim, 0);
  for (Index i = 0; i < config.codebook_dim; ++i) {
    for (Index j = 0; j < config.dim; ++j) r[i] += branch.input_proj(i, j, 0) * x(j);
  }
  std::vector<std::int32_t> codes;
  for (const auto& level : branch.layers) {
    Index best = 0;
    double least = INFINITY;
    for (Index c = 0; c < config.card; ++c) {
      double distance = 0;
      for (Index i = 0; i < config.codebook_dim; ++i) {
        const double d = r[i] - embedding(level, c, i);
        distance += d * d;
      }
      if (distance < least) {
        least = distance;
        best = c;
      }
    }
    for (Index i = 0; i < config.codebook_dim; ++i) r[i] -= embedding(level, best, i);
    codes.push_back(static_cast<std::int32_t>(best));
  }
  return codes;
}
}  // namespace

TEST_CASE("codes are the nearest vectors, at any number of codebooks") {
  Quantiser<double> q;
  const Index sessions = 2, steps = 301;  // more rows than are scored at once
  const auto x = q.input(sessions, steps);
  for (const Index n : {2, 3, 5}) {
    const auto codes = q.codes(sessions, n, steps);
    Rvq<double>::encode(q.be, *q.params, *q.tables, x, codes);
    for (Index b = 0; b < sessions; ++b) {
      for (Index t = 0; t < steps; ++t) {
        std::vector<double> left;
        auto expected = nearest(q.params->rvq_first, x[b][t], left);
        const auto rest = nearest(q.params->rvq_rest, x[b][t], left);
        expected.insert(expected.end(), rest.begin(), rest.end());
        for (Index level = 0; level < n; ++level) REQUIRE(codes(b, level, t) == expected[level]);
      }
    }
  }
}

TEST_CASE("equally near vectors: the lowest code") {
  Quantiser<float> q;
  const auto same = q.params->rvq_first.layers[0];
  for (Index c = 0; c < config.card; ++c) {
    same.cluster_usage(c) = 1;
    for (Index i = 0; i < config.codebook_dim; ++i) same.embedding_sum(c, i) = c < 4 ? 100.0f : 1.0f;
  }
  Rvq<float>::derive(q.be, *q.params, *q.tables);
  const auto x = q.input(1, 5);
  const auto codes = q.codes(1, 2, 5);
  Rvq<float>::encode(q.be, *q.params, *q.tables, x, codes);
  for (Index t = 0; t < 5; ++t) CHECK(codes(0, 0, t) == 4);
}

TEST_CASE("decoding sums the projected vectors; unknown codes add nothing") {
  Quantiser<double> q;
  const auto codes = q.codes(1, 5, 1);
  for (Index level = 0; level < 5; ++level) codes(0, level, 0) = static_cast<std::int32_t>(3 * level + 1);
  codes(0, 1, 0) = -1;
  codes(0, 3, 0) = config.card;
  const auto y = q.be.make<double, dyn, dyn, 12>(1, 1);
  Rvq<double>::decode(q.be, *q.params, *q.tables, codes, y);
  const auto& first = q.params->rvq_first;
  const auto& rest = q.params->rvq_rest;
  for (Index o = 0; o < config.dim; ++o) {
    double expected = 0;
    for (Index i = 0; i < config.codebook_dim; ++i) {
      expected += first.output_proj(o, i, 0) * embedding(first.layers[0], 1, i);
      expected +=
          rest.output_proj(o, i, 0) * (embedding(rest.layers[0], 7, i) + embedding(rest.layers[2], 13, i));
    }
    CHECK(y(0, 0, o) == Approx(expected).epsilon(1e-12));
  }
}

TEST_CASE("a wrong number of codebooks is refused") {
  Quantiser<float> q;
  const auto x = q.input(1, 1);
  CHECK_THROWS_WITH(Rvq<float>::encode(q.be, *q.params, *q.tables, x, q.codes(1, 6, 1)),
                    test::contains("2 to 5"));
  CHECK_THROWS_WITH(Rvq<float>::encode(q.be, *q.params, *q.tables, x, q.codes(1, 1, 1)),
                    test::contains("2 to 5"));
}

/// Straight through: with the codes held, y(x + e) - y(x) is taken to be the projections of e, and y is
/// linear in the output projections, so that both gradients have a closed form to compare with.
TEST_CASE("gradients pass straight through") {
  const Index n = GENERATE(2, 5);
  Quantiser<double> q;
  const Index sessions = 2, steps = 3;
  const auto x = q.input(sessions, steps), dy = q.input(sessions, steps), dx = q.input(sessions, steps);
  const auto y = q.input(sessions, steps), again = q.input(sessions, steps);
  const auto codes = q.codes(sessions, n, steps);
  Rvq<double>::Saved saved;
  Store<Rvq<double>::Params, Cpu<double>> grad(q.be);
  Rvq<double>::forward(q.be, *q.params, *q.tables, x, codes, y, saved);
  Rvq<double>::decode(q.be, *q.params, *q.tables, codes, again);
  REQUIRE(laws::largest_difference(y.data(), again.data(), y.size()) == 0);
  Rvq<double>::backward(q.be, *q.params, saved, dy, dx, *grad);

  const auto check = [&](const auto& part, const auto& part_grad, Index first, Index last,
                         auto& dx_expected) {
    for (Index i = 0; i < config.codebook_dim; ++i) {
      for (Index c = 0; c < config.dim; ++c) {
        double to_in = 0, to_out = 0;
        for (Index r = 0; r < sessions * steps; ++r) {
          const Index b = r / steps, t = r % steps;
          double dr = 0, quantised = 0;
          for (Index o = 0; o < config.dim; ++o) dr += dy(b, t, o) * part.output_proj(o, i, 0);
          for (Index level = first; level < last; ++level) {
            quantised += embedding(part.layers[level - first], codes(b, level, t), i);
          }
          to_in += dr * x(b, t, c);
          to_out += dy(b, t, c) * quantised;
          dx_expected[r * config.dim + c] += dr * part.input_proj(i, c, 0);
        }
        CHECK(part_grad.input_proj(i, c, 0) == Approx(to_in).margin(1e-9));
        CHECK(part_grad.output_proj(c, i, 0) == Approx(to_out).margin(1e-9));
      }
    }
  };
  std::vector<double> expected(dx.size());
  check(q.params->rvq_first, grad->rvq_first, 0, 2, expected);
  if (n > 2) check(q.params->rvq_rest, grad->rvq_rest, 2, n, expected);
  CHECK(laws::largest_difference(dx.data(), expected.data(), dx.size()) < 1e-12);
}
