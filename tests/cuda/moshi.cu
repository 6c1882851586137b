// Moshi's loss and its gradient on CPU and GPU.
#include "moshi_pair.cuh"

namespace {
using namespace mttt;
using P = mttt::testing::MoshiPair<float>;
}  // namespace

TEST_CASE("CUDA: gradient of Moshi's loss") {
  P pair;
  const LossConfig weights{.text_padding_weight = 0.3f, .first_codebook_weight_multiplier = 5};
  for (int pass = 0; pass < 2; ++pass) {  // the second one adds to the first one's gradient
    const auto expected = moshi_loss<P::Model>(pair.cpu, *pair.params, pair.codes, weights, &*pair.grad);
    const auto got = moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes, weights,
                                                &*pair.device_grad);
    CHECK(got.text_loss == Approx(expected.text_loss).epsilon(pair.tolerance));
    CHECK(got.audio_loss == Approx(expected.audio_loss).epsilon(pair.tolerance));
  }
  download(pair.gpu, pair.device_grad, pair.fetched);
  laws::detail::Worst worst;
  laws::detail::compare(*pair.fetched, *pair.grad, worst, "gradient of");
  INFO(worst.name << ": " << worst.error << ", tolerance " << pair.tolerance);
  CHECK(worst.error <= pair.tolerance);
}

TEST_CASE("CUDA: a warm pass allocates nothing") {
  P pair;
  moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes, {}, &*pair.device_grad);
  const Index before = pair.gpu.arena_bytes();
  for (int i = 0; i < 3; ++i)
    moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes, {}, &*pair.device_grad);
  CHECK(pair.gpu.arena_bytes() == before);
}

TEST_CASE("CUDA: foreign codes are refused") {
  P pair;
  const std::int32_t foreign = mttt::testing::moshi_small.card;
  pair.gpu.to_device(&foreign, &pair.device_codes(1, 2, 3), 1);
  CHECK_THROWS_WITH(moshi_loss<P::DeviceModel>(pair.gpu, *pair.device_params, pair.device_codes),
                    mttt::test::contains("code 6 in session 1, stream 2, frame 3"));
}
