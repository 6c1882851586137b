// Codebooks placed by k-means: they find what is there, and quantise better than random ones.
#include "mttt/codec/codebook_init.hpp"

#include <set>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/data/codes.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;
constexpr RvqConfig config{.dim = 12, .codebook_dim = 6, .card = 16, .n_q = 5};
using Q = SplitRvq<config, B>;

struct Quantiser {
  B be;
  Store<Q::Params, B> params{be};
  Store<Q::Codebooks, B> tables{be};

  Quantiser() {
    Rng rng(7);
    Q::init(*params, rng);
    Q::derive(be, *params, *tables);
  }
  void place(Tensor<const float, dyn, 12> latents, std::uint64_t seed = 1, int iterations = 10) {
    Rng rng(seed);
    init_codebooks<Q>(be, *params, latents, rng, iterations);
    Q::derive(be, *params, *tables);
  }
  std::vector<std::int32_t> encode(Tensor<const float, dyn, 12> latents, Index n_q = 5) {
    const Index n = latents.extent(0);
    const auto scope = be.scope();
    const auto codes = be.make<std::int32_t, dyn, dyn, dyn>(1, n_q, n);
    Q::encode(be, *params, *tables, {latents.data(), {1, n, 12}}, codes);
    return {codes.data(), codes.data() + codes.size()};
  }
  std::vector<float> projected(Tensor<const float, dyn, 12> latents) {
    std::vector<float> out(static_cast<std::size_t>(latents.extent(0) * 6));
    be.matmul(latents.matrix(), params->rvq_rest.project_in().t(),
              Matrix<float>{out.data(), latents.extent(0), 6, 6});
    return out;
  }
};

/// n rows around `centres` places, `spread` wide.
std::vector<float> rows(Index n, Index centres, double spread, std::uint64_t seed = 3) {
  Rng rng(seed);
  std::vector<double> centre(static_cast<std::size_t>(centres * 12));
  for (double& x : centre) x = 3 * rng.normal();
  std::vector<float> out;
  for (Index i = 0; i < n; ++i) {
    for (Index k = 0; k < 12; ++k)
      out.push_back(
          static_cast<float>(centre[static_cast<std::size_t>(i % centres * 12 + k)] + spread * rng.normal()));
  }
  return out;
}
Tensor<const float, dyn, 12> view(const std::vector<float>& rows) {
  return {rows.data(), {static_cast<Index>(rows.size()) / 12, 12}};
}
}  // namespace

TEST_CASE("codebook_init: as many heaps as codes: every heap gets a code of its own") {
  Quantiser q;
  const auto latents = rows(16 * 20, 16, 0.01);
  q.place(view(latents));
  const auto codes = q.encode(view(latents), 2);
  for (Index level = 0; level < 2; ++level) {  // the first of either branch
    std::set<std::int32_t> used;
    for (Index i = 0; i < 320; ++i) {
      CHECK(codes[level * 320 + i] == codes[level * 320 + i % 16]);
      used.insert(codes[level * 320 + i]);
    }
    CHECK(used.size() == 16);
  }
  for (Index c = 0; c < 16; ++c) CHECK(q.params->rvq_first.layers[0].cluster_usage(c) == 20);
  CHECK(q.params->rvq_rest.layers[3].initialized(0) == 1);
}

TEST_CASE("codebook_init: a vector is the mean of what it stands for") {
  Quantiser q;
  const auto latents = rows(500, 500, 0);
  q.place(view(latents), 1, 1000);  // until nothing moves any more
  const auto codes = q.encode(view(latents));
  const auto r = q.projected(view(latents));
  for (Index c = 0; c < 16; ++c) {
    std::vector<double> mean(6);
    double n = 0;
    for (Index i = 0; i < 500; ++i) {
      if (codes[500 + i] != c) continue;  // the first level of the second branch
      ++n;
      for (Index k = 0; k < 6; ++k) mean[k] += r[i * 6 + k];
    }
    REQUIRE(n > 0);
    for (Index k = 0; k < 6; ++k) CHECK(q.tables->embedding(1, c, k) == Approx(mean[k] / n).margin(1e-4));
  }
}

TEST_CASE(
    "codebook_init: the error falls level by level, and codes carry more than those of random vectors") {
  Quantiser q;
  auto latents = rows(2000, 2000, 0);
  for (float& x : latents) x *= 0.01f;  // far smaller than a random codebook expects
  const auto bits = [&](Index level, const std::vector<std::int32_t>& codes) {
    return entropy(std::span(codes).subspan(static_cast<std::size_t>(level * 2000), 2000));
  };
  const auto random = q.encode(view(latents));
  q.place(view(latents));
  const auto codes = q.encode(view(latents));
  auto residual = q.projected(view(latents));
  double before = 0;
  for (const float x : residual) before += x * x;
  for (Index level = 1; level < 5; ++level) {
    double after = 0;
    for (Index i = 0; i < 2000; ++i) {
      for (Index k = 0; k < 6; ++k) {
        float& x = residual[i * 6 + k];
        x -= q.tables->embedding(level, codes[level * 2000 + i], k);
        after += x * x;
      }
    }
    INFO("level " << level << ": " << after / before << " of the error before");
    CHECK(after < 0.75 * before);  // 16 vectors in 6 dimensions take about half
    before = after;
    CHECK(bits(level, codes) > 3.5);  // of 4
    CHECK(bits(level, codes) > bits(level, random) + 1);
  }
}

TEST_CASE("codebook_init: the same generator, the same codebooks") {
  Quantiser a, b, c;
  const auto latents = rows(300, 300, 0);
  a.place(view(latents));
  b.place(view(latents));
  c.place(view(latents), 2);
  const auto same = [](const Quantiser& x, const Quantiser& y) {
    return std::equal(x.params.data(), x.params.data() + x.params.bytes(), y.params.data());
  };
  CHECK(same(a, b));
  CHECK(!same(a, c));
}

TEST_CASE("codebook_init: fewer rows than codes are each met exactly, nothing becomes infinite") {
  Quantiser q;
  const auto latents = rows(5, 5, 0);
  q.place(view(latents));
  const auto codes = q.encode(view(latents));
  const auto r = q.projected(view(latents));
  for (Index i = 0; i < 5; ++i) {
    for (Index k = 0; k < 6; ++k)
      CHECK(q.tables->embedding(1, codes[5 + i], k) == Approx(r[i * 6 + k]).margin(1e-5));
  }
  for (Index i = 0; i < q.tables->embedding.size(); ++i)
    REQUIRE(std::isfinite(q.tables->embedding.data()[i]));
}

TEST_CASE("codebook_init: nothing, and nothing finite, are refused") {
  Quantiser q;
  CHECK_THROWS_WITH(q.place({nullptr, {0, 12}}), test::contains("no latents"));
  auto latents = rows(3, 3, 0);
  latents[7] = NAN;
  CHECK_THROWS_WITH(q.place(view(latents)), test::contains("not finite"));
}
