// Moshi over whole sequences: what a logit may depend on, masks, and what is refused.
#include "moshi_small.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<float>;
using Model = Moshi<moshi_small, B>;

struct Fixture {
  static constexpr Index batch = 2, steps = 9;
  B be;
  Rng rng{7};
  Store<Model::Params, B> params = laws::random_params<Model>(be, {}, rng);
  Streams<std::int32_t> codes = random_codes(be, batch, steps, rng);

  Model::Output run() {
    Model::Saved saved;
    return Model::forward(be, *params, codes, saved);
  }
};
}  // namespace

// The logit of stream k at time t is made at frame t + delay_k, from all codes of earlier frames and, in the
// depformer, from the codes of streams before k at that frame; a code of stream j at time s belongs to frame
// s + delay_j.
TEST_CASE_METHOD(Fixture,
                 "Causality: a code changes the logits that come after it, and no bit of any other") {
  const auto before = run();
  for (Index j = 0; j < moshi_small.streams(); ++j) {
    const Index s = 4, frame = s + moshi_small.delays.of[j];
    const auto scope = be.scope();
    auto& code = codes(1, j, s);
    const auto kept = std::exchange(code, code == 2 ? 3 : 2);
    const auto after = run();
    code = kept;
    bool something = false;
    for (Index k = 0; k < moshi_small.spoken_streams(); ++k) {
      for (Index b = 0; b < batch; ++b) {
        for (Index t = 0; t < steps; ++t) {
          const Index made = t + moshi_small.delays.of[k];
          const bool may = b == 1 && made < steps && (made > frame || (made == frame && k > j && k > 0));
          const bool same =
              k == 0 ? laws::detail::same_bits(&before.text_logits(b, t, 0), &after.text_logits(b, t, 0),
                                               moshi_small.text_card)
                     : laws::detail::same_bits(&before.logits(k - 1, b * steps + t, 0),
                                               &after.logits(k - 1, b * steps + t, 0), moshi_small.card);
          INFO("code (" << j << ", " << s << "), logit (" << k << ", " << b << ", " << t << ")");
          if (!may) CHECK(same);
          something = something || !same;
        }
      }
    }
    INFO("stream " << j);
    CHECK(something);
  }
}

TEST_CASE_METHOD(Fixture, "Masks: 0 where the delay cuts off, and where there is no code") {
  const auto out = run();
  Index set = 0;
  for (Index k = 0; k < moshi_small.spoken_streams(); ++k) {
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < steps; ++t) {
        const bool expected = t + moshi_small.delays.of[k] < steps && codes(b, k, t) != zero_code;
        CHECK((k == 0 ? out.text_mask(0, b, t) : out.mask(k - 1, b, t)) == expected);
        set += expected;
      }
    }
  }
  CHECK(set > 0);
  for (Index i = 0; i < out.logits.size(); ++i) {
    if (!std::isfinite(out.logits.data()[i])) FAIL("logits are finite where there is no prediction, too");
  }
}

TEST_CASE_METHOD(Fixture, "Foreign codes are refused") {
  using mttt::test::contains;
  codes(1, 2, 3) = static_cast<std::int32_t>(moshi_small.card);
  CHECK_THROWS_WITH(run(), contains("code 6 in session 1, stream 2, frame 3"));
  codes(1, 2, 3) = ungenerated_code;
  CHECK_THROWS_WITH(run(), contains("code -2"));
  const Streams<const std::int32_t> few(codes.data(), {batch, moshi_small.streams() - 1, steps});
  Model::Saved saved;
  CHECK_THROWS_WITH(Model::forward(be, *params, few, saved), contains("4 streams; expected 5"));
}
