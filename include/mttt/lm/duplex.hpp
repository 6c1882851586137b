// Duplex: full-duplex conversations from sound to sound, frame by frame, for B sessions at once.
//
// Formula: heard = Mimi's codes of the samples; said = LMGen(heard); the reply = Mimi's samples of what was said.
//          A session is audible when it is active and said something: its first max_delay() frames only fill
//          the delays, leave its decoder as it was, and sound as silence.
// Shapes:  Input and Output: one row a session, one frame a call. Each is an aggregate, so that a Store holds
//          it, on the host and on the backend: a frame travels with one upload and one download.
// Units:   samples of Codec::config.sample_rate, between -1 and 1; one call is one frame (80 ms).
// Errors:  tensors of another batch, or none where one is needed.
// Not supported: pieces of several frames; Taps of LMGen.
// Source:  kyutai-labs/moshi server.py, `ServerState.handle_chat`: encode, step, decode.
//
// What a frame does depends on no number that only the backend knows, allocates nothing and never waits: on
// Cuda, be.capture([&] { Talk::step(...); }) makes one graph of it. Masks, resets and seeds are read by the
// backend, so that one graph serves sessions that come and go. Keep what a graph reads and writes in Stores:
// memory of the arena that is taken after the recording may be the same that the graph computes in.
#pragma once

#include "mttt/codec/mimi.hpp"
#include "mttt/lm/lm_gen.hpp"

namespace mttt {

namespace detail {

/// Which sessions are audible, and their voice's codes.
struct TakeVoice {
  const std::int32_t* said;  // (B, 1 + voices)
  const std::uint8_t* mask;
  std::int32_t *heard, *voice;  // (B, hears), (B, voices)
  std::uint8_t* audible;        // (B)
  Index hears, voices;
  MTTT_HD void operator()(Index b) const {
    const bool on = active(mask, b);
    const std::int32_t* from = said + b * (1 + voices);
    audible[b] = on && from[0] != ungenerated_code;
    for (Index k = 0; k < voices; ++k) voice[b * voices + k] = from[1 + k];
    if (on) return;
    for (Index k = 0; k < hears; ++k) heard[b * hears + k] = ungenerated_code;
  }
};

template <class T>
struct Silence {
  T* pcm;  // (B, width)
  const std::uint8_t* audible;
  Index width;
  MTTT_HD void operator()(Index i) const {
    if (audible[i / width] == 0) pcm[i] = T(0);
  }
};

}  // namespace detail

/// `Gen` is an LMGen on the backend B; `Codec` a Mimi on B or on a view of it that stores another type, also
/// with narrow weights: WithWeights<f16, Cpu<float>>.
template <class Codec, class Gen, class B>
struct Duplex {
  using U = typename Codec::T;
  static constexpr Index frame_size = Codec::frame_size, channels = Codec::channels,
                         hears = Gen::heard_streams, voices = Gen::K;
  static_assert(Codec::card == Gen::Model::config.card,
                "Duplex: the codec and the language model must agree on the codes");
  static_assert(
      hears >= 1 && hears <= Codec::n_q && voices <= Codec::n_q,
      "Duplex: the language model must hear, and hear and speak no more codebooks than the codec has");

  /// What was learned; it belongs to the caller.
  struct Models {
    const typename Codec::Params& codec;
    const typename Codec::Codebooks& books;
    const typename Gen::Params& lm;
  };

  /// Everything of a conversation that outlives a frame: saved as one file, it resumes tomorrow.
  struct State {
    typename Codec::EncoderState encoder;
    typename Gen::State lm;
    typename Codec::DecoderState decoder;
    static void visit(auto&& f, auto&&... s) {
      f("encoder", s.encoder...);
      f("lm", s.lm...);
      f("decoder", s.decoder...);
    }
  };

