// Training steps of a Moshi: the CPU's numbers, and the same bits again. In float64, where mistakes stand out.
#include "moshi_pair.cuh"
#include "mttt/train/trainer.hpp"

namespace {
using namespace mttt;
using Pair = mttt::testing::MoshiPair<double>;

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

TEST_CASE("CUDA: training agrees with the CPU, and gives the same bits again") {
  Pair pair;
  Store<Pair::DeviceModel::Params, Pair::D> again(pair.gpu, pair.device_params);
  const auto expected = train<Pair::Model>(pair.cpu, pair.params, pair.codes);
  const auto got = train<Pair::DeviceModel>(pair.gpu, pair.device_params, pair.device_codes);
  const auto second = train<Pair::DeviceModel>(pair.gpu, again, pair.device_codes);
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
