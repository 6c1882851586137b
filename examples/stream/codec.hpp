// Mimi, compiled once for all models that talk through it: what Duplex and stream.hpp need of it is declared
// here and defined in codec_define.hpp, which a file for each codec includes.
#pragma once

#include "../backend.hpp"
#include "mttt/io/published.hpp"
#include "mttt/presets/mimi.hpp"

/// What the codec stores its weights in. A CPU reads those of the large one from memory with every frame, and in
/// 16 bits takes three quarters of the time or less (bench/mimi); smaller ones lie in its caches.
#ifdef MTTT_EXAMPLES_CUDA
template <mttt::MimiConfig M>
using CodecBackend = Device<float>;
#else
template <mttt::MimiConfig M>
using CodecBackend = std::conditional_t<(M.transformer.d_model >= 512),
                                        mttt::WithWeights<mttt::f16, Device<float>>, Device<float>>;
#endif

template <mttt::MimiConfig M>
struct Codec {
  using Backend = CodecBackend<M>;
  using Mimi = mttt::Mimi<M, Backend>;
  using T = typename Mimi::T;
  using Params = typename Mimi::Params;
  using Codebooks = typename Mimi::Codebooks;
  using EncoderState = typename Mimi::EncoderState;
  using DecoderState = typename Mimi::DecoderState;
  template <class U>
  using Sound = mttt::Sequence<U, Mimi::channels>;
  static constexpr mttt::MimiConfig config = M;
  static constexpr mttt::Index channels = Mimi::channels, frame_size = Mimi::frame_size, n_q = Mimi::n_q,
                               card = Mimi::card;

  /// The weights, and what is derived from them.
  static void load(const mttt::ModelFiles& files, Backend& be, mttt::Store<Params, Backend>& params,
                   mttt::Store<Codebooks, Backend>& books);
  static void reset_encoder(Backend& be, const Params& p, EncoderState& state, mttt::Mask mask);
  static void reset_decoder(Backend& be, const Params& p, DecoderState& state, mttt::Mask mask);
  static void encode_step(Backend& be, const Params& p, const Codebooks& books, EncoderState& state,
                          Sound<const T> pcm, mttt::Codes<> codes, mttt::Mask mask);
  static void decode_step(Backend& be, const Params& p, const Codebooks& books, DecoderState& state,
                          mttt::Codes<const std::int32_t> codes, Sound<T> pcm, mttt::Mask mask);
};
