// Conversations: the GPU says what the CPU says, greedily and drawn, with masks and resets.
#include "mttt/lm/lm_gen.hpp"

#include <set>

#include "agreement.cuh"
#include "laws/moshi_small.hpp"

namespace {
using namespace mttt;
using laws::detail::fetch;
using laws::detail::send;
using mttt::testing::moshi_small;
using H = Cpu<float>;
using D = Cuda<float>;
using Model = Moshi<moshi_small, H>;
using Gen = LMGen<moshi_small, H>;
using DeviceModel = Moshi<moshi_small, D>;
using DeviceGen = LMGen<moshi_small, D>;

void converse(const GenOptions& options) {
  constexpr Index batch = 3, frames = 40;
  H cpu;
  D gpu;
  Rng rng(11);
  const auto params = laws::random_params<Model>(cpu, {.perturbation = 0.3}, rng);
  Store<DeviceModel::Params, D> device_params(gpu);
  upload(gpu, params, device_params);
  Store<Gen::State, H> state(cpu, batch), fetched(cpu, batch);
  Store<DeviceGen::State, D> device_state(gpu, batch);
  const auto heard = cpu.make<std::int32_t, dyn, Gen::heard_streams>(batch);
  const auto said = cpu.make<std::int32_t, dyn, Gen::spoken>(batch);
  const auto mask = cpu.make<std::uint8_t, dyn>(batch);
  const auto seeds = cpu.make<std::int64_t, dyn>(batch);
  for (Index b = 0; b < batch; ++b) seeds(b) = 5 + b;
  Gen::reset(cpu, *params, *state, Mask{}, seeds);
  DeviceGen::reset(gpu, *device_params, *device_state, Mask{}, send(gpu, seeds));

  std::set<std::int32_t> spoken;
  const auto device_said = gpu.make<std::int32_t, dyn, Gen::spoken>(batch);
  Index arena = 0;
  for (Index t = 0; t < frames; ++t) {
    const auto scope = cpu.scope();
    const auto device_scope = gpu.scope();
    for (Index i = 0; i < heard.size(); ++i)
      heard.data()[i] = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(moshi_small.card)));
    for (Index b = 0; b < batch; ++b) mask(b) = rng.uniform() < 0.8;
    const auto gmask = send(gpu, mask);
    if (t == frames / 2) {
      Gen::reset(cpu, *params, *state, mask);
      DeviceGen::reset(gpu, *device_params, *device_state, gmask);
    }
    Gen::step(cpu, *params, *state, heard, said, options, mask);
    DeviceGen::step(gpu, *device_params, *device_state, send(gpu, heard), device_said, options, gmask);
    const auto got = fetch(cpu, gpu, device_said);
    INFO("frame " << t);
    CHECK(laws::detail::same_bits(got.data(), said.data(), said.size()));
    spoken.insert(said.data(), said.data() + said.size());
    if (t == 2) arena = gpu.arena_bytes();
  }
  CHECK(spoken.size() > 3);
  CHECK(gpu.arena_bytes() == arena);
  download(gpu, device_state, fetched);
  laws::detail::Worst worst;
  laws::detail::compare(*fetched, *state, worst, "State");
  const double tolerance = laws::detail::agreement_of<float>(*params, batch * frames);
  INFO(worst.name << ": " << worst.error << ", tolerance " << tolerance);
  CHECK(worst.error <= tolerance);
}
}  // namespace

TEST_CASE("CUDA: greedy conversations") { converse({.text = {.greedy = true}, .audio = {.greedy = true}}); }
TEST_CASE("CUDA: drawn conversations") {
  converse({.text = {.temperature = 0.9, .top_k = 6}, .audio = {.temperature = 1.1, .top_k = 0}});
}
