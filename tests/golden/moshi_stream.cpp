// LMGen against the published one: 60 greedy full-duplex frames.
#include "mttt/lm/lm_gen.hpp"

#include "moshi_tiny.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
}  // namespace

TEST_CASE("60 greedy frames say the published codes, with the published text logits") {
  using B = Cpu<float>;
  B be;
  using Gen = LMGen<moshi_golden, B>;
  constexpr Index frames = 60, first = moshi_golden.max_delay();  // nothing comes out before
  const SafetensorsFile file = open_golden("moshi_tiny");
  const auto params = golden_params(be);
  const auto user = read_golden<std::int32_t>(file, "in.user_codes");           // (1, 8, 60)
  const auto tokens = read_golden<std::int32_t>(file, "out.greedy_tokens");     // (1, 9, 59)
  const auto text_logits = read_golden<float>(file, "out.stream_text_logits");  // (60, 48)
  const auto heard_all = streams(user, 1, Gen::heard_streams, frames);
  const auto expected = streams(tokens, 1, Gen::spoken, frames - first);
  REQUIRE(static_cast<Index>(text_logits.size()) == frames * moshi_golden.text_card);

  // A neighbour that hears something else and rests now and then changes nothing.
  const Index batch = GENERATE(1, 2);
  Store<Gen::State, B> state(be, batch);
  Gen::reset(be, *params, *state, Mask{});
  const GenOptions greedy{.text = {.greedy = true}, .audio = {.greedy = true}};
  std::vector<float> ours(text_logits.size());
  Index equal = 0;
  for (Index t = 0; t < frames; ++t) {
    const auto scope = be.scope();
    const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(batch);
    const auto said = be.make<std::int32_t, dyn, Gen::spoken>(batch);
    const auto logits = be.make<float, dyn, moshi_golden.text_card>(batch);
    const auto mask = be.make<std::uint8_t, dyn>(batch);
    for (Index b = 0; b < batch; ++b) {
      mask(b) = b == 0 || t % 3 != 1;
      for (Index k = 0; k < Gen::heard_streams; ++k)
        heard(b, k) = b == 0 ? heard_all(0, k, t) : static_cast<std::int32_t>((t + k) % moshi_golden.card);
    }
    Gen::step(be, *params, *state, heard, said, greedy, mask, {.text_logits = logits});
    std::copy_n(&logits(0, 0), moshi_golden.text_card, ours.data() + t * moshi_golden.text_card);
    for (Index k = 0; k < Gen::spoken; ++k)
      equal += said(0, k) == (t < first ? ungenerated_code : expected(0, k, t - first));
  }
  CHECK(equal == frames * Gen::spoken);
  CHECK(laws::largest_difference(ours.data(), text_logits.data(), static_cast<Index>(ours.size())) < 1e-4);
}
