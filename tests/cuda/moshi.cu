// Moshi's loss and its gradient, and training steps, on CPU and GPU.
#include "agreement.cuh"
#include "laws/moshi_small.hpp"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/trainer.hpp"

namespace {
using namespace mttt;
using laws::detail::send;
using mttt::testing::moshi_small;

template <class T>
struct Pair {
  using H = Cpu<T>;
  using D = Cuda<T>;
  using Model = Moshi<moshi_small, H>;
  using DeviceModel = Moshi<moshi_small, D>;
  static constexpr Index batch = 3, steps = 9;
  H cpu;
  D gpu;
  Rng rng{2};
  Store<typename Model::Params, H> params = laws::random_params<Model>(cpu, {.perturbation = 0.3}, rng);
  Store<typename Model::Params, H> grad{cpu}, fetched{cpu};
  Store<typename DeviceModel::Params, D> device_params{gpu}, device_grad{gpu};
  Streams<std::int32_t> codes = mttt::testing::random_codes(cpu, batch, steps, rng);
  Streams<std::int32_t> device_codes = send(gpu, codes);
  double tolerance = laws::detail::agreement_of<T>(*params, batch* steps);

  Pair() { upload(gpu, params, device_params); }

  void gradients_agree() {
    const LossConfig weights{.text_padding_weight = 0.3f, .first_codebook_weight_multiplier = 5};
    for (int pass = 0; pass < 2; ++pass) {  // the second one adds to the first one's gradient
      const auto expected = moshi_loss<Model>(cpu, *params, codes, weights, &*grad);
      const auto got = moshi_loss<DeviceModel>(gpu, *device_params, device_codes, weights, &*device_grad);
      CHECK(got.text_loss == Approx(expected.text_loss).epsilon(tolerance));
      CHECK(got.audio_loss == Approx(expected.audio_loss).epsilon(tolerance));
    }
    download(gpu, device_grad, fetched);
    laws::detail::Worst worst;
    laws::detail::compare(*fetched, *grad, worst, "gradient of");
    INFO(worst.name << ": " << worst.error << ", tolerance " << tolerance);
    CHECK(worst.error <= tolerance);
  }
};

/// The losses of a few steps of training.
template <class Model, class P, class B>
std::vector<double> train(B& be, Store<P, B>& params, Streams<const std::int32_t> codes) {
  Trainer<P, B> trainer(be, params, {.max_steps = 5, .lr = 1e-2, .max_norm = 0.5, .num_microbatches = 2});
  std::vector<double> losses;
  for (int i = 0; i < 5; ++i) {
    const StepReport report = trainer.step([&](std::int64_t, P& grad) {
      return MicroBatch{moshi_loss<Model>(be, *params, codes, {}, &grad).total(), codes.extent(2)};
    });
    losses.push_back(report.loss);
    losses.push_back(report.gradient_norm);
  }
  return losses;
}
}  // namespace

TEST_CASE("CUDA: gradient of Moshi's loss") {
  SECTION("float64") { Pair<double>().gradients_agree(); }
  SECTION("float32") { Pair<float>().gradients_agree(); }
}

TEST_CASE("CUDA: training agrees with the CPU, and gives the same bits again") {
  using P = Pair<double>;
  P pair;
  Store<P::DeviceModel::Params, P::D> again(pair.gpu, pair.device_params);
  const auto expected = train<P::Model>(pair.cpu, pair.params, pair.codes);
  const auto got = train<P::DeviceModel>(pair.gpu, pair.device_params, pair.device_codes);
  const auto second = train<P::DeviceModel>(pair.gpu, again, pair.device_codes);
  CHECK(got == second);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO("number " << i);
    CHECK(got[i] == Approx(expected[i]).epsilon(1e3 * pair.tolerance));  // Adam divides by small moments
  }
  CHECK(expected.front() != Approx(expected[8]).epsilon(0.01));
  download(pair.gpu, pair.device_params, pair.fetched);
  download(pair.gpu, again, pair.grad);
  CHECK(laws::detail::same_bits(pair.fetched.data(), pair.grad.data(), pair.grad.bytes()));
}

TEST_CASE("CUDA: a warm pass allocates nothing") {
  using P = Pair<float>;
  P pair;
  moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes, {}, &*pair.device_grad);
  const Index before = pair.gpu.arena_bytes();
  for (int i = 0; i < 3; ++i)
    moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes, {}, &*pair.device_grad);
  CHECK(pair.gpu.arena_bytes() == before);
}

TEST_CASE("CUDA: foreign codes are refused") {
  using P = Pair<float>;
  P pair;
  const std::int32_t foreign = moshi_small.card;
  pair.gpu.to_device(&foreign, &pair.device_codes(1, 2, 3), 1);
  CHECK_THROWS_WITH(moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes),
                    mttt::test::contains("code 6 in session 1, stream 2, frame 3"));
}
