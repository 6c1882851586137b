// A frame from sound to sound: Duplex with the presets tiny and mimi_tiny, as calls one by one and as a graph,
// for 1 and 16 conversations, and its three parts.
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/lm/duplex.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/tiny.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using H = Cpu<float>;
using B = Cuda<float>;
using Codec = Mimi<presets::mimi_tiny, B>;
using HostCodec = Mimi<presets::mimi_tiny, H>;
using Gen = LMGen<presets::tiny, B>;
using HostModel = Moshi<presets::tiny, H>;
using Model = Moshi<presets::tiny, B>;
using Talk = Duplex<Codec, Gen, B>;

/// Milliseconds of a frame by the host's clock, waiting for each: what a conversation feels.
template <class F>
double frame_milliseconds(B& be, F&& frame) {
  constexpr int warm = 20, frames = 300;
  double start = 0;
  for (int i = 0; i < warm + frames; ++i) {
    if (i == warm) start = bench::now();
    frame();
    be.synchronize();
  }
  return 1e3 * (bench::now() - start) / frames;
}

void time(B& be, Index batch) {
  H host;
  Rng rng(1);
  Store<HostCodec::Params, H> host_codec(host);
  HostCodec::init(*host_codec, rng);
  Store<HostModel::Params, H> host_lm(host);
  HostModel::init(*host_lm, rng);
  Store<Codec::Params, B> codec(be);
  upload(be, host_codec, codec);
  Store<Codec::Codebooks, B> books(be);
  Codec::derive(be, *codec, *books);
  Store<Model::Params, B> lm(be);
  upload(be, host_lm, lm);
  const Talk::Models models{*codec, *books, *lm};
  Store<Talk::State, B> state(be, batch);
  Talk::reset(be, models, *state, Mask{});
  Store<Talk::Input, H> host_in(host, batch);
  Store<Talk::Output, H> host_out(host, batch);
  Store<Talk::Input, B> in(be, batch);
  Store<Talk::Output, B> out(be, batch);
  for (Index b = 0; b < batch; ++b) host_in->active(b) = 1;
  for (Index i = 0; i < host_in->pcm.size(); ++i)
    host_in->pcm.data()[i] = static_cast<float>(0.1 * rng.normal());
  upload(be, host_in, in);
  const GenOptions options{.check = false};

  const auto print = [&](const char* what, double ms, Index nodes) {
    std::printf("%3td conversations  %-22s %8.3f ms  %5td nodes\n", batch, what, ms, nodes);
  };
  const auto graph = [&](const char* what, auto&& work) {
    auto recorded = be.capture(work);
    print(what, frame_milliseconds(be, [&] { recorded.launch(); }), recorded.nodes());
  };
  const auto frame = [&] { Talk::step(be, models, *state, *in, *out, options); };
  print("call by call", frame_milliseconds(be, frame), 0);
  graph("graph", frame);
  auto recorded = be.capture(frame);
  print("graph and transfers",
        frame_milliseconds(be,
                           [&] {
                             upload(be, host_in, in);
                             recorded.launch();
                             download(be, out, host_out);
                           }),
        recorded.nodes());
  const Tensor<std::int32_t, dyn, dyn, dyn> heard(out->heard.data(), {batch, Gen::heard_streams, 1});
  graph("  encode", [&] { Codec::encode_step(be, *codec, *books, state->encoder, in->pcm, heard); });
  graph("  language model", [&] { Gen::step(be, *lm, state->lm, out->heard, out->said, options); });
  graph("  decode", [&] { Codec::decode_step(be, *codec, *books, state->decoder, heard, out->pcm); });
}
}  // namespace

int main() {
  B be;
  std::printf("%s\n", mttt::detail::device_name().c_str());
  for (const Index batch : {1, 16}) time(be, batch);
  return 0;
}