  /// A Store of it starts with nobody active. An empty `active` means all, an empty `reset` none (then no time
  /// goes into asking), an empty `seed` that sessions keep theirs.
  struct Input {
    Tensor<U, dyn, frame_size, channels> pcm;
    Tensor<std::uint8_t, dyn> active;  // 0: this session stays as it is, and is silent
    Tensor<std::uint8_t, dyn> reset;   // 1: this session starts anew before the frame, active or not
    Tensor<std::int64_t, dyn> seed;    // of the draws of sessions that start anew
    static void visit(auto&& f, auto&&... x) {
      f("pcm", x.pcm...);
      f("active", x.active...);
      f("reset", x.reset...);
      f("seed", x.seed...);
    }
  };
  /// Inactive sessions hear and say ungenerated_code.
  struct Output {
    Tensor<U, dyn, frame_size, channels> pcm;
    Tensor<std::int32_t, dyn, Gen::spoken> said;  // text, then Moshi's voice; max_delay() frames late
    Tensor<std::int32_t, dyn, hears> heard;
    static void visit(auto&& f, auto&&... y) {
      f("pcm", y.pcm...);
      f("said", y.said...);
      f("heard", y.heard...);
    }
  };

  /// Starts sessions anew, with the given seeds (B) or those they have (0 at first).
  static void reset(B& be, const Models& models, State& state, Mask mask,
                    Tensor<const std::int64_t, dyn> seeds = {}) {
    auto codec_be = view(be);
    Codec::reset_encoder(codec_be, models.codec, state.encoder, mask);
    Gen::reset(be, models.lm, state.lm, mask, seeds);
    Codec::reset_decoder(codec_be, models.codec, state.decoder, mask);
  }

  /// One frame. The codes come from the codec: options.check has nothing to find, and is left out.
  static void step(B& be, const Models& models, State& state, const Input& in, const Output& out,
                   GenOptions options) {
    const Index batch = state.lm.offset.extent(0);
    check(in, out, batch);
    const auto scope = be.scope();
    auto codec_be = view(be);
    options.check = false;
    if (in.reset.data() != nullptr) reset(be, models, state, in.reset, in.seed);

    Codec::encode_step(codec_be, models.codec, models.books, state.encoder, in.pcm,
                       {out.heard.data(), {batch, hears, 1}}, in.active);
    Gen::step(be, models.lm, state.lm, out.heard, out.said, options, in.active);

    const auto voice = be.template make<std::int32_t, dyn, dyn, dyn>(batch, voices, 1);
    const auto audible = be.template make<std::uint8_t, dyn>(batch);
    be.for_each(batch, detail::TakeVoice{out.said.data(), in.active.data(), out.heard.data(), voice.data(),
                                         audible.data(), hears, voices});
    Codec::decode_step(codec_be, models.codec, models.books, state.decoder, voice, out.pcm, audible);
    be.for_each(out.pcm.size(), detail::Silence<U>{out.pcm.data(), audible.data(), frame_size * channels});
  }

 private:
  /// The codec's: the same memory and order of work.
  static auto view(B& be) { return typename Codec::Backend(be.template as<U>()); }

  template <class Tens>
  static void expect(const Tens& tensor, Index batch, const char* what, bool needed) {
    if (tensor.data() == nullptr ? !needed : tensor.extent(0) == batch) return;
    fail(std::string("Duplex: ") + what,
         tensor.data() == nullptr ? "no tensor" : std::to_string(tensor.extent(0)) + " sessions",
         std::to_string(batch) + " sessions, as in the state", "pass one row for each session");
  }
  static void check(const Input& in, const Output& out, Index batch) {
    expect(in.pcm, batch, "samples to hear", true);
    expect(in.active, batch, "active", false);
    expect(in.reset, batch, "reset", false);
    expect(in.seed, batch, "seed", false);
    expect(out.pcm, batch, "samples of the reply", true);
    expect(out.said, batch, "said", true);
    expect(out.heard, batch, "heard", true);
  }
};

}  // namespace mttt
