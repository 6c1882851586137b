// Streams of TTT layers whose step the GPU takes in one launch, against the CPU's.
#include "catch.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_backends.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;

/// The whole layer's stream against the CPU's.
template <TttConfig C, class T>
void stream_agrees() {
  using Host = Ttt<C, Cpu<T>>;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng{3};
  const laws::Options options{.batch = 3, .steps = 8};
  const auto params = laws::random_params<Host>(cpu, options, rng);
  Store<typename Ttt<C, Cuda<T>>::Params, Cuda<T>> device_params(gpu);
  upload(gpu, params, device_params);
  laws::detail::Worst worst;
  laws::detail::steps_agree<Host, Ttt<C, Cuda<T>>>(cpu, gpu, params, device_params, options, rng, worst);
  INFO(worst.name << ": " << worst.error);
  CHECK(worst.error <= laws::detail::agreement_of<T>(*params, 24));
}
}  // namespace

TEST_CASE("CUDA: a TTT layer's stream") {
  stream_agrees<TttConfig{.dim = 128, .num_heads = 2, .mini_batch_size = 4}, float>();
  stream_agrees<TttConfig{.dim = 256, .num_heads = 2, .mini_batch_size = 4}, bf16>();
  stream_agrees<TttConfig{.dim = 128, .num_heads = 2, .mini_batch_size = 5, .layers = 2}, float>();
}
