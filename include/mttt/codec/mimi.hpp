// Mimi: the neural codec between samples and the code streams of a speech language model.
//
// Three ways to use it, all of one result:
//   encode, decode                      whole pieces at once; memory grows with their length
//   encode_recording, decode_recording  any length, in chunks
//   encode_step, decode_step            streams of B sessions, any number of frames a call, masks, resets
// Formula: encode  SEANet encoder, transformer, convolution of stride `downsample`, split residual quantiser.
//          decode  quantiser, transposed convolution channel by channel, transformer, SEANet decoder.
// Shapes:  pcm (B, S, channels), latent (B, F, dimension), codes (B, n, F) with S = F * frame_size(). n is
//          chosen at run time by the shape of the codes: quantizer.semantic_q to quantizer.n_q.
// Units:   S samples at sample_rate, F frames at frame_rate(); samples between -1 and 1.
// Errors:  Error when S is not F * frame_size() (the functions for recordings pad), or n is out of range.
// Not supported: other ways of resampling between frame rates. Training is in train/codec_loss.hpp.
// Source:  kyutai-labs/moshi models/compression.py `MimiModel`, models/loaders.py `get_mimi`.
#pragma once

#include "mttt/codec/mimi_transformer.hpp"
#include "mttt/codec/rvq.hpp"
#include "mttt/codec/seanet.hpp"
#include "mttt/core/store.hpp"

namespace mttt {

struct MimiConfig {
  Index sample_rate = 24000;
  Index downsample = 2;  // encoder steps a frame
  SeanetConfig seanet{};
  MimiTransformerConfig transformer{};
  RvqConfig quantizer{.dim = 512, .codebook_dim = 256, .card = 2048, .n_q = 32};

  /// Samples a frame.
  constexpr Index frame_size() const { return seanet.hop() * downsample; }
  /// Frames a second.
  constexpr double frame_rate() const {
    return static_cast<double>(sample_rate) / static_cast<double>(frame_size());
  }
};

template <MimiConfig C, class B>
struct Mimi {
  static_assert(C.transformer.d_model == C.seanet.dimension && C.quantizer.dim == C.seanet.dimension,
                "mttt: Mimi: the transformer and the quantiser must have seanet.dimension channels");

  using T = typename B::Scalar;
  using Backend = B;
  static constexpr MimiConfig config = C;
  static constexpr Index dimension = C.seanet.dimension, channels = C.seanet.channels,
                         frame_size = C.frame_size(), n_q = C.quantizer.n_q, card = C.quantizer.card;
  /// Frames that hold so many samples, the last one padded.
  static constexpr Index frames_of(Index samples) { return (samples + frame_size - 1) / frame_size; }

  using Encoder = SeanetEncoder<C.seanet, B>;
  using Decoder = SeanetDecoder<C.seanet, B>;
  using Transformer = MimiTransformer<C.transformer, B>;
  using Downsample = Conv1d<Conv1dConfig{.in = dimension,
                                         .out = dimension,
                                         .kernel = 2 * C.downsample,
                                         .stride = C.downsample,
                                         .bias = false,
                                         .pad_mode = PadMode::replicate},
                            B>;
  using Upsample = ConvTranspose1d<ConvTranspose1dConfig{.in = dimension,
                                                         .out = dimension,
                                                         .kernel = 2 * C.downsample,
                                                         .stride = C.downsample,
                                                         .groups = dimension,
                                                         .bias = false},
                                   B>;
  using Quantizer = SplitRvq<C.quantizer, B>;
  using ToLatent = Sequential<Encoder, Transformer, Downsample>;
  using FromLatent = Sequential<Upsample, Transformer, Decoder>;

