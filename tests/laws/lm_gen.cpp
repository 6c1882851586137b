// Generation: streamed logits equal those of the whole sequence; sessions do not disturb each other.
#include "mttt/lm/lm_gen.hpp"

#include <set>

#include "moshi_small.hpp"
#include "mttt/lm/listen.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<float>;
using Model = Moshi<moshi_small, B>;
using Gen = LMGen<moshi_small, B>;
using laws::detail::same_session;

struct Fixture {
  static constexpr Index batch = 3, steps = 14;
  B be;
  Rng rng{11};
  Store<Model::Params, B> params = laws::random_params<Model>(be, {.perturbation = 0.3}, rng);
  Store<Gen::State, B> state{be, batch};
  Tensor<std::int32_t, dyn, Gen::heard_streams> heard = be.make<std::int32_t, dyn, Gen::heard_streams>(batch);
  Tensor<std::int32_t, dyn, Gen::spoken> said = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  Tensor<std::uint8_t, dyn> mask = be.make<std::uint8_t, dyn>(batch);
  const GenOptions options{.text = {.temperature = 0.9, .top_k = 6},
                           .audio = {.temperature = 1.1, .top_k = 0}};

  Fixture() {
    const std::int64_t seeds[]{5, 6, 7};
    Gen::reset(be, *params, *state, Mask{}, Tensor<const std::int64_t, dyn>(seeds, {batch}));
  }
  void hear_anything() {
    for (Index i = 0; i < heard.size(); ++i)
      heard.data()[i] = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(moshi_small.card)));
  }
  void step(Store<Gen::State, B>& s, Mask m = {}, const Gen::Taps& taps = {}) {
    Gen::step(be, *params, *s, heard, said, options, m, taps);
  }
  /// All that sessions say in `steps` frames of the same random codes, (steps, B, spoken).
  std::vector<std::int32_t> talk(Store<Gen::State, B>& s, std::uint64_t user) {
    rng = Rng(user);
    std::vector<std::int32_t> all;
    for (Index t = 0; t < steps; ++t) {
      hear_anything();
      step(s);
      all.insert(all.end(), said.data(), said.data() + said.size());
    }
    return all;
  }
};
}  // namespace

TEST_CASE_METHOD(Fixture, "Streaming equals offline under teacher forcing, each session at its own pace") {
  const auto codes = random_codes(be, batch, steps, rng);
  Model::Saved saved;
  const auto offline = Model::forward(be, *params, codes, saved);
  const auto forced = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  const auto text = be.make<float, dyn, moshi_small.text_card>(batch);
  const auto audio = be.make<float, dyn, dyn, moshi_small.card>(Gen::K, batch);
  const Gen::Taps taps{.forced = forced, .text_logits = text, .logits = audio};

  std::vector<Index> at(batch, 0);
  double worst = 0;
  Index compared = 0, echoed = 0;
  while (*std::min_element(at.begin(), at.end()) < steps) {
    for (Index b = 0; b < batch; ++b) {
      const Index t = at[static_cast<std::size_t>(b)];
      mask(b) = t < steps && rng.uniform() < 0.6;
      for (Index k = 0; k < Gen::spoken; ++k) forced(b, k) = mask(b) ? forced_code(codes, b, k, t) : -77;
      for (Index j = 0; j < Gen::heard_streams;
           ++j)  // position t of the user's streams; that of 0 is not read
        heard(b, j) = mask(b) ? (t > 0 ? codes(b, Gen::spoken + j, t - 1) : 0) : -77;
    }
    step(state, mask, taps);
    for (Index b = 0; b < batch; ++b) {
      if (!mask(b)) {
        for (Index k = 0; k < Gen::spoken; ++k) CHECK(said(b, k) == ungenerated_code);
        continue;
      }
      const Index t = at[static_cast<std::size_t>(b)]++;
      for (Index k = 0; k < Gen::spoken; ++k) {
        const Index time = t - moshi_small.delays.of[k], done = t - moshi_small.max_delay();
        CHECK(said(b, k) == (done < 0 ? ungenerated_code : codes(b, k, done)));
        echoed += done >= 0;
        if (time < 0) continue;
        worst =
            std::max(worst, k == 0 ? laws::largest_difference(&text(b, 0), &offline.text_logits(b, time, 0),
                                                              moshi_small.text_card)
                                   : laws::largest_difference(&audio(k - 1, b, 0),
                                                              &offline.logits(k - 1, b * steps + time, 0),
                                                              moshi_small.card));
        ++compared;
      }
    }
  }
  CHECK(compared == batch * (4 * steps - 4));
  CHECK(echoed == batch * 4 * (steps - moshi_small.max_delay()));
  CHECK(worst < float_tolerance);
}

