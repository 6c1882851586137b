// Whole conversations: one call is the codec and the language model by hand; sessions come and go by masks.
#include "duplex_small.hpp"

#include <set>

#include "mttt/backend/with_weights.hpp"
#include "mttt/core/quantise.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<float>;
using Codec = Learned::Codec;
using Gen = LMGen<duplex_small, B>;
using Talk = SmallTalk<B>;
using laws::detail::same_bits;
using laws::detail::same_session;

struct Fixture {
  static constexpr Index batch = 3, size = Talk::frame_size;
  Rng rng{5};
  Learned learned{rng};
  B& be = learned.be;
  Talk::Models models = learned.models();
  Store<Talk::State, B> state{be, batch};
  Store<Talk::Input, B> in{be, batch};
  Store<Talk::Output, B> out{be, batch};
  const GenOptions options{.text = {.temperature = 0.9, .top_k = 6},
                           .audio = {.temperature = 1.1, .top_k = 0}};

  Fixture() {
    const std::int64_t seeds[]{5, 6, 7};
    Talk::reset(be, models, *state, Mask{}, Tensor<const std::int64_t, dyn>(seeds, {batch}));
  }
  void step(Store<Talk::State, B>& s) { Talk::step(be, models, *s, *in, *out, options); }
  void all_active() {
    anything(*in, rng);
    be.fill(in->active.data(), batch, std::uint8_t{1});
    be.fill(in->reset.data(), batch, std::uint8_t{0});
  }
  /// What session b hears, says and sounds like in this frame.
  std::vector<float> reply(Index b) const {
    std::vector<float> all(&out->pcm(b, 0, 0), &out->pcm(b, 0, 0) + size);
    for (Index k = 0; k < Gen::spoken; ++k) all.push_back(static_cast<float>(out->said(b, k)));
    for (Index k = 0; k < Gen::heard_streams; ++k) all.push_back(static_cast<float>(out->heard(b, k)));
    return all;
  }
  bool silent(Index b) const {
    return std::all_of(&out->pcm(b, 0, 0), &out->pcm(b, 0, 0) + size, [](float x) { return x == 0; });
  }
};
}  // namespace

TEST_CASE_METHOD(Fixture, "One call is encoder, language model and decoder called by hand") {
  Store<Talk::State, B> parts(be, state);
  const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(batch);
  const auto said = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  const auto voice = be.make<std::int32_t, dyn, dyn, dyn>(batch, Gen::K, 1);
  const auto audible = be.make<std::uint8_t, dyn>(batch);
  const auto sound = be.make<float, dyn, dyn, 1>(batch, size);
  Index replies = 0;
  std::set<std::int32_t> codes;
  for (Index t = 0; t < 50; ++t) {
    anything(*in, rng);
    Codec::reset_encoder(be, *learned.codec, parts->encoder, in->reset);
    Gen::reset(be, *learned.lm, parts->lm, in->reset, in->seed);
    Codec::reset_decoder(be, *learned.codec, parts->decoder, in->reset);
    Codec::encode_step(be, *learned.codec, *learned.books, parts->encoder, in->pcm,
                       {heard.data(), {batch, Gen::heard_streams, 1}}, in->active);
    Gen::step(be, *learned.lm, parts->lm, heard, said, options, in->active);
    for (Index b = 0; b < batch; ++b) {
      audible(b) = said(b, 0) != ungenerated_code;
      for (Index k = 0; k < Gen::K; ++k) voice(b, k, 0) = said(b, 1 + k);
    }
    Codec::decode_step(be, *learned.codec, *learned.books, parts->decoder, voice, sound, audible);

    step(state);
    INFO("frame " << t);
    REQUIRE(same_bits(state.data(), parts.data(), state.bytes()));
    CHECK(same_bits(out->said.data(), said.data(), said.size()));
    for (Index b = 0; b < batch; ++b) {
      if (in->active(b)) {
        CHECK(same_bits(&out->heard(b, 0), &heard(b, 0), Gen::heard_streams));
        codes.insert(&heard(b, 0), &heard(b, 0) + Gen::heard_streams);
      }
      if (audible(b)) {
        CHECK(same_bits(&out->pcm(b, 0, 0), &sound(b, 0, 0), size));
        CHECK(!silent(b));
        ++replies;
      } else {
        CHECK(silent(b));
      }
    }
  }
  CHECK(replies > batch * 10);
  CHECK(codes.size() > 3);
}

