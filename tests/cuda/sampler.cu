// Sampling: the GPU draws the codes that the CPU draws, with many ties at the edge of the top k as well.
#include "mttt/lm/sampler.hpp"

#include "agreement.cuh"

namespace {
using namespace mttt;
using laws::detail::fetch;
using laws::detail::send;

template <class T, Index card>
void draw(const SampleOptions& options, double steps_of_a_logit) {
  constexpr Index rows = 7;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(3);
  const auto logits = cpu.template make<T, dyn, card>(rows);
  const auto seeds = cpu.template make<std::int64_t, dyn>(rows),
             frames = cpu.template make<std::int64_t, dyn>(rows);
  const auto codes = cpu.template make<std::int32_t, dyn>(rows);
  const auto device_codes = gpu.template make<std::int32_t, dyn>(rows);
  const auto device_seeds = send(gpu, seeds);
  for (int trial = 0; trial < 20; ++trial) {
    for (Index i = 0; i < logits.size(); ++i)
      logits.data()[i] = static_cast<T>(std::round(2 * rng.normal() * steps_of_a_logit) / steps_of_a_logit);
    for (Index r = 0; r < rows; ++r) seeds(r) = 5 + r, frames(r) = trial;
    const auto device_logits = send(gpu, logits);
    const auto device_frames = send(gpu, frames);
    gpu.to_device(seeds.data(), device_seeds.data(), rows);
    sample(cpu, logits, options, seeds.data(), frames.data(), 2, codes.data());
    sample(gpu, device_logits, options, device_seeds.data(), device_frames.data(), 2, device_codes.data());
    CHECK(laws::detail::same_bits(fetch(cpu, gpu, device_codes).data(), codes.data(), rows));
  }
}

template <class T>
void draw_all() {
  for (const double steps : {1e6, 2.0}) {  // hardly any ties; hundreds
    draw<T, 2048>({.temperature = 0.8, .top_k = 250}, steps);
    draw<T, 2048>({.temperature = 0.8, .top_k = 1}, steps);
    draw<T, 2048>({.temperature = 0.8, .top_k = 0}, steps);
    draw<T, 2048>({.greedy = true}, steps);
    draw<T, 32000>({.temperature = 0.7, .top_k = 25}, steps);
    draw<T, 33>({.temperature = 1, .top_k = 32}, steps);
  }
}
}  // namespace

TEST_CASE("CUDA: sampling in float32") { draw_all<float>(); }
TEST_CASE("CUDA: sampling in bfloat16") { draw_all<bf16>(); }
