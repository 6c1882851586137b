// Models with weights in 8 and 4 bits: the laws of streaming hold for them, and what they say differs from
// the unrounded model's by no more than the rounding of their weights accounts for.
#include "laws.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/core/quantise.hpp"
#include "mttt/lm/lm_gen.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/train/divergence.hpp"

namespace {
using namespace mttt;
using mttt::testing::demand;

/// Widths that are whole groups of 32, and those that are not.
template <Index dim, Index hidden>
inline constexpr TemporalConfig temporal{.dim = dim,
                                         .num_heads = 4,
                                         .num_layers = 3,
                                         .hidden = hidden,
                                         .context = 6,
                                         .ttt_layers = LayerSet::range(2, 2),
                                         .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};

inline constexpr MoshiConfig model{
    .n_q = 4,
    .dep_q = 3,
    .card = 50,
    .text_card = 120,
    .delays = {0, 0, 1, 1, 1},
    .temporal =
        {.dim = 256, .num_heads = 4, .num_layers = 4, .hidden = gating_hidden(256, 1056), .context = 12},
    .depformer = {.dim = 128, .num_heads = 4, .num_layers = 2, .hidden = gating_hidden(128, 528)}};

template <class Block, class B>
void hold_to_streaming_laws(laws::Options options, double tolerance) {
  B be;
  SECTION("masking") { demand(laws::masking<Block>(be, options)); }
  SECTION("reset") { demand(laws::reset<Block>(be, options)); }
  SECTION("snapshot") { demand(laws::snapshot<Block>(be, options)); }
  SECTION("no allocation") { demand(laws::no_allocation<Block>(be, allocation_count, options)); }
  SECTION("causality") { demand(laws::causality<Block>(be, options)); }
  SECTION("streaming") {
    options.tolerance = tolerance;
    demand(laws::streaming<Block>(be, options));
  }
}

// Steps of few rows are multiplied in 16 bits, whole sequences in the type itself. A 16-bit row is off by
// 3e-5 of its deviation (tests/blocks/quantised.cpp), in 20 products of three layers; the largest of all is
// some 4 deviations.
constexpr double in_16_bits = 4 * 3e-5 * 4.5;

/// Predictions of the whole sequence `codes`, and of the same in a stream.
struct Predictions {
  std::vector<double> text, audio;
};
template <class B>
Predictions offline(B& be, const typename Moshi<model, B>::Params& params,
                    Streams<const std::int32_t> codes) {
  typename Moshi<model, B>::Saved saved;
  const auto scope = be.scope();
  const auto out = Moshi<model, B>::forward(be, params, codes, saved);
  const auto text = out.text_logits.flat(), audio = out.logits.flat();
  return {{text.data(), text.data() + text.size()}, {audio.data(), audio.data() + audio.size()}};
}

struct Trained {
  static constexpr Index batch = 4, steps = 40;
  Cpu<float> be;
  Store<Moshi<model, Cpu<float>>::Params, Cpu<float>> params{be};
  Tensor<std::int32_t, dyn, dyn, dyn> codes =
      be.make<std::int32_t, dyn, dyn, dyn>(batch, model.streams(), steps);

  Trained() {
    Rng rng(21);
    Moshi<model, Cpu<float>>::init(*params, rng);
    for (Index i = 0; i < codes.size(); ++i)
      codes.data()[i] = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(model.card)));
  }
};

/// Error of a format relative to normal weights, tests/blocks/quantised.cpp: of rows of 704, whose largest is
/// 3.1 deviations, and of groups of 32.
template <class Format>
constexpr double weight_error = std::is_same_v<Format, Int8> ? 3.1 / 127 / 3.46 : 0.082;

}  // namespace

TEMPLATE_TEST_CASE("Temporal transformer of quantised weights", "", Int8, Int4) {
  using B = WithWeights<TestType, Cpu<float>>;
  hold_to_streaming_laws<Temporal<temporal<64, 96>, B>, B>({.steps = 12}, in_16_bits);
}
TEMPLATE_TEST_CASE("Temporal transformer of quantised weights, rows that end within a group", "", Int8,
                   Int4) {
  using B = WithWeights<TestType, Cpu<float>>;
  hold_to_streaming_laws<Temporal<temporal<40, 50>, B>, B>({.steps = 12}, in_16_bits);
}
TEMPLATE_TEST_CASE("Feed-forward layer of quantised weights, as Mimi's transformers have it", "", Int8,
                   Int4) {
  using Block = FeedForward<FeedForwardConfig{.dim = 64, .hidden = 160}, WithWeights<TestType, Cpu<float>>>;
  hold_to_streaming_laws<Block, WithWeights<TestType, Cpu<float>>>({}, in_16_bits);
}
TEMPLATE_TEST_CASE("Temporal transformer of quantised weights in float64", "", Int8, Int4) {
  using B = WithWeights<TestType, Cpu<double>>;
  hold_to_streaming_laws<Temporal<temporal<40, 50>, B>, B>({.steps = 12}, laws::Options{}.tolerance);
}

