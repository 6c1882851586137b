// Mimi against the published implementation on one file: whole, streamed frame by frame and in random chunks,
// and as one of several sessions. In mimi_tiny the attention window is longer than the recording. In
// mimi_tiny_window it binds; there the published streaming departs from the published offline result, which
// is the one to match in both modes.
#pragma once

#include <vector>

#include "golden.hpp"
#include "mttt/codec/mimi.hpp"
#include "mttt/io/checkpoint.hpp"

namespace mttt::testing {

constexpr MimiConfig mimi_golden(Index context) {
  return {.sample_rate = 2400,
          .seanet = {.dimension = 16, .n_filters = 4, .ratios = {4, 3, 2, 2}},
          .transformer =
              {.d_model = 16, .num_heads = 2, .num_layers = 2, .dim_feedforward = 32, .context = context},
          .quantizer = {.dim = 16, .codebook_dim = 8, .card = 16, .n_q = 6}};
}

template <Index context, class B>
struct MimiGolden {
  using M = Mimi<mimi_golden(context), B>;
  static constexpr Index frame = M::frame_size;
  static constexpr double tolerance = 1e-4;  // of the largest absolute value

  B be;
  Cpu<float> host;
  Store<typename M::Params, B> params{be};
  Store<typename M::Codebooks, B> books{be};
  std::vector<float> pcm, latent, decoded;
  std::vector<std::int32_t> codes;
  Index frames;
  Rng rng{5};

  explicit MimiGolden(const std::string& name) {
    const SafetensorsFile file = open_golden(name);
    load_params(file.path(), be, params, {.prefix = "weights."});
    M::derive(be, *params, *books);
    pcm = read_golden<float>(file, "in.pcm");
    codes = read_golden<std::int32_t>(file, "out.codes");
    decoded = read_golden<float>(file, "out.pcm");
    frames = static_cast<Index>(pcm.size()) / frame;
    const auto published = read_golden<float>(file, "out.latent");  // (1, dimension, frames)
    latent.resize(published.size());
    for (Index t = 0; t < frames; ++t) {
      for (Index c = 0; c < M::dimension; ++c) latent[t * M::dimension + c] = published[c * frames + t];
    }
    REQUIRE(frames == 20);
    REQUIRE(static_cast<Index>(codes.size()) == M::n_q * frames);
  }

  Sequence<float, 1> sound(Index sessions, Index samples) {
    return be.template make<float, dyn, dyn, 1>(sessions, samples);
  }
  Sequence<float, 1> host_sound(Index sessions, Index samples) {
    return host.make<float, dyn, dyn, 1>(sessions, samples);
  }
  Sequence<float, M::dimension> latents(Index sessions, Index n) {
    return be.template make<float, dyn, dyn, M::dimension>(sessions, n);
  }
  Codes<> some_codes(Index sessions, Index n) {
    return be.template make<std::int32_t, dyn, dyn, dyn>(sessions, M::n_q, n);
  }
  /// Samples [at, at + n) of the recording, and its codes, in the backend's memory.
  Sequence<float, 1> input(Index at, Index n) {
    return send(be, Sequence<float, 1>(pcm.data() + at, {1, n, 1}));
  }
  Sequence<float, 1> input() { return input(0, frames * frame); }
  Codes<> expected_codes() { return send(be, Codes<>(codes.data(), {1, M::n_q, frames})); }

  /// In host memory: copies frames [at, at + n) of the recording's codes into, or compares them with, session b.
  void put_codes(Codes<> to, Index b, Index at) {
    for (Index q = 0; q < M::n_q; ++q) {
      for (Index t = 0; t < to.extent(2); ++t) to(b, q, t) = codes[q * frames + at + t];
    }
  }
  void require_codes(Codes<> found, Index b, Index at) {
    for (Index q = 0; q < M::n_q; ++q) {
      for (Index t = 0; t < found.extent(2); ++t) {
        INFO("session " << b << ", codebook " << q << ", frame " << at + t);
        REQUIRE(found(b, q, t) == codes[q * frames + at + t]);
      }
    }
  }
  template <Index C>
  void require_close(Sequence<float, C> found, const std::vector<float>& expected) {
    REQUIRE(found.size() == static_cast<Index>(expected.size()));
    require_close(fetch(host, be, found).data(), expected);
  }
  static void require_close(const float* found, const std::vector<float>& expected) {
    const double difference =
        laws::largest_difference(found, expected.data(), static_cast<Index>(expected.size()));
    INFO("relative difference " << difference);
    REQUIRE(difference < tolerance);
  }

  void whole() {
    const auto found_latent = latents(1, frames);
    M::encode_latent(be, *params, input(), found_latent);
    require_close(found_latent, latent);
    const auto found = some_codes(1, frames);
    M::encode(be, *params, *books, input(), found);
    require_codes(fetch(host, be, found), 0, 0);
    const auto out = sound(1, frames * frame);
    M::decode(be, *params, *books, expected_codes(), out);
    require_close(out, decoded);
  }

  /// Fewer codebooks are the first ones of all.
  void fewer_codebooks() {
    const auto found = be.template make<std::int32_t, dyn, dyn, dyn>(1, 3, frames);
    M::encode(be, *params, *books, input(), found);
    const auto ours = fetch(host, be, found);
    for (Index i = 0; i < ours.size(); ++i) REQUIRE(ours.data()[i] == codes[i]);
  }

