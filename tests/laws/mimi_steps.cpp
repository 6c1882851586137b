// What Mimi's steps with codes owe.
#include "mimi_small.hpp"

namespace {
using namespace mttt;
}

TEST_CASE("Mimi's steps allocate nothing and keep masked sessions") {
  using B = Cpu<float>;
  using M = Mimi<mttt::testing::mimi_small, B>;
  constexpr Index sessions = 3, frames = 2;
  B be;
  Rng rng(1);
  Store<M::Params, B> params(be);
  Store<M::Codebooks, B> books(be);
  M::init(*params, rng);
  M::derive(be, *params, *books);
  Store<M::EncoderState, B> encoder(be, sessions);
  Store<M::DecoderState, B> decoder(be, sessions);
  M::reset_encoder(be, *params, *encoder);
  M::reset_decoder(be, *params, *decoder);
  const auto pcm = be.make<float, dyn, dyn, 1>(sessions, frames * M::frame_size);
  const auto reply = be.make<float, dyn, dyn, 1>(sessions, frames * M::frame_size);
  const auto codes = be.make<std::int32_t, dyn, dyn, dyn>(sessions, M::n_q, frames);
  const auto mask = be.make<std::uint8_t, dyn>(sessions);
  laws::fill_normal(pcm, 1, rng);
  const auto step = [&](Mask active) {
    M::encode_step(be, *params, *books, *encoder, pcm, codes, active);
    M::decode_step(be, *params, *books, *decoder, codes, reply, active);
  };
  step({});
  const std::size_t before = allocation_count();
  for (int i = 0; i < 5; ++i) step({});
  CHECK(allocation_count() == before);

  mask(0) = mask(2) = 1;
  mask(1) = 0;
  Store<M::EncoderState, B> encoder_before(be, encoder);
  Store<M::DecoderState, B> decoder_before(be, decoder);
  step(mask);
  for (Index b = 0; b < sessions; ++b) {
    CHECK(laws::detail::same_session(*encoder, *encoder_before, b) == (b == 1));
    CHECK(laws::detail::same_session(*decoder, *decoder_before, b) == (b == 1));
  }
}