  /// The parts in the order of the signal, under their published names.
  struct Params {
    typename ToLatent::Params to_latent;
    typename FromLatent::Params from_latent;
    typename Quantizer::Params quantizer;
    static void visit(auto&& f, auto&&... p) {
      f("encoder", std::get<0>(p.to_latent.parts)...);
      f("encoder_transformer", std::get<1>(p.to_latent.parts)...);
      f("downsample.conv", std::get<2>(p.to_latent.parts)...);
      f("quantizer", p.quantizer...);
      f("upsample.convtr", std::get<0>(p.from_latent.parts)...);
      f("decoder_transformer", std::get<1>(p.from_latent.parts)...);
      f("decoder", std::get<2>(p.from_latent.parts)...);
    }
  };
  /// Derived from Params once after loading: Store<Codebooks, B> books(be); derive(be, *params, *books);
  using Codebooks = typename Quantizer::Codebooks;

  struct EncoderState {
    typename ToLatent::State to_latent;
    static void visit(auto&& f, auto&&... s) {
      f("encoder", std::get<0>(s.to_latent.parts)...);
      f("encoder_transformer", std::get<1>(s.to_latent.parts)...);
      f("downsample", std::get<2>(s.to_latent.parts)...);
    }
  };
  struct DecoderState {
    typename FromLatent::State from_latent;
    static void visit(auto&& f, auto&&... s) {
      f("upsample", std::get<0>(s.from_latent.parts)...);
      f("decoder_transformer", std::get<1>(s.from_latent.parts)...);
      f("decoder", std::get<2>(s.from_latent.parts)...);
    }
  };

  static void init(Params& p, Rng& rng) {
    ToLatent::init(p.to_latent, rng);
    FromLatent::init(p.from_latent, rng);
    Quantizer::init(p.quantizer, rng);
  }
  static void derive(B& be, const Params& p, Codebooks& books) { Quantizer::derive(be, p.quantizer, books); }

  /// The latent before quantisation.
  static void encode_latent(B& be, const Params& p, Sequence<const T, channels> pcm,
                            Sequence<T, dimension> latent) {
    check(pcm.extent(1), latent.extent(1));
    const auto scope = be.scope();
    typename ToLatent::Saved unused;
    ToLatent::forward(be, p.to_latent, pcm, latent, unused);
  }
  static void encode(B& be, const Params& p, const Codebooks& books, Sequence<const T, channels> pcm,
                     Codes<> codes) {
    const auto scope = be.scope();
    const auto latent = make_latent(be, codes);
    encode_latent(be, p, pcm, latent);
    Quantizer::encode(be, p.quantizer, books, latent, codes);
  }
  static void decode(B& be, const Params& p, const Codebooks& books, Codes<const std::int32_t> codes,
                     Sequence<T, channels> pcm) {
    check(pcm.extent(1), codes.extent(2));
    const auto scope = be.scope();
    const auto latent = make_latent(be, codes);
    Quantizer::decode(be, p.quantizer, books, codes, latent);
    typename FromLatent::Saved unused;
    FromLatent::forward(be, p.from_latent, latent, pcm, unused);
  }

  static void encode_latent_step(B& be, const Params& p, EncoderState& state, Sequence<const T, channels> pcm,
                                 Sequence<T, dimension> latent, Mask mask = {}) {
    check(pcm.extent(1), latent.extent(1));
    ToLatent::step(be, p.to_latent, state.to_latent, pcm, latent, mask);
  }
  static void encode_step(B& be, const Params& p, const Codebooks& books, EncoderState& state,
                          Sequence<const T, channels> pcm, Codes<> codes, Mask mask = {}) {
    const auto scope = be.scope();
    const auto latent = make_latent(be, codes);
    encode_latent_step(be, p, state, pcm, latent, mask);
    Quantizer::encode(be, p.quantizer, books, latent, codes);
  }
  static void decode_step(B& be, const Params& p, const Codebooks& books, DecoderState& state,
                          Codes<const std::int32_t> codes, Sequence<T, channels> pcm, Mask mask = {}) {
    check(pcm.extent(1), codes.extent(2));
    const auto scope = be.scope();
    const auto latent = make_latent(be, codes);
    Quantizer::decode(be, p.quantizer, books, codes, latent);
    FromLatent::step(be, p.from_latent, state.from_latent, latent, pcm, mask);
  }
  static void reset_encoder(B& be, const Params& p, EncoderState& state, Mask mask = {}) {
    ToLatent::reset(be, p.to_latent, state.to_latent, mask);
  }
  static void reset_decoder(B& be, const Params& p, DecoderState& state, Mask mask = {}) {
    FromLatent::reset(be, p.from_latent, state.from_latent, mask);
  }