TEST_CASE_METHOD(Fixture, "Forcing the text alone leaves the voice to the model") {
  const auto forced = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  be.fill(forced.data(), forced.size(), ungenerated_code);
  std::set<std::int32_t> voices;
  for (Index t = 0; t < 12; ++t) {
    hear_anything();
    for (Index b = 0; b < batch; ++b) forced(b, 0) = static_cast<std::int32_t>(t % moshi_small.text_card);
    step(state, {}, {.forced = forced});
    const Index time = t - moshi_small.max_delay();  // of what comes out; the text was forced a delay earlier
    if (time < 0) continue;
    for (Index b = 0; b < batch; ++b) {
      CHECK(said(b, 0) == (time + moshi_small.delays.of[0]) % moshi_small.text_card);
      for (Index k = 1; k < Gen::spoken; ++k) voices.insert(said(b, k));
    }
  }
  CHECK(voices.size() == static_cast<std::size_t>(moshi_small.card));
}

TEST_CASE_METHOD(Fixture, "Masked sessions keep every bit, the others do as without a mask") {
  for (Index t = 0; t < 20; ++t) {
    hear_anything();
    for (Index b = 0; b < batch; ++b) mask(b) = rng.uniform() < 0.5;
    Store<Gen::State, B> before(be, state), unmasked(be, state);
    step(unmasked);
    const std::vector<std::int32_t> expected(said.data(), said.data() + said.size());
    step(state, mask);
    for (Index b = 0; b < batch; ++b) {
      CHECK(same_session(*state, mask(b) ? *unmasked : *before, b));
      for (Index k = 0; k < Gen::spoken; ++k)
        CHECK(said(b, k) ==
              (mask(b) ? expected[static_cast<std::size_t>(b * Gen::spoken + k)] : ungenerated_code));
    }
  }
}

TEST_CASE_METHOD(Fixture, "Reset starts anew with the same seed or a new one, and touches no other session") {
  const auto first = talk(state, 1);
  Store<Gen::State, B> before(be, state), fresh(be, batch);
  mask(0) = mask(2) = 1, mask(1) = 0;
  const std::int64_t seeds[]{50, 60, 7};
  const Tensor<const std::int64_t, dyn> new_seeds(seeds, {batch});
  Gen::reset(be, *params, *state, mask, new_seeds);
  Gen::reset(be, *params, *fresh, Mask{}, new_seeds);
  CHECK(same_session(*state, *fresh, 0));
  CHECK(same_session(*state, *before, 1));
  CHECK(same_session(*state, *fresh, 2));

  Gen::reset(be, *params, *state, Mask{});
  const auto second = talk(state, 1);
  Index different = 0;
  for (std::size_t i = 0; i < first.size(); ++i) {
    const std::size_t session = i / Gen::spoken % batch;
    if (session == 0) {
      different += first[i] != second[i];  // seed 50 instead of 5
    } else {
      CHECK(first[i] == second[i]);  // session 1 kept its seed, session 2 got the same again
    }
  }
  CHECK(different > 0);
}

TEST_CASE_METHOD(Fixture, "A copy of the state goes on with the same codes") {
  talk(state, 1);
  Store<Gen::State, B> copy(be, state);
  CHECK(talk(state, 2) == talk(copy, 2));
  for (Index b = 0; b < batch; ++b) CHECK(same_session(*state, *copy, b));
}

TEST_CASE_METHOD(Fixture, "A warm frame allocates nothing") {
  const auto text = be.make<float, dyn, moshi_small.text_card>(batch);
  hear_anything();
  step(state, {}, {.text_logits = text});
  const auto before = allocation_count();
  for (Index t = 0; t < 8; ++t) step(state, {}, {.text_logits = text});
  CHECK(allocation_count() == before);
}

TEST_CASE_METHOD(Fixture, "Foreign codes and tensors of another batch are refused") {
  using mttt::test::contains;
  hear_anything();
  heard(1, 0) = static_cast<std::int32_t>(moshi_small.card);
  CHECK_THROWS_WITH(step(state), contains("LMGen: heard: found code 6 in session 1, stream 4, frame 0"));
  mask(0) = mask(2) = 1, mask(1) = 0;
  step(state, mask);  // an inactive session's codes do not matter
  hear_anything();
  const auto forced = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  be.fill(forced.data(), forced.size(), std::int32_t{-3});
  CHECK_THROWS_WITH(step(state, {}, {.forced = forced}), contains("code -3 in session 0, stream 0"));
  Store<Gen::State, B> another(be, batch + 1);
  CHECK_THROWS_WITH(step(another), contains("LMGen: heard: found 3 sessions; expected 4"));
}

