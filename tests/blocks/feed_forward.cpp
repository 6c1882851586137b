// The two feed-forward blocks against their formulas written out in float64.
#include "mttt/nn/feed_forward.hpp"

#include <cmath>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"
#include "mttt/nn/gating.hpp"

namespace {
using namespace mttt;
using Row = std::vector<double>;
constexpr Index dim = 6, hidden = 9, batch = 2, steps = 3;

/// What a row of x becomes, from the block's parameters.
template <class Block, class F>
void check(F&& formula) {
  Cpu<double> be;
  Rng rng(3);
  auto params = laws::random_params<Block>(be, {}, rng);
  const auto x = be.template make<double, dyn, dyn, dim>(batch, steps);
  const auto y = be.template make<double, dyn, dyn, dim>(batch, steps);
  laws::fill_normal(x, 2, rng);
  typename Block::Saved saved;
  Block::forward(be, *params, x, y, saved);
  for (Index r = 0; r < batch * steps; ++r) {
    const Row expected = formula(*params, Row(x.data() + r * dim, x.data() + (r + 1) * dim));
    CHECK(laws::largest_difference(y.data() + r * dim, expected.data(), dim) < 1e-13);
  }
}

template <class M>
Row times(const M& weight, const Row& x) {
  Row y(weight.extent(0));
  for (Index o = 0; o < weight.extent(0); ++o) {
    for (Index i = 0; i < weight.extent(1); ++i) y[o] += weight(o, i) * x[i];
  }
  return y;
}
}  // namespace

TEST_CASE("SiluGating is silu of the first half times the second") {
  using Block = SiluGating<GatingConfig{.dim = dim, .hidden = hidden}, Cpu<double>>;
  check<Block>([](const Block::Params& p, const Row& x) {
    const Row h = times(p.linear_in.weight, x);
    Row g(hidden);
    for (Index i = 0; i < hidden; ++i) g[i] = h[i] / (1 + std::exp(-h[i])) * h[hidden + i];
    return times(p.linear_out.weight, g);
  });
}

TEST_CASE("FeedForward uses the exact GELU") {
  using Block = FeedForward<FeedForwardConfig{.dim = dim, .hidden = hidden}, Cpu<double>>;
  check<Block>([](const Block::Params& p, const Row& x) {
    Row h = times(p.linear1, x);
    for (double& v : h) v = v * 0.5 * std::erfc(-v / std::sqrt(2.0));
    return times(p.linear2, h);
  });
}
