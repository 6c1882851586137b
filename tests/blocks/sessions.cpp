// Operations on whole conversations: forking one into another row, and forcing the gates of chosen layers.
#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/laws.hpp"
#include "mttt/lm/gates.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;
constexpr TemporalConfig config{.dim = 8,
                                .num_heads = 2,
                                .num_layers = 3,
                                .hidden = 8,
                                .context = 4,
                                .ttt_layers = LayerSet::range(1, 2),
                                .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};
using Model = Temporal<config, B>;
}  // namespace

TEST_CASE("a forked conversation goes on like its original, and its neighbours are left alone") {
  B be;
  Rng rng(2);
  Store<Model::Params, B> params(be);
  Model::init(*params, rng);
  Store<Model::State, B> state(be, 2), other(be, 3);
  Model::reset(be, *params, *state, Mask{});
  Model::reset(be, *params, *other, Mask{});
  const auto x = be.make<float, dyn, dyn, 8>(2, 7), y = be.make<float, dyn, dyn, 8>(2, 7);
  laws::fill_normal(x, 1, rng);
  Model::step(be, *params, *state, x, y, Mask{});

  Store<Model::State, B> before(be, other);
  copy_session(be, *state, 1, *other, 2);
  CHECK(laws::detail::same_session(*other, *before, 0));
  CHECK(laws::detail::same_session(*other, *before, 1));
  CHECK_FALSE(laws::detail::same_session(*other, *before, 2));

  const auto z = be.make<float, dyn, dyn, 8>(3, 7), out = be.make<float, dyn, dyn, 8>(3, 7);
  laws::fill_normal(z, 1, rng);
  be.copy(&x(1, 0, 0), &z(2, 0, 0), 7 * 8);
  Model::step(be, *params, *state, x, y, Mask{});
  Model::step(be, *params, *other, z, out, Mask{});
  // 2 and 3 sessions make 14 and 21 rows, which products sum in different orders: equal to rounding, not to
  // the bit.
  CHECK(laws::largest_difference(&out(2, 0, 0), &y(1, 0, 0), 7 * 8) < 1e-5);
  CHECK_THROWS_AS(copy_session(be, *state, 2, *other, 0), Error);
}

TEST_CASE("gates are forced in the layers that are named") {
  B be;
  Rng rng(2);
  Store<Model::Params, B> params(be);
  Model::init(*params, rng);
  force_gating_alpha(be, *params, 0.5, LayerSet::range(2, 2));
  CHECK(params->learning[0].ttt.alpha(0) == 0.1f);
  CHECK(params->learning[1].ttt.alpha(7) == 0.5f);
  force_gating_alpha(be, *params, 0);
  CHECK(params->learning[0].ttt.alpha(3) == 0);
  CHECK(params->learning[1].ttt.alpha(3) == 0);
  CHECK_THROWS_AS(force_gating_alpha(be, *params, 1, LayerSet::range(0, 0)), Error);
}

namespace {
/// Of all gated layers after a forward pass over a fixed input, in two segments.
template <TemporalConfig C>
std::vector<TttContribution> contributions() {
  using Transformer = Temporal<C, B>;
  B be;
  Rng rng(7);
  const auto params = laws::random_params<Transformer>(be, {}, rng);
  Store<typename Transformer::Carried, B> state(be, 2);
  const auto x = be.make<float, dyn, dyn, 8>(2, 8), y = be.make<float, dyn, dyn, 8>(2, 8);
  laws::fill_normal(x, 1, rng);
  typename Transformer::Saved first, second;
  Transformer::forward(be, *params, x, y, first, {nullptr, &*state});
  Transformer::forward(be, *params, x, y, second, {&*state, &*state});
  return ttt_contributions<Transformer>(be, *params, second, C.ttt_layers);
}
}  // namespace

TEST_CASE("layers that are recomputed contribute what layers that are kept do") {
  const auto kept = contributions<config>(), again = contributions<config.with_recompute(true)>();
  REQUIRE(kept.size() == 2);
  REQUIRE(again.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(again[i].layer == kept[i].layer);
    CHECK(again[i].opening == kept[i].opening);
    CHECK(again[i].share == kept[i].share);
    CHECK(again[i].share > 0.001);
  }
  CHECK(kept[0].share != kept[1].share);
}