TEST_CASE_METHOD(Fixture,
                 "Listening: losses of a stream are those of a pass over all frames, in chunks of any size") {
  const auto all = random_codes(be, 1, steps, rng);
  const std::vector<std::int32_t> codes(all.data(), all.data() + all.size());
  Model::Saved saved;
  const auto offline = Model::forward(be, *params, all, saved);
  const auto loss = [&](const float* logits, Index card, std::int32_t target) {
    double sum = 0;
    for (Index c = 0; c < card; ++c) sum += std::exp(static_cast<double>(logits[c]));
    return std::log(sum) - static_cast<double>(logits[target]);
  };
  const auto whole = listen<Model>(be, *params, codes, {.chunk = steps, .probe = true});
  for (Index t = 0; t < steps; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const bool text = t + moshi_small.delays.of[0] < steps && all(0, 0, t) >= 0;
    CHECK(std::isnan(whole.text_loss[i]) == !text);
    if (text)
      CHECK(whole.text_loss[i] ==
            Approx(loss(&offline.text_logits(0, t, 0), moshi_small.text_card, all(0, 0, t))).epsilon(1e-4));
    for (std::int32_t word = 0; word < moshi_small.text_card; ++word)
      if (t + 1 < steps && word != moshi_small.existing_text_padding_id &&
          word != moshi_small.existing_text_end_padding_id)
        CHECK(offline.text_logits(0, t, word) <= offline.text_logits(0, t, whole.likeliest_word[i]));
    double sum = 0, count = 0;
    for (Index k = 0; k < Gen::K; ++k) {
      if (t + moshi_small.delays.of[1 + k] >= steps || all(0, 1 + k, t) < 0) continue;
      sum += loss(&offline.logits(k, t, 0), moshi_small.card, all(0, 1 + k, t)), ++count;
    }
    CHECK(std::isnan(whole.audio_loss[i]) == (count == 0));
    if (count > 0) CHECK(whole.audio_loss[i] == Approx(sum / count).epsilon(1e-4));
  }
  // In pieces; and what training sees of the same frames.
  const auto pieces = listen<Model>(be, *params, codes, {.chunk = 3, .probe = true});
  const auto means = inner_losses<Model>(be, *params, all);
  REQUIRE(whole.layers.size() == 1);
  REQUIRE(means.size() == 1);
  const auto summary = summary_of(whole.layers[0]);
  CHECK(means[0].layer == 1);
  CHECK(means[0].at_start == Approx(summary.at_start).epsilon(1e-4));
  CHECK(means[0].before == Approx(summary.before).epsilon(1e-4));
  CHECK(means[0].after == Approx(summary.after).epsilon(1e-4));
  CHECK(means[0].violations == Approx(summary.violations));
  for (std::size_t t = 0; t < steps; ++t)
    CHECK(pieces.layers[0].after[t] == Approx(whole.layers[0].after[t]).epsilon(1e-4));
  const auto pass = listen<Model>(be, *params, codes, {.offline = true});
  CHECK(pass.likeliest_word == whole.likeliest_word);
  for (std::size_t t = 0; t < steps; ++t) {
    CHECK(std::isnan(pass.text_loss[t]) == std::isnan(whole.text_loss[t]));
    if (!std::isnan(pass.text_loss[t])) CHECK(pass.text_loss[t] == Approx(whole.text_loss[t]).epsilon(1e-4));
  }
  CHECK_THROWS_WITH(listen<Model>(be, *params, codes, {.probe = true, .offline = true}),
                    mttt::test::contains("one pass"));
  // Starting anew is as if nothing had been heard.
  const auto anew = listen<Model>(be, *params, codes, {.reset_ttt_every = 5, .probe = true}).layers[0];
  CHECK(anew.drift[4] != Approx(anew.drift[5]));
  for (const std::size_t t : {0u, 5u, 10u}) CHECK(anew.before[t] == Approx(anew.at_start[t]));
  CHECK(whole.layers[0].before[5] != Approx(whole.layers[0].at_start[5]));
}

TEST_CASE_METHOD(Fixture, "Inner losses of training are those of the first sessions, where these go on") {
  const auto codes = random_codes(be, batch, 6, rng);
  Store<Model::Carried, B> carried(be, batch);
  Model::Saved saved;
  Model::forward(be, *params, random_codes(be, batch, 6, rng), saved, nullptr, {nullptr, &*carried, {}});
  const std::vector<std::byte> before(carried.data(), carried.data() + carried.bytes());
  const auto fresh = inner_losses<Model>(be, *params, codes, {}, {}, batch);
  const auto gone_on = inner_losses<Model>(be, *params, codes, {&*carried, &*carried, {}}, {}, batch);
  const auto first = inner_losses<Model>(be, *params, codes, {&*carried, &*carried, {}});
  CHECK(std::equal(before.begin(), before.end(), carried.data()));
  REQUIRE(fresh.size() == 1);
  CHECK(fresh[0].before != Approx(gone_on[0].before));
  CHECK(first[0].before != Approx(gone_on[0].before));  // one session against the mean of three
  CHECK(fresh[0].at_start == Approx(gone_on[0].at_start));
}
