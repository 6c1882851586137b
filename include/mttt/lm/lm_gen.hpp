// LMGen: a conversation, frame by frame, for B sessions at once: the user's codes in, text and voice out.
//
// Formula: at frame t a session reads the codes of position t, each stream delayed as in training and the
//          initial code up to its delay; it says its text code, then the depformer's steps its audio codes,
//          which are position t + 1. Out come the codes of one and the same time: those of max_delay frames
//          ago, ungenerated_code until there are any.
// Shapes:  heard (B, n_q - dep_q), said (B, 1 + dep_q): text, then Moshi's voice. State: one row a session.
// Units:   one call is one frame (80 ms).
// Errors:  codes out of range, tensors of another batch.
// Not supported: classifier-free guidance, top-p.
// Source:  kyutai-labs/moshi models/lm.py `LMGen._step`. As there, the user's code of frame 0 is not read.
#pragma once

#include "mttt/lm/moshi.hpp"
#include "mttt/lm/sampler.hpp"

namespace mttt {

struct GenOptions {
  SampleOptions text{.temperature = 0.7, .top_k = 25};
  SampleOptions audio{.temperature = 0.8, .top_k = 250};
  bool check = true;  // refuse codes out of range; each frame waits for the answer of the backend
};

namespace detail {

/// What all passes over the ring of codes share; its position p is column p % ring.
struct CodeRing {
  std::int32_t* codes;  // (B, streams, ring)
  const std::int64_t* offsets;
  const std::uint8_t* mask;
  Delays delays;
  Index streams, spoken, ring;

  MTTT_HD std::int32_t& at(Index b, Index k, std::int64_t position) const {
    return codes[(b * streams + k) * ring + static_cast<Index>(position % ring)];
  }
};

/// The user's codes go where they will be read.
struct HearCode : CodeRing {
  const std::int32_t* heard;
  MTTT_HD void operator()(Index i) const {
    const Index count = streams - spoken, b = i / count, k = spoken + i % count;
    if (active(mask, b)) at(b, k, offsets[b] + delays.of[k]) = heard[i];
  }
};

struct ReadCode : CodeRing {
  std::int32_t* inputs;  // (B, streams)
  InitialCodes initial;
  MTTT_HD void operator()(Index i) const {
    const Index b = i / streams, k = i % streams;
    const bool started = active(mask, b) && offsets[b] > delays.of[k];
    inputs[i] = started ? at(b, k, offsets[b]) : initial.of(k);
  }
};

/// Keeps what was said, and hands out what is complete.
struct SayCode : CodeRing {
  const std::int32_t* chosen;  // (B, spoken)
  std::int32_t* said;
  Index max_delay;
  MTTT_HD void operator()(Index i) const {
    const Index b = i / spoken, k = i % spoken;
    const std::int64_t now = offsets[b] + 1;
    const bool on = active(mask, b);
    if (on) at(b, k, now) = chosen[i];
    said[i] = on && now > max_delay ? at(b, k, now - max_delay + delays.of[k]) : ungenerated_code;
  }
};

struct ForceCode {
  const std::int32_t* forced;
  std::int32_t* chosen;
  Index spoken, k;
  MTTT_HD void operator()(Index b) const {
    const Index i = b * spoken + k;
    if (forced[i] != ungenerated_code) chosen[i] = forced[i];
  }
};

struct ResetSession {
  std::int32_t* codes;
  std::int64_t *offsets, *seed;
  const std::int64_t* new_seed;
  const std::uint8_t* mask;
  Index width;
  MTTT_HD void operator()(Index b) const {
    if (!active(mask, b)) return;
    offsets[b] = 0;
    if (new_seed != nullptr) seed[b] = new_seed[b];
    for (Index i = 0; i < width; ++i) codes[b * width + i] = ungenerated_code;
  }
};

}  // namespace detail

template <MoshiConfig C, class B>
struct LMGen {
  using T = typename B::Scalar;
  using Model = Moshi<C, B>;
  using Params = typename Model::Params;
  static constexpr Index dim = Model::dim, K = C.dep_q, spoken = C.spoken_streams(),
                         heard_streams = C.heard_streams(), ring = C.max_delay() + 2;

  struct State {
    Tensor<std::int32_t, dyn, C.streams(), ring> codes;
    Tensor<std::int64_t, dyn> offset;  // frames since the reset
    Tensor<std::int64_t, dyn> seed;    // key of the session's draws; survives a reset
    typename Model::Transformer::State transformer;
    static void visit(auto&& f, auto&&... s) {
      f("codes", s.codes...);
      f("offset", s.offset...);
      f("seed", s.seed...);
      f("transformer", s.transformer...);
    }
    static constexpr bool may_hold(std::string_view member, Index i, std::int64_t value) {
      if (member == "offset") return may_be_position(value);
      return member != "codes" || (value >= ungenerated_code && value <= C.initial().of(i / ring));
    }
  };

  /// Optional inputs and outputs of a frame; those left empty cost nothing.
  struct Taps {
    Tensor<const std::int32_t, dyn, spoken> forced = {};  // said instead of a draw, except ungenerated_code
    Tensor<T, dyn, C.text_card> text_logits = {};
    Sequence<T, C.card> logits = {};  // (dep_q, B, card)
  };

  /// Starts sessions anew, with the given seeds (B) or those they have (0 at first).
  static void reset(B& be, const Params& p, State& state, Mask mask,
                    Tensor<const std::int64_t, dyn> seeds = {}) {
    const Index batch = state.offset.extent(0);
    expect(seeds, batch, "seeds");
    be.for_each(batch, detail::ResetSession{state.codes.data(), state.offset.data(), state.seed.data(),
                                            seeds.data(), mask.data(), C.streams() * ring});
    Model::Transformer::reset(be, p.transformer, state.transformer, mask);
  }

