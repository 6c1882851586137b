// Segments of a conversation: Moshi goes on with the fast weights and the codes of the segment before.
#include <vector>

#include "moshi_small.hpp"
#include "mttt/train/moshi_loss.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<double>;

/// Without attention, which would start anew, segments are the whole.
constexpr MoshiConfig config = [] {
  MoshiConfig c = moshi_small;
  c.temporal.ttt_layers = LayerSet::range(0, 1);
  c.temporal.placement = Placement::instead_of_attention;
  return c;
}();
constexpr MoshiConfig undelayed = [] {
  MoshiConfig c = config;
  c.delays = {};
  return c;
}();
constexpr Index steps = 6, segments = 3;  // two mini-batches each

/// Frames [from, from + n) of codes (B, K, T).
Streams<const std::int32_t> frames(B& be, Streams<const std::int32_t> codes, Index from, Index n) {
  const auto part = be.make<std::int32_t, dyn, dyn, dyn>(codes.extent(0), codes.extent(1), n);
  for (Index i = 0; i < codes.extent(0) * codes.extent(1); ++i)
    be.copy(codes.data() + i * codes.extent(2) + from, part.data() + i * n, n);
  return part;
}
/// What comes before segment i; before the first, the initial codes.
Streams<const std::int32_t> before(B& be, Streams<const std::int32_t> codes, Index i, Index n) {
  if (i > 0) return frames(be, codes, i * steps - n, n);
  const auto start = be.make<std::int32_t, dyn, dyn, dyn>(codes.extent(0), codes.extent(1), n);
  for (Index k = 0; k < start.size(); ++k) start.data()[k] = config.initial().of(k / n % codes.extent(1));
  return start;
}
}  // namespace

TEST_CASE("Segments of a conversation predict what the whole does") {
  using Model = Moshi<config, B>;
  B be;
  Rng rng(4);
  const auto params = laws::random_params<Model>(be, {.perturbation = 0.3}, rng);
  const auto codes = random_codes(be, 2, segments * steps, rng);
  Model::Saved saved;
  const auto whole = Model::forward(be, *params, codes, saved);
  Store<Model::Carried, B> state(be, 2);
  Index compared = 0;
  double error = 0;
  for (Index i = 0; i < segments; ++i) {
    const Carry<Model::Carried> carry{i == 0 ? nullptr : &*state, &*state};
    const auto part = Model::forward(be, *params, frames(be, codes, i * steps, steps), saved, nullptr, carry,
                                     before(be, codes, i, 1 + config.max_delay()));
    for (Index b = 0; b < 2; ++b) {
      for (Index t = 0; t < steps; ++t) {
        const Index at = i * steps + t;
        if (part.text_mask(0, b, t) != 0) {
          error = std::max(error, laws::largest_difference(&part.text_logits(b, t, 0),
                                                           &whole.text_logits(b, at, 0), config.text_card));
          ++compared;
        }
        for (Index k = 0; k < config.dep_q; ++k) {
          if (part.mask(k, b, t) == 0) continue;
          error = std::max(
              error, laws::largest_difference(&part.logits(k, b * steps + t, 0),
                                              &whole.logits(k, b * segments * steps + at, 0), config.card));
          ++compared;
        }
      }
    }
  }
  CHECK(error < 1e-10);
  CHECK(compared > 80);
  CHECK_THROWS_WITH(
      Model::forward(be, *params, codes, saved, nullptr, {},
                     frames(be, codes, 0, 1)[0].reshape<dyn, dyn, dyn>({1, config.streams(), 1})),
      mttt::test::contains("found 1 sessions of 5 streams; expected 2 of 5"));
}

TEST_CASE("The gradient of a conversation in segments, each held alone, is that of the whole") {
  using Model = Moshi<undelayed, B>;
  B be;
  Rng rng(5);
  const auto params = laws::random_params<Model>(be, {.perturbation = 0.3}, rng);
  const auto codes = random_codes(be, 2, segments * steps, rng);
  for (Index i = 0; i < codes.size(); ++i)  // segments of equal weight
    codes.data()[i] = i / codes.extent(2) % codes.extent(1) == 0 ? 4 : std::max(codes.data()[i], 0);
  Store<Model::Params, B> grad(be), sum(be);
  const double whole = moshi_loss<Model>(be, *params, codes, {}, &*grad).total();

  std::vector<Store<Model::Carried, B>> states;  // after each segment
  Store<Model::CarriedGradient, B> dstate(be, 2);
  double total = 0;
  const auto segment = [&](Index i, bool backwards) {
    const auto scope = be.scope();
    MoshiSegment<Model> s;
    s.before = before(be, codes, i, 1);
    if (i > 0) s.carry.from = &*states[static_cast<std::size_t>(i) - 1];
    if (!backwards) s.carry.to = &*states[static_cast<std::size_t>(i)];
    if (backwards) s.gradient = {i + 1 < segments ? &*dstate : nullptr, &*dstate};
    return moshi_loss<Model>(be, *params, frames(be, codes, i * steps, steps), {},
                             backwards ? &*sum : nullptr, s)
        .total();
  };
  for (Index i = 0; i < segments; ++i) {
    states.emplace_back(be, 2);
    segment(i, false);
  }
  for (Index i = segments; i-- > 0;) total += segment(i, true);
  CHECK(total / segments == Approx(whole).epsilon(1e-12));
  for_each_tensor(
      [&](std::string_view name, auto& cut, const auto& expected) {
        for (Index i = 0; i < cut.size(); ++i) cut.data()[i] /= segments;
        INFO(name);
        CHECK(laws::largest_difference(cut.data(), expected.data(), cut.size()) < 1e-10);
      },
      *sum, *grad);
}
