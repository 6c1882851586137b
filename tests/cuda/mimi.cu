// Mimi as a whole: the same codes on CPU and GPU, the same samples, offline and streamed with masks.
#include "agreement.cuh"
#include "laws/mimi_small.hpp"

namespace {
using namespace mttt;
using laws::detail::fetch;
using laws::detail::send;

// A template on purpose: nvcc 13.0 does not come to an end on the class itself with Catch2 3.
template <class H, class D>
struct Fixture {
  using M = Mimi<mttt::testing::mimi_small, H>;
  using G = Mimi<mttt::testing::mimi_small, D>;
  static constexpr Index sessions = 3, frames = 5;
  H cpu;
  D gpu;
  Rng rng{3};
  Store<typename M::Params, H> params = laws::random_params<M>(cpu, {}, rng);
  Store<typename G::Params, D> device_params{gpu};
  Store<typename M::Codebooks, H> books{cpu}, fetched{cpu};
  Store<typename G::Codebooks, D> device_books{gpu};
  Sequence<float, 1> pcm = cpu.template make<float, dyn, dyn, 1>(sessions, frames* M::frame_size);
  Sequence<float, 1> reply = cpu.template make<float, dyn, dyn, 1>(sessions, frames* M::frame_size);
  Codes<> codes = cpu.template make<std::int32_t, dyn, dyn, dyn>(sessions, M::n_q, frames);
  double tolerance = laws::detail::agreement_of<float>(*params, pcm.size());

  Fixture() {
    for_each_tensor(  // no noise may make a usage negative
        [&](std::string_view name, auto& t) {
          if (name.ends_with("cluster_usage")) cpu.fill(t.data(), t.size(), 2.0f);
        },
        *params);
    upload(gpu, params, device_params);
    M::derive(cpu, *params, *books);
    G::derive(gpu, *device_params, *device_books);
    laws::fill_normal(pcm, 1, rng);
  }
  void compare(Sequence<float, 1> device_reply) {
    const auto got = fetch(cpu, gpu, device_reply);
    const double error = laws::largest_difference(got.data(), reply.data(), reply.size());
    INFO("relative error " << error << ", tolerance " << tolerance);
    CHECK(error <= tolerance);
  }
  void compare(Codes<> device_codes) {
    const auto got = fetch(cpu, gpu, device_codes);
    CHECK(laws::detail::same_bits(got.data(), codes.data(), codes.size()));
  }
  void codebooks() {
    download(gpu, device_books, fetched);
    laws::detail::Worst worst;
    laws::detail::compare(*fetched, *books, worst, "codebook");
    INFO(worst.name);
    CHECK(worst.error <= tolerance);
  }

  void whole() {
    const auto gpcm = send(gpu, pcm), greply = send(gpu, reply);
    const auto gcodes = send(gpu, codes);
    M::encode(cpu, *params, *books, pcm, codes);
    G::encode(gpu, *device_params, *device_books, gpcm, gcodes);
    compare(gcodes);
    M::decode(cpu, *params, *books, codes, reply);
    G::decode(gpu, *device_params, *device_books, gcodes, greply);
    compare(greply);
  }

  void in_chunks() {
    Store<typename M::EncoderState, H> encoder(cpu, sessions), got_encoder(cpu, sessions);
    Store<typename M::DecoderState, H> decoder(cpu, sessions), got_decoder(cpu, sessions);
    Store<typename G::EncoderState, D> device_encoder(gpu, sessions);
    Store<typename G::DecoderState, D> device_decoder(gpu, sessions);
    M::reset_encoder(cpu, *params, *encoder);
    M::reset_decoder(cpu, *params, *decoder);
    G::reset_encoder(gpu, *device_params, *device_encoder);
    G::reset_decoder(gpu, *device_params, *device_decoder);
    const auto gpcm = send(gpu, pcm), greply = send(gpu, reply);
    const auto gcodes = send(gpu, codes);
    const auto mask = cpu.template make<std::uint8_t, dyn>(sessions);
    for (int chunk = 0; chunk < 6; ++chunk) {
      for (Index b = 0; b < sessions; ++b) mask(b) = chunk == 0 || rng.uniform() < 0.6;
      const auto gmask = send(gpu, mask);
      laws::fill_normal(pcm, 1, rng);
      gpu.to_device(pcm.data(), gpcm.data(), pcm.size());
      M::encode_step(cpu, *params, *books, *encoder, pcm, codes, mask);
      G::encode_step(gpu, *device_params, *device_books, *device_encoder, gpcm, gcodes, gmask);
      M::decode_step(cpu, *params, *books, *decoder, codes, reply, mask);
      G::decode_step(gpu, *device_params, *device_books, *device_decoder, gcodes, greply, gmask);
      compare(gcodes);
      compare(greply);
      download(gpu, device_encoder, got_encoder);
      download(gpu, device_decoder, got_decoder);
      laws::detail::Worst worst;
      laws::detail::compare(*got_encoder, *encoder, worst, "encoder");
      laws::detail::compare(*got_decoder, *decoder, worst, "decoder");
      INFO("chunk " << chunk << ", " << worst.name << ": " << worst.error << ", tolerance " << tolerance);
      CHECK(worst.error <= tolerance);
    }
  }
};
using Both = Fixture<Cpu<float>, Cuda<float>>;
}  // namespace

TEST_CASE("CUDA: Mimi's codebooks") { Both().codebooks(); }
TEST_CASE("CUDA: Mimi encodes and decodes as on the CPU") { Both().whole(); }
TEST_CASE("CUDA: Mimi in chunks, with masks") { Both().in_chunks(); }