  /// One frame. Inactive sessions stay as they are and say ungenerated_code.
  static void step(B& be, const Params& p, State& state, Tensor<const std::int32_t, dyn, heard_streams> heard,
                   Tensor<std::int32_t, dyn, spoken> said, const GenOptions& options, Mask mask = {},
                   const Taps& taps = {}) {
    const auto scope = be.scope();
    const Index batch = state.offset.extent(0);
    check(be, heard, said, options, mask, taps, batch);
    const detail::CodeRing codes{
        state.codes.data(), state.offset.data(), mask.data(), C.delays, C.streams(), spoken, ring};
    const auto inputs = be.template make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), 1);
    be.for_each(batch * heard_streams, detail::HearCode{codes, heard.data()});
    be.for_each(batch * C.streams(), detail::ReadCode{codes, inputs.data(), C.initial()});

    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(batch, 1); };
    const auto x = make(), h = make(), z = make();
    NoState none;
    Model::embed(be, p, inputs, x);
    Model::Transformer::step(be, p.transformer, state.transformer, x, h, mask);
    Model::OutNorm::step(be, p.out_norm, none, h, z, mask);

    const auto chosen = be.template make<std::int32_t, dyn, spoken>(batch);
    say_text(be, p, state, z, chosen, options, taps);
    say_audio(be, p, state, z, chosen, options, taps);
    be.for_each(batch * spoken, detail::SayCode{codes, chosen.data(), said.data(), C.max_delay()});
    advance(be, state.offset.data(), batch, 1, mask);
  }

  /// The audio codes of a frame, from the transformer's rows z (B, 1, dim) and the text codes, chosen[b][0].
  static void say_audio(B& be, const Params& p, const State& state, Sequence<const T, dim> z,
                        Tensor<std::int32_t, dyn, spoken> chosen, const GenOptions& options,
                        const Taps& taps) {
    const auto scope = be.scope();
    const Index batch = chosen.extent(0);
    const auto draw = sample_row<T>(nullptr, C.card, options.audio, state.seed.data(), state.offset.data(), 1,
                                    chosen.data());
    if (batch == 1 && Model::depth_frame(be, p, z, chosen.data(), taps.forced.data(), taps.logits, draw))
      return;
    auto frame = Model::Depth::begin_frame(be, batch);
    const auto scratch = be.template make<T, dyn, C.card>(batch);
    for (Index k = 0; k < K; ++k) {
      const auto logits = taps.logits.data() != nullptr ? Tensor<T, dyn, C.card>(taps.logits[k]) : scratch;
      const CodeRows<std::int32_t> before(chosen.data() + k, batch, 1, {spoken, 1});
      Model::depth_step(be, p, frame, k, z, before, Sequence<T, C.card>(logits.data(), {1, batch, C.card}));
      choose(be, state, logits, options.audio, 1 + k, chosen, taps);
    }
  }

 private:
  static void say_text(B& be, const Params& p, const State& state, Sequence<const T, dim> z,
                       Tensor<std::int32_t, dyn, spoken> chosen, const GenOptions& options,
                       const Taps& taps) {
    const Index batch = chosen.extent(0);
    const auto logits =
        taps.text_logits.data() != nullptr ? taps.text_logits : be.template make<T, dyn, C.text_card>(batch);
    NoState none;
    Model::TextLinear::step(be, p.text_linear, none, z,
                            Sequence<T, C.text_card>(logits.data(), {batch, 1, C.text_card}), Mask{});
    choose(be, state, logits, options.text, 0, chosen, taps);
  }

  template <Index Card>
  static void choose(B& be, const State& state, Tensor<T, dyn, Card> logits, const SampleOptions& options,
                     Index stream, Tensor<std::int32_t, dyn, spoken> chosen, const Taps& taps) {
    sample(be, logits, options, state.seed.data(), state.offset.data(), stream, chosen.data() + stream,
           spoken);
    if (taps.forced.data() != nullptr) {
      be.for_each(chosen.extent(0), detail::ForceCode{taps.forced.data(), chosen.data(), spoken, stream});
    }
  }

  /// An optional tensor is empty or of this batch.
  template <class Tens>
  static void expect(const Tens& tensor, Index batch, const char* what, std::size_t axis = 0) {
    if (tensor.data() == nullptr || tensor.extent(axis) == batch) return;
    fail(std::string("LMGen: ") + what, std::to_string(tensor.extent(axis)) + " sessions",
         std::to_string(batch), "pass one row for each session of the state");
  }

  static void check(B& be, Tensor<const std::int32_t, dyn, heard_streams> heard,
                    Tensor<std::int32_t, dyn, spoken> said, const GenOptions& options, Mask mask,
                    const Taps& taps, Index batch) {
    if ((heard.data() == nullptr && heard_streams > 0) || said.data() == nullptr) {
      fail("LMGen::step", "no tensor for heard or said", "one row for each session", "make room for both");
    }
    expect(heard, batch, "heard");
    expect(said, batch, "said");
    expect(mask, batch, "mask");
    expect(taps.forced, batch, "forced");
    expect(taps.text_logits, batch, "text_logits");
    expect(taps.logits, batch, "logits", 1);
    if (!options.check) return;
    const InitialCodes end = C.initial();
    check_streams(be, "LMGen: heard", {heard.data(), {batch, heard_streams, 1}}, spoken,
                  {zero_code, end.text, end.audio}, mask);
    if (taps.forced.data() != nullptr) {
      check_streams(be, "LMGen: forced", {taps.forced.data(), {batch, spoken, 1}}, 0,
                    {ungenerated_code, end.text + 1, end.audio + 1}, mask);
    }
  }
};

}  // namespace mttt
