// Whole conversations on the GPU: what the CPU says, and one graph that replays to the bit.
#include "agreement.cuh"
#include "laws/duplex_small.hpp"

#include <set>

namespace {
using namespace mttt;
using namespace mttt::testing;
using laws::detail::same_bits;
using H = Cpu<float>;
using D = Cuda<float>;
using HostTalk = SmallTalk<H>;
using Talk = SmallTalk<D>;

struct Fixture {
  static constexpr Index batch = 3, frames = 48;
  static constexpr GenOptions options{.text = {.temperature = 0.9, .top_k = 6},
                                      .audio = {.temperature = 1.1, .top_k = 0}};
  D gpu;
  Rng rng{5};
  Learned learned{rng};
  H& cpu = learned.be;
  Store<Mimi<mimi_small, D>::Params, D> codec{gpu};
  Store<Mimi<mimi_small, D>::Codebooks, D> books{gpu};
  Store<Moshi<duplex_small, D>::Params, D> lm{gpu};
  Talk::Models models{*codec, *books, *lm};
  Store<Talk::State, D> state{gpu, batch};
  Store<Talk::Input, D> in{gpu, batch};
  Store<Talk::Output, D> out{gpu, batch};
  Store<HostTalk::Input, H> host_in{cpu, batch};
  Store<HostTalk::Output, H> fetched{cpu, batch};

  Fixture() {
    upload(gpu, learned.codec, codec);
    upload(gpu, learned.lm, lm);
    Mimi<mimi_small, D>::derive(gpu, *codec, *books);
    Talk::reset(gpu, models, *state, Mask{});
  }
  CudaGraph record(Store<Talk::State, D>& s) {
    return gpu.capture([&] { Talk::step(gpu, models, *s, *in, *out, options); });
  }
};
}  // namespace

TEST_CASE_METHOD(Fixture, "CUDA: conversations from sound to sound are those of the CPU") {
  Store<HostTalk::State, H> expected(cpu, batch), got(cpu, batch);
  Store<HostTalk::Output, H> reply(cpu, batch);
  HostTalk::reset(cpu, learned.models(), *expected, Mask{});
  const double tolerance =
      laws::detail::agreement_of<float>(*learned.codec, batch * frames * Talk::frame_size) +
      laws::detail::agreement_of<float>(*learned.lm, batch * frames);
  std::set<std::int32_t> said;
  for (Index t = 0; t < frames; ++t) {
    anything(*host_in, rng);
    HostTalk::step(cpu, learned.models(), *expected, *host_in, *reply, options);
    upload(gpu, host_in, in);
    Talk::step(gpu, models, *state, *in, *out, options);
    download(gpu, out, fetched);
    INFO("frame " << t);
    REQUIRE(same_bits(fetched->heard.data(), reply->heard.data(), reply->heard.size()));
    REQUIRE(same_bits(fetched->said.data(), reply->said.data(), reply->said.size()));
    CHECK(laws::largest_difference(fetched->pcm.data(), reply->pcm.data(), reply->pcm.size()) <= tolerance);
    said.insert(reply->said.data(), reply->said.data() + reply->said.size());
  }
  CHECK(said.size() > 6);
  download(gpu, state, got);
  laws::detail::Worst worst;
  laws::detail::compare(*got, *expected, worst, "State");
  INFO(worst.name << ": " << worst.error << ", tolerance " << tolerance);
  CHECK(worst.error <= tolerance);
}

TEST_CASE_METHOD(Fixture, "CUDA: a graph replays a frame to the bit, sessions come and go") {
  Store<Talk::State, D> recorded(gpu, batch);
  Store<HostTalk::State, H> a(cpu, batch), b(cpu, batch);
  Store<HostTalk::Output, H> eager(cpu, batch);
  Talk::reset(gpu, models, *recorded, Mask{});
  auto graph = record(recorded);  // before anything ran: recording runs nothing, and may grow the arena
  for (Index t = 0; t < frames; ++t) {
    anything(*host_in, rng);
    upload(gpu, host_in, in);
    Talk::step(gpu, models, *state, *in, *out, options);
    download(gpu, out, eager);
    gpu.fill(out.data(), out.bytes(), std::byte{0x7f});
    graph.launch();
    download(gpu, out, fetched);
    INFO("frame " << t);
    for_each_tensor(
        [&](std::string_view name, const auto& x, const auto& y) {
          INFO(name);
          CHECK(same_bits(x.data(), y.data(), x.size()));
        },
        *fetched, *eager);
    download(gpu, state, a);
    download(gpu, recorded, b);
    REQUIRE(same_bits(a.data(), b.data(), a.bytes()));
  }
}

TEST_CASE_METHOD(Fixture, "CUDA: one graph serves thousands of frames in the same memory") {
  constexpr Index many = 4000;
  auto graph = record(state);
  const Index arena = gpu.arena_bytes(), held = CudaMemory::held();
  Index resets = 0;
  std::set<std::int32_t> said;
  for (Index t = 0; t < many; ++t) {
    anything(*host_in, rng);
    host_in->active(1) = 1, host_in->reset(1) = 0;  // one that never ends
    resets += host_in->reset(0);
    upload(gpu, host_in, in);
    graph.launch();
    download(gpu, out, fetched);
    said.insert(fetched->said.data(), fetched->said.data() + fetched->said.size());
  }
  CHECK(gpu.arena_bytes() == arena);
  CHECK(CudaMemory::held() == held);
  CHECK(resets > many / 20);
  CHECK(said.size() > 6);
  Store<HostTalk::State, H> got(cpu, batch);
  download(gpu, state, got);
  CHECK(got->lm.offset(1) == many);
  CHECK(got->lm.offset(0) < 200);
  for (Index i = 0; i < fetched->pcm.size(); ++i) CHECK(std::isfinite(fetched->pcm.data()[i]));
}