// A product whose weights are off by a relative error e is off by e; the errors of products are independent.
// If each of the n products between a code and a logit reached it whole, logits of deviation s would be off
// by e s sqrt(n); a softmax whose logits are off by little, of variance v, diverges by v / 2 (the second
// order of KL). A layer has five products: those for silu(a) and b err each on its own. Noise of that
// variance sets what greedy choices may change.
TEMPLATE_TEST_CASE("Rounded weights: KL stays below what their error explains", "", Int8, Int4) {
  using Q = WithWeights<TestType, Cpu<float>>;
  Trained trained;
  auto& [be, params, codes] = trained;
  Q small;
  Store<typename Moshi<model, Q>::Params, Q> rounded(small);
  quantise(params, rounded);
  const auto exact = offline(be, *params, codes);
  const auto found = offline(small, *rounded, codes);
  const auto check = [](const std::vector<double>& a, const std::vector<double>& b, Index card,
                        Index products) {
    const Index rows = static_cast<Index>(a.size()) / card;
    const auto d = divergence(a.data(), b.data(), rows, card);
    double variance = 0;
    for (const double logit : a) variance += logit * logit / static_cast<double>(a.size());
    const double v = std::pow(weight_error<TestType>, 2) * static_cast<double>(products) * variance;
    Rng rng(22);
    auto noisy = a;
    for (double& logit : noisy) logit += std::sqrt(v) * rng.normal();
    const double agreement = divergence(a.data(), noisy.data(), rows, card).agreement;
    CAPTURE(d.kl, d.agreement, v / 2, agreement);
    CHECK(d.kl < v / 2);
    CHECK(d.kl > v / 200);  // the weights were rounded, and the bound says something
    CHECK(d.agreement > agreement - 3 * std::sqrt(agreement * (1 - agreement) / static_cast<double>(rows)));
  };
  const Index layers = 5 * model.temporal.num_layers;
  check(exact.text, found.text, model.text_card, layers + 1);
  check(exact.audio, found.audio, model.card, layers + 1 + 5 * model.depformer.num_layers + 1);
}

TEMPLATE_TEST_CASE("A Moshi of quantised weights in a stream says what it says offline", "", Int8, Int4) {
  using Q = WithWeights<TestType, Cpu<float>>;
  using Gen = LMGen<model, Q>;
  constexpr Index batch = Trained::batch, steps = Trained::steps;
  Trained trained;
  auto& [be, params, codes] = trained;
  Q small;
  Store<typename Moshi<model, Q>::Params, Q> rounded(small);
  quantise(params, rounded);
  const auto expected = offline(small, *rounded, codes);
  Store<typename Gen::State, Q> state(small, batch);
  Gen::reset(small, *rounded, *state, Mask{});
  const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(batch);
  const auto said = be.make<std::int32_t, dyn, Gen::spoken>(batch),
             forced = be.make<std::int32_t, dyn, Gen::spoken>(batch);
  const auto text = be.make<float, dyn, model.text_card>(batch);
  const auto audio = be.make<float, dyn, dyn, model.card>(Gen::K, batch);
  double worst = 0;
  Index compared = 0;
  for (Index t = 0; t < steps; ++t) {
    for (Index b = 0; b < batch; ++b) {
      for (Index k = 0; k < Gen::spoken; ++k) {
        const Index from = t - model.delays.of[k];
        forced(b, k) = from < 0 ? model.initial().of(k) : codes(b, k, from);
      }
      for (Index j = 0; j < Gen::heard_streams; ++j)
        heard(b, j) = t > 0 ? codes(b, Gen::spoken + j, t - 1) : 0;
    }
    Gen::step(small, *rounded, *state, heard, said, GenOptions{}, {},
              {.forced = forced, .text_logits = text, .logits = audio});
    for (Index b = 0; b < batch; ++b) {
      worst = std::max(
          worst, laws::largest_difference(
                     &text(b, 0), &expected.text[static_cast<std::size_t>((b * steps + t) * model.text_card)],
                     model.text_card));
      for (Index k = 0; k < Gen::K; ++k) {
        const Index time = t - model.delays.of[k + 1];
        if (time < 0) continue;
        worst = std::max(
            worst,
            laws::largest_difference(
                &audio(k, b, 0),
                &expected.audio[static_cast<std::size_t>(((k * batch + b) * steps + time) * model.card)],
                model.card));
        ++compared;
      }
    }
  }
  CHECK(compared == batch * (3 * steps - 2));
  CHECK(worst < in_16_bits);
  CHECK(worst > 1e-7);  // they are computed in different ways
}