  void recording() {
    const Index samples = frames * frame - 17;  // the padded end changes the last frame alone
    const auto found = some_codes(1, frames);
    M::encode_recording(be, *params, *books, input(0, samples), found, 3);
    const auto ours = fetch(host, be, found);
    for (Index q = 0; q < M::n_q; ++q) {
      for (Index t = 0; t + 1 < frames; ++t) REQUIRE(ours(0, q, t) == codes[q * frames + t]);
    }
    const auto out = sound(1, frames * frame);
    M::decode_recording(be, *params, *books, expected_codes(), out, 3);
    require_close(out, decoded);
  }

  /// Chunks of `largest` frames at most, of random sizes above 1.
  void streamed(Index largest) {
    Store<typename M::EncoderState, B> encoder(be);
    Store<typename M::DecoderState, B> decoder(be);
    M::reset_encoder(be, *params, *encoder);
    M::reset_decoder(be, *params, *decoder);
    std::vector<float> found_latent(latent.size()), found_pcm(pcm.size());
    for (Index at = 0; at < frames;) {
      const auto scope = be.scope();
      const auto host_scope = host.scope();
      const Index n =
          std::min(frames - at, 1 + static_cast<Index>(rng.below(static_cast<std::uint64_t>(largest))));
      const auto chunk = input(at * frame, n * frame);
      Store<typename M::EncoderState, B> before(be, encoder);
      const auto chunk_latent = latents(1, n);
      M::encode_latent_step(be, *params, *before, chunk, chunk_latent);
      be.to_host(chunk_latent.data(), found_latent.data() + at * M::dimension, chunk_latent.size());
      const auto found = some_codes(1, n);
      M::encode_step(be, *params, *books, *encoder, chunk, found);
      require_codes(fetch(host, be, found), 0, at);
      const auto out = sound(1, n * frame);
      M::decode_step(be, *params, *books, *decoder, found, out);
      be.to_host(out.data(), found_pcm.data() + at * frame, out.size());
      at += n;
    }
    require_close(found_latent.data(), latent);
    require_close(found_pcm.data(), decoded);
  }

  /// Four sessions at their own pace through the same recording; the last is reset half way and starts anew.
  void sessions() {
    constexpr Index count = 4;
    Store<typename M::EncoderState, B> encoder(be, count);
    Store<typename M::DecoderState, B> decoder(be, count);
    M::reset_encoder(be, *params, *encoder);
    M::reset_decoder(be, *params, *decoder);
    std::vector<std::vector<float>> found_pcm(count, std::vector<float>(pcm.size()));
    std::array<Index, count> at{};
    bool was_reset = false;
    while (*std::min_element(at.begin(), at.end()) < frames) {
      const auto scope = be.scope();
      const auto host_scope = host.scope();
      const Index n = 1 + static_cast<Index>(rng.below(2));
      const auto mask = host.make<std::uint8_t, dyn>(count);
      const auto chunk = host_sound(count, n * frame);
      const auto in = host.make<std::int32_t, dyn, dyn, dyn>(count, M::n_q, n);
      if (at[count - 1] >= frames / 2 && !was_reset) {
        for (Index b = 0; b < count; ++b) mask(b) = b == count - 1;
        const auto last = send(be, mask);
        M::reset_encoder(be, *params, *encoder, last);
        M::reset_decoder(be, *params, *decoder, last);
        at[count - 1] = 0;
        was_reset = true;
      }
      for (Index b = 0; b < count; ++b) {
        mask(b) = at[b] + n <= frames && rng.uniform() < 0.6;
        const Index from = mask(b) ? at[b] : 0;  // a masked session's input is not looked at
        std::copy_n(pcm.data() + from * frame, n * frame, &chunk(b, 0, 0));
        put_codes(in, b, from);
      }
      const auto device_mask = send(be, mask);
      const auto device_found = some_codes(count, n);
      const auto device_out = sound(count, n * frame);
      M::encode_step(be, *params, *books, *encoder, send(be, chunk), device_found, device_mask);
      M::decode_step(be, *params, *books, *decoder, send(be, in), device_out, device_mask);
      const auto found = fetch(host, be, device_found);
      const auto out = fetch(host, be, device_out);
      for (Index b = 0; b < count; ++b) {
        if (mask(b) == 0) continue;
        require_codes(found, b, at[b]);
        std::copy_n(&out(b, 0, 0), n * frame, found_pcm[b].data() + at[b] * frame);
        at[b] += n;
      }
    }
    REQUIRE(was_reset);
    for (const auto& found : found_pcm) require_close(found.data(), decoded);
  }

  void wrong_lengths() {
    const auto found = some_codes(1, 1);
    CHECK_THROWS_WITH(M::encode(be, *params, *books, sound(1, frame + 1), found),
                      test::contains("96 samples a frame"));
    CHECK_THROWS_WITH(M::decode(be, *params, *books, found, sound(1, 2 * frame)),
                      test::contains("192 samples"));
  }

  void all_whole() {
    SECTION("whole") { whole(); }
    SECTION("fewer codebooks") { fewer_codebooks(); }
    SECTION("wrong lengths") { wrong_lengths(); }
  }
  void all_streamed() {
    SECTION("frame by frame") { streamed(1); }
    SECTION("in random chunks") {
      for (const Index largest : {2, 3, 7, 20}) streamed(largest);
    }
    SECTION("a recording in pieces") { recording(); }
    SECTION("several sessions, masks and a reset") { sessions(); }
  }
};

}  // namespace mttt::testing