TEST_CASE_METHOD(Fixture, "The delays are silent, and leave the decoder as it was") {
  Store<Talk::State, B> fresh(be, state);
  for (Index t = 0; t < duplex_small.max_delay() + 3; ++t) {
    all_active();
    step(state);
    const bool started = t >= duplex_small.max_delay();
    for (Index b = 0; b < batch; ++b) {
      CHECK(silent(b) == !started);
      CHECK((out->said(b, 0) == ungenerated_code) == !started);
      CHECK(same_session(state->decoder, fresh->decoder, b) == !started);
      CHECK(!same_session(state->encoder, fresh->encoder, b));
    }
  }
}

TEST_CASE_METHOD(Fixture, "Inactive sessions keep every bit and are silent, the others do as without them") {
  for (Index t = 0; t < 25; ++t) {
    all_active();
    Store<Talk::State, B> before(be, state), unmasked(be, state);
    step(unmasked);
    std::vector<std::vector<float>> expected;
    for (Index b = 0; b < batch; ++b) expected.push_back(reply(b));
    for (Index b = 0; b < batch; ++b) in->active(b) = rng.uniform() < 0.6;
    step(state);
    for (Index b = 0; b < batch; ++b) {
      if (in->active(b)) {
        CHECK(same_session(*state, *unmasked, b));
        CHECK(reply(b) == expected[static_cast<std::size_t>(b)]);
        continue;
      }
      CHECK(same_session(*state, *before, b));
      CHECK(silent(b));
      for (Index k = 0; k < Gen::spoken; ++k) CHECK(out->said(b, k) == ungenerated_code);
      for (Index k = 0; k < Gen::heard_streams; ++k) CHECK(out->heard(b, k) == ungenerated_code);
    }
  }
}

TEST_CASE_METHOD(Fixture, "A session that starts anew is a fresh one, and touches no other") {
  for (Index t = 0; t < 7; ++t) {
    all_active();
    step(state);
  }
  Store<Talk::State, B> untouched(be, state), fresh(be, batch);
  Talk::reset(be, models, *fresh, Mask{}, in->seed);
  all_active();
  in->seed(0) = 31, in->seed(1) = 32, in->seed(2) = 33;
  Talk::reset(be, models, *fresh, Mask{}, in->seed);
  in->reset(0) = in->reset(2) = 1;
  in->active(2) = 0;  // starts anew all the same
  step(state);
  const auto first = reply(0), other = reply(1);
  CHECK(same_session(*state, *fresh, 2));

  be.fill(in->reset.data(), batch, std::uint8_t{0});
  step(fresh);
  CHECK(same_session(*state, *fresh, 0));
  CHECK(reply(0) == first);
  step(untouched);
  CHECK(same_session(*state, *untouched, 1));
  CHECK(reply(1) == other);

  // Without seeds they keep theirs.
  auto some = *in;
  some.seed = {};
  in->reset(1) = 1;
  Talk::step(be, models, *state, some, *out, options);
  CHECK(state->lm.seed(0) == 31);
  CHECK(state->lm.seed(1) == 6);
  CHECK(state->lm.offset(1) == 1);
}

TEST_CASE_METHOD(Fixture, "What neighbours say and do does not change a session's bits") {
  Store<Talk::State, B> twin(be, state);
  for (Index t = 0; t < 20; ++t) {
    anything(*in, rng);
    in->reset(1) = 0, in->active(1) = 1;
    Store<Talk::Input, B> kept(be, in);
    step(state);
    const auto expected = reply(1);
    anything(*in, rng);
    be.copy(&kept->pcm(1, 0, 0), &in->pcm(1, 0, 0), size);
    in->reset(1) = 0, in->active(1) = 1, in->seed(1) = kept->seed(1);
    step(twin);
    CHECK(reply(1) == expected);
    CHECK(same_session(*state, *twin, 1));
  }
  CHECK(!same_session(*state, *twin, 0));
}