  /// codes (B, n, frames_of(S)) of pcm (B, S, channels), S any number: the end is padded with zeros.
  static void encode_recording(B& be, const Params& p, const Codebooks& books,
                               Sequence<const T, channels> pcm, Codes<> codes, Index frames_at_once = 25) {
    const Index sessions = pcm.extent(0), samples = pcm.extent(1), frames = codes.extent(2);
    check(frames_of(samples) * frame_size, frames);
    Store<EncoderState, B> state(be, sessions);
    reset_encoder(be, p, *state);
    for (Index at = 0; at < frames; at += frames_at_once) {
      const auto scope = be.scope();
      const Index n = frames_at_once < frames - at ? frames_at_once : frames - at, first = at * frame_size;
      const Index have = n * frame_size < samples - first ? n * frame_size : samples - first;
      const auto chunk = be.template make<T, dyn, dyn, channels>(sessions, n * frame_size);
      const auto reply = be.template make<std::int32_t, dyn, dyn, dyn>(sessions, codes.extent(1), n);
      be.fill(chunk.data(), chunk.size(), T(0));
      detail::copy_sessions<B, T>(be, pcm.data() + first * channels, samples * channels, chunk.data(),
                                  n * frame_size * channels, have * channels, sessions);
      encode_step(be, p, books, *state, chunk, reply);
      detail::copy_sessions<B, std::int32_t>(be, reply.data(), n, codes.data() + at, frames, n,
                                             sessions * codes.extent(1));
    }
  }

  /// pcm (B, F * frame_size, channels) of codes (B, n, F).
  static void decode_recording(B& be, const Params& p, const Codebooks& books,
                               Codes<const std::int32_t> codes, Sequence<T, channels> pcm,
                               Index frames_at_once = 25) {
    const Index sessions = codes.extent(0), frames = codes.extent(2);
    check(pcm.extent(1), frames);
    Store<DecoderState, B> state(be, sessions);
    reset_decoder(be, p, *state);
    for (Index at = 0; at < frames; at += frames_at_once) {
      const auto scope = be.scope();
      const Index n = frames_at_once < frames - at ? frames_at_once : frames - at;
      const auto chunk = be.template make<std::int32_t, dyn, dyn, dyn>(sessions, codes.extent(1), n);
      const auto reply = be.template make<T, dyn, dyn, channels>(sessions, n * frame_size);
      detail::copy_sessions<B, std::int32_t>(be, codes.data() + at, frames, chunk.data(), n, n,
                                             sessions * codes.extent(1));
      decode_step(be, p, books, *state, chunk, reply);
      detail::copy_sessions<B, T>(be, reply.data(), reply.extent(1) * channels,
                                  pcm.data() + at * frame_size * channels, pcm.extent(1) * channels,
                                  reply.extent(1) * channels, sessions);
    }
  }

 private:
  template <class Code>
  static Sequence<T, dimension> make_latent(B& be, Codes<Code> codes) {
    return be.template make<T, dyn, dyn, dimension>(codes.extent(0), codes.extent(2));
  }
  static void check(Index samples, Index frames) {
    if (samples != frames * frame_size || frames < 1) {
      fail("Mimi", std::to_string(samples) + " samples for " + std::to_string(frames) + " frames",
           std::to_string(frame_size) + " samples a frame, and one frame or more",
           "keep the rest for the next call, or use encode_recording, which pads");
    }
  }
};

}  // namespace mttt
