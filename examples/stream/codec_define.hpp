// The functions of codec.hpp.
#pragma once

#include "codec.hpp"

template <mttt::MimiConfig M>
void Codec<M>::load(const mttt::ModelFiles& files, Backend& be, mttt::Store<Params, Backend>& params,
                    mttt::Store<Codebooks, Backend>& books) {
  mttt::load_mimi<M>(files, be, params);
  Mimi::derive(be, *params, *books);
}
template <mttt::MimiConfig M>
void Codec<M>::reset_encoder(Backend& be, const Params& p, EncoderState& state, mttt::Mask mask) {
  Mimi::reset_encoder(be, p, state, mask);
}
template <mttt::MimiConfig M>
void Codec<M>::reset_decoder(Backend& be, const Params& p, DecoderState& state, mttt::Mask mask) {
  Mimi::reset_decoder(be, p, state, mask);
}
template <mttt::MimiConfig M>
void Codec<M>::encode_step(Backend& be, const Params& p, const Codebooks& books, EncoderState& state,
                           Sound<const T> pcm, mttt::Codes<> codes, mttt::Mask mask) {
  Mimi::encode_step(be, p, books, state, pcm, codes, mask);
}
template <mttt::MimiConfig M>
void Codec<M>::decode_step(Backend& be, const Params& p, const Codebooks& books, DecoderState& state,
                           mttt::Codes<const std::int32_t> codes, Sound<T> pcm, mttt::Mask mask) {
  Mimi::decode_step(be, p, books, state, codes, pcm, mask);
}
