// Adapters of a Moshi whose base stays: the CPU's numbers, and the same bits again. In float64, where
// mistakes stand out.
#include "moshi_pair.cuh"
#include "mttt/train/trainer.hpp"

namespace {
using namespace mttt;
struct Adapted {
  static constexpr MoshiConfig config = mttt::testing::moshi_small.with_lora(3, 1.5).with_recompute(true);
};
using Pair = mttt::testing::MoshiPair<double, Adapted>;

/// The losses of a few steps of training; only the adapters train.
template <class Model, class P, class B>
std::vector<double> train(B& be, Store<P, B>& params, Streams<const std::int32_t> codes) {
  const std::vector<GroupRule> rules{
      {.says = "the base", .matches = [](std::string_view) { return true; }, .frozen = true},
      {.says = "adapters", .matches = name_contains("lora_")}};
  Trainer<P, B> trainer(be, params, {.max_steps = 5, .lr = 1e-2, .max_norm = 0.5}, rules);
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

TEST_CASE(
    "CUDA: gradients of a Moshi with adapters agree with the CPU, of all tensors and of those that train") {
  Pair pair;
  moshi_loss<Pair::Model>(pair.cpu, *pair.params, pair.codes, {}, &*pair.grad);
  moshi_loss<Pair::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes, {}, &*pair.device_grad);
  download(pair.gpu, pair.device_grad, pair.fetched);
  int tensors = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& got, const auto& expected) {
        INFO(name);
        double scale = 1e-3;
        for (Index i = 0; i < expected.size(); ++i) scale = std::max(scale, std::abs(expected.data()[i]));
        CHECK(laws::largest_difference(got.data(), expected.data(), got.size()) <= pair.tolerance * scale);
        ++tensors;
      },
      *pair.fetched, *pair.grad);
  CHECK(tensors == 149);
}

TEST_CASE("CUDA: adapters are trained as on the CPU, to the same bits again, and the base stays") {
  Pair pair;
  Store<Pair::DeviceModel::Params, Pair::D> again(pair.gpu, pair.device_params);
  Store<Pair::Model::Params, Pair::H> start(pair.cpu, pair.params);
  const auto expected = train<Pair::Model>(pair.cpu, pair.params, pair.codes);
  const auto got = train<Pair::DeviceModel>(pair.gpu, pair.device_params, pair.device_codes);
  const auto second = train<Pair::DeviceModel>(pair.gpu, again, pair.device_codes);
  CHECK(got == second);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    INFO("number " << i);
    CHECK(got[i] == Approx(expected[i]).epsilon(1e3 * pair.tolerance));  // Adam divides by small moments
  }
  download(pair.gpu, pair.device_params, pair.fetched);
  for_each_tensor(
      [&](std::string_view name, const auto& before, const auto& after) {
        INFO(name);
        CHECK(laws::detail::same_bits(before.data(), after.data(), before.size()) != is_lora_name(name));
      },
      *start, *pair.fetched);
}
