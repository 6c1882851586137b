// LMGen against the published one: 60 greedy full-duplex frames.
#pragma once

#include "moshi_tiny.hpp"
#include "mttt/lm/lm_gen.hpp"

namespace mttt::testing {

/// In a batch of so many: a neighbour that hears something else and rests now and then changes nothing.
template <class B>
void greedy_frames_equal_published(Index batch) {
  B be;
  Cpu<float> host;
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

  Store<typename Gen::State, B> state(be, batch);
  Gen::reset(be, *params, *state, Mask{});
  const GenOptions greedy{.text = {.greedy = true}, .audio = {.greedy = true}};
  std::vector<float> ours(text_logits.size());
  Index equal = 0;
  for (Index t = 0; t < frames; ++t) {
    const auto scope = be.scope();
    const auto host_scope = host.scope();
    const auto heard = host.template make<std::int32_t, dyn, Gen::heard_streams>(batch);
    const auto mask = host.template make<std::uint8_t, dyn>(batch);
    const auto device_said = be.template make<std::int32_t, dyn, Gen::spoken>(batch);
    const auto device_logits = be.template make<float, dyn, moshi_golden.text_card>(batch);
    for (Index b = 0; b < batch; ++b) {
      mask(b) = b == 0 || t % 3 != 1;
      for (Index k = 0; k < Gen::heard_streams; ++k)
        heard(b, k) = b == 0 ? heard_all(0, k, t) : static_cast<std::int32_t>((t + k) % moshi_golden.card);
    }
    Gen::step(be, *params, *state, send(be, heard), device_said, greedy, send(be, mask),
              {.text_logits = device_logits});
    const auto said = fetch(host, be, device_said);
    const auto logits = fetch(host, be, device_logits);
    std::copy_n(&logits(0, 0), moshi_golden.text_card, ours.data() + t * moshi_golden.text_card);
    for (Index k = 0; k < Gen::spoken; ++k)
      equal += said(0, k) == (t < first ? ungenerated_code : expected(0, k, t - first));
  }
  CHECK(equal == frames * Gen::spoken);
  CHECK(laws::largest_difference(ours.data(), text_logits.data(), static_cast<Index>(ours.size())) < 1e-4);
}

}  // namespace mttt::testing
