// Training in mixed precision: bf16 for the model, float32 for gradient, moments and weights.
#include "train_small.cuh"

namespace {
using namespace mttt;
using testing::Training;
}  // namespace

TEST_CASE("CUDA: mixed precision learns, follows float32 and gives the same bits again") {
  const TrainOptions options{.max_steps = 40, .lr = 2e-3};
  Training<Cuda<bf16>> mixed(options), again(options);
  Training<Cuda<float>> exact(options);
  const auto got = mixed.losses(40), second = again.losses(40), expected = exact.losses(40);
  CHECK(got == second);
  CHECK(mixed.weights() == again.weights());
  // A rounding of 1 in 256 at each of some 30 operations of the model. They are roundings of logits: a loss
  // that comes near zero does not take them with it.
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::abs(got[i] - expected[i]) / std::max(expected[i], 0.1 * expected[0]));
  INFO("losses: first " << got.front() << ", last " << got.back() << ", float32 " << expected.back()
                        << ", largest relative difference " << worst);
  CHECK(worst < 0.05);
  CHECK(std::abs(got[0] - expected[0]) < 0.01 * expected[0]);
  CHECK(got.back() < 0.7 * got.front());
}

TEST_CASE("CUDA: the model reads the rounded weights") {
  Training<Cuda<bf16>> mixed({.max_steps = 10, .lr = 1e-3});
  mixed.losses(3);
  Cpu<float> cpu;
  Cpu<bf16> half;
  Store<Training<Cpu<float>>::P, Cpu<float>> weights(cpu);
  Store<Training<Cpu<bf16>>::P, Cpu<bf16>> seen(half);
  download(mixed.be, mixed.trainer.weights(), weights);
  download(mixed.be, mixed.params, seen);
  Index wrong = 0;
  for_each_tensor(
      [&](std::string_view, const auto& w, const auto& p) {
        for (Index i = 0; i < w.size(); ++i) wrong += bf16(w.data()[i]).bits != p.data()[i].bits;
      },
      *weights, *seen);
  CHECK(wrong == 0);
}
