// What reads codes: embeddings, cross-entropy, the quantiser.
#include "agreement.cuh"
#include "mttt/codec/rvq.hpp"
#include "mttt/nn/embedding.hpp"
#include "mttt/train/loss.hpp"

namespace {
using namespace mttt;
using laws::detail::fetch;
using laws::detail::send;

Tensor<std::int32_t, dyn> random_codes(auto& be, Index n, Index card, Rng& rng) {
  const auto codes = be.template make<std::int32_t, dyn>(n);
  for (Index i = 0; i < n; ++i)  // here and there none, or one outside the table
    codes(i) = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(card + 2))) - 1;
  return codes;
}
}  // namespace

TEMPLATE_TEST_CASE("CUDA: embedding", "", float, double) {
  using T = TestType;
  constexpr EmbeddingConfig config{.card = 9, .dim = 70};
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(1);
  using Block = Embedding<config, Cpu<T>>;
  using DeviceBlock = Embedding<config, Cuda<T>>;
  const auto params = laws::random_params<Block>(cpu, {}, rng);
  Store<typename DeviceBlock::Params, Cuda<T>> device_params(gpu);
  upload(gpu, params, device_params);
  constexpr Index rows = 50;
  const auto codes = random_codes(cpu, rows, config.card, rng), device_codes = send(gpu, codes);
  const auto y = cpu.template make<T, dyn, config.dim>(rows);
  laws::fill_normal(y, 1, rng);
  const auto device_y = send(gpu, y);
  for (const Write write : {Write::overwrite, Write::add}) {
    Block::forward(cpu, *params, CodeRows<std::int32_t>(codes), y.data(), write);
    DeviceBlock::forward(gpu, *device_params, CodeRows<std::int32_t>(device_codes), device_y.data(), write);
  }
  CHECK(laws::detail::same_bits(fetch(cpu, gpu, device_y).data(), y.data(), y.size()));

  Store<typename Block::Params, Cpu<T>> grad(cpu), fetched(cpu);
  Store<typename DeviceBlock::Params, Cuda<T>> device_grad(gpu);
  Block::backward(cpu, CodeRows<std::int32_t>(codes), y.data(), *grad);
  DeviceBlock::backward(gpu, CodeRows<std::int32_t>(device_codes), device_y.data(), *device_grad);
  download(gpu, device_grad, fetched);
  CHECK(laws::detail::same_bits(fetched.data(), grad.data(), grad.bytes()));  // rows are added in order
}

TEMPLATE_TEST_CASE("CUDA: cross-entropy", "", float, double) {
  using T = TestType;
  constexpr Index rows = 37, card = 300;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(1);
  const auto logits = cpu.template make<T, dyn, dyn>(rows, card);
  laws::fill_normal(logits, 3, rng);
  const auto targets = cpu.template make<std::int32_t, dyn>(rows);
  const auto weights = cpu.template make<float, dyn>(rows);
  for (Index r = 0; r < rows; ++r) {
    targets(r) = static_cast<std::int32_t>(rng.below(card));
    weights(r) = r % 5 == 0 ? 0.0f : static_cast<float>(rng.uniform());
  }
  const auto device_logits = send(gpu, logits);
  const auto device_targets = send(gpu, targets);
  const auto device_weights = send(gpu, weights);
  const auto expected = cross_entropy(cpu, logits, targets, weights, logits, 0.5);  // in their own place
  const auto got = cross_entropy(gpu, device_logits, device_targets, device_weights, device_logits, 0.5);
  const double tolerance = laws::agreement<T>(card, 1);
  CHECK(got.loss == Approx(expected.loss).epsilon(tolerance));
  CHECK(got.weight == Approx(expected.weight).epsilon(1e-12));
  CHECK(laws::largest_difference(fetch(cpu, gpu, device_logits).data(), logits.data(), logits.size()) <=
        tolerance);
  const std::int32_t foreign = card;
  gpu.to_device(&foreign, &device_targets(1), 1);
  CHECK_THROWS_WITH(cross_entropy(gpu, device_logits, device_targets, device_weights),
                    mttt::test::contains("1 bad rows"));
}

TEMPLATE_TEST_CASE("CUDA: quantiser", "", float, double) {
  using T = TestType;
  constexpr RvqConfig config{.dim = 24, .codebook_dim = 16, .card = 70, .n_q = 4};
  using Block = SplitRvq<config, Cpu<T>>;
  using DeviceBlock = SplitRvq<config, Cuda<T>>;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(1);
  Store<typename Block::Params, Cpu<T>> params(cpu), grad(cpu), fetched(cpu);
  Block::init(*params, rng);
  Store<typename DeviceBlock::Params, Cuda<T>> device_params(gpu), device_grad(gpu);
  upload(gpu, params, device_params);
  Store<typename Block::Codebooks, Cpu<T>> books(cpu);
  Store<typename DeviceBlock::Codebooks, Cuda<T>> device_books(gpu);
  Block::derive(cpu, *params, *books);
  DeviceBlock::derive(gpu, *device_params, *device_books);
  const Index steps = GENERATE(300, 7);  // more rows than scores at once; rows for one kernel a level
  const auto x = cpu.template make<T, dyn, dyn, config.dim>(2, steps);
  const auto y = cpu.template make<T, dyn, dyn, config.dim>(2, steps);
  laws::fill_normal(x, 1, rng);
  const auto codes = cpu.template make<std::int32_t, dyn, dyn, dyn>(2, config.n_q, steps);
  const auto device_x = send(gpu, x), device_y = send(gpu, y);
  const auto device_codes = send(gpu, codes);
  typename Block::Saved saved;
  typename DeviceBlock::Saved device_saved;
  Block::forward(cpu, *params, *books, x, codes, y, saved);
  DeviceBlock::forward(gpu, *device_params, *device_books, device_x, device_codes, device_y, device_saved);
  CHECK(laws::detail::same_bits(fetch(cpu, gpu, device_codes).data(), codes.data(), codes.size()));
  const double tolerance = laws::detail::agreement_of<T>(*params, 2 * steps);
  CHECK(laws::largest_difference(fetch(cpu, gpu, device_y).data(), y.data(), y.size()) <= tolerance);
  Block::backward(cpu, *params, saved, y, x, *grad);  // any gradient will do
  DeviceBlock::backward(gpu, *device_params, device_saved, device_y, device_x, *device_grad);
  CHECK(laws::largest_difference(fetch(cpu, gpu, device_x).data(), x.data(), x.size()) <= tolerance);
  download(gpu, device_grad, fetched);
  laws::detail::Worst worst;
  laws::detail::compare(*fetched, *grad, worst, "gradient of");
  INFO(worst.name << ": " << worst.error);
  CHECK(worst.error <= tolerance);
}