TEST_CASE_METHOD(Fixture, "Without masks all are active and none starts anew") {
  Store<Talk::State, B> twin(be, state);
  all_active();
  auto bare = *in;
  bare.active = bare.reset = {};
  bare.seed = {};
  for (int t = 0; t < 4; ++t) {
    step(state);
    const auto expected = reply(0);
    Talk::step(be, models, *twin, bare, *out, options);
    CHECK(reply(0) == expected);
  }
  CHECK(same_bits(state.data(), twin.data(), state.bytes()));
}

TEST_CASE_METHOD(Fixture, "A warm frame of a conversation allocates nothing") {
  anything(*in, rng);
  step(state);
  const auto before = allocation_count();
  for (Index t = 0; t < 8; ++t) {
    in->reset(0) = t % 2 == 0;
    step(state);
  }
  CHECK(allocation_count() == before);
}

TEST_CASE_METHOD(Fixture, "A codec with weights in 16 bits beside a language model without") {
  using Narrow = WithWeights<f16, B>;
  using NarrowCodec = Mimi<mimi_small, Narrow>;
  using NarrowTalk = Duplex<NarrowCodec, Gen, B>;
  Narrow narrow(be.as<float>());
  Store<NarrowCodec::Params, Narrow> codec(narrow);
  Store<NarrowCodec::Codebooks, Narrow> books(narrow);
  quantise(learned.codec, codec);
  CHECK(codec.bytes() < learned.codec.bytes());
  NarrowCodec::derive(narrow, *codec, *books);
  const NarrowTalk::Models narrow_models{*codec, *books, *learned.lm};
  Store<NarrowTalk::State, B> talk(be, batch), parts(be, batch);
  NarrowTalk::reset(be, narrow_models, *talk, Mask{});
  NarrowTalk::reset(be, narrow_models, *parts, Mask{});
  const auto heard = be.make<std::int32_t, dyn, dyn, dyn>(batch, Gen::heard_streams, 1);
  const auto voice = be.make<std::int32_t, dyn, dyn, dyn>(batch, Gen::K, 1);
  const auto sound = be.make<float, dyn, dyn, 1>(batch, size);
  NarrowTalk::Input narrow_in{in->pcm, in->active, in->reset, in->seed};
  const NarrowTalk::Output narrow_out{out->pcm, out->said, out->heard};
  for (Index t = 0; t < 12; ++t) {
    all_active();
    const auto before = allocation_count();
    NarrowTalk::step(be, narrow_models, *talk, narrow_in, narrow_out, options);
    if (t > 0) CHECK(allocation_count() == before);
    NarrowCodec::encode_step(narrow, *codec, *books, parts->encoder, in->pcm, heard);
    CHECK(same_bits(out->heard.data(), heard.data(), heard.size()));
    if (out->said(0, 0) == ungenerated_code) continue;
    for (Index b = 0; b < batch; ++b)
      for (Index k = 0; k < Gen::K; ++k) voice(b, k, 0) = out->said(b, 1 + k);
    NarrowCodec::decode_step(narrow, *codec, *books, parts->decoder, voice, sound);
    CHECK(same_bits(out->pcm.data(), sound.data(), sound.size()));
  }
}

TEST_CASE_METHOD(Fixture, "Frames of another batch are refused") {
  using mttt::test::contains;
  Store<Talk::Input, B> more(be, batch + 1);
  CHECK_THROWS_WITH(Talk::step(be, models, *state, *more, *out, options),
                    contains("samples to hear: found 4 sessions; expected 3"));
  auto some = *in;
  some.seed = more->seed;
  CHECK_THROWS_WITH(Talk::step(be, models, *state, some, *out, options), contains("seed: found 4 sessions"));
  CHECK_THROWS_WITH(Talk::step(be, models, *state, *in, {}, options),
                    contains("samples of the reply: found no tensor"));
}
