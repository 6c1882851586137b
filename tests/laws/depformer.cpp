// A depformer's step sees its own frame's earlier steps and nothing else; frame by frame equals all frames at
// once.
#include "mttt/lm/depformer.hpp"

#include "laws.hpp"

namespace {
using namespace mttt;

constexpr DepformerConfig config{.dim = 12,
                                 .num_heads = 3,
                                 .num_layers = 2,
                                 .hidden = 7,
                                 .steps = 4,
                                 .in_dim = 5,
                                 .card = 6,
                                 .text_card = 9};
constexpr DepformerConfig adapted = [] {
  auto config_with_lora = config;
  config_with_lora.lora = {.rank = 2, .scaling = 1.5, .frozen = false};
  return config_with_lora;
}();
template <class B>
using Layer = DepformerLayer<config, B>;
template <class B>
using Projections = PerStep<Linear<LinearConfig{.in = 6, .out = 5}, B>, 4, B>;

/// Codes (B, streams, T) below 6, and here and there none.
template <class B>
Streams<std::int32_t> random_codes(B& be, Index batch, Index streams, Index steps, Rng& rng) {
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(batch, streams, steps);
  for (Index i = 0; i < codes.size(); ++i) codes.data()[i] = static_cast<std::int32_t>(rng.below(7)) - 1;
  return codes;
}
}  // namespace

// Their batch is the number of steps of a frame, their time the rows.
TEST_CASE("Depformer layer: gradient") {
  Cpu<double> be;
  mttt::testing::demand(laws::gradient<Layer<Cpu<double>>>(be, {.batch = 4, .steps = 5}));
}
TEST_CASE("Depformer layer with adapters: gradient") {
  Cpu<double> be;
  mttt::testing::demand(laws::gradient<DepformerLayer<adapted, Cpu<double>>>(be, {.batch = 4, .steps = 5}));
}
TEST_CASE("Per-step linear: gradient") {
  Cpu<double> be;
  mttt::testing::demand(laws::gradient<Projections<Cpu<double>>>(be, {.batch = 4, .steps = 5}));
}

TEMPLATE_TEST_CASE("Depformer: one frame, step by step, equals all frames at once", "",
                   (Depformer<config, Cpu<float>>), (Depformer<adapted, Cpu<float>>)) {
  using B = Cpu<float>;
  B be;
  using Block = TestType;
  constexpr Index batch = 2, steps = 3, K = config.steps, streams = K + 2;
  Rng rng(4);
  const auto params = laws::random_params<Block>(be, {}, rng);
  const auto z = be.make<float, dyn, dyn, config.in_dim>(batch, steps);
  laws::fill_normal(z, 1, rng);
  const auto codes = random_codes(be, batch, streams, steps, rng);
  const auto y = be.make<float, dyn, dyn, config.dim>(K, batch * steps);
  typename Block::Saved saved;
  Block::forward(be, *params, z, codes, y, saved);

  std::size_t allocated = 0;
  for (Index t = 0; t < steps; ++t) {
    if (t == 1) allocated = allocation_count();
    const auto scope = be.scope();
    const auto zt = be.make<float, dyn, dyn, config.in_dim>(batch, 1);
    const auto said = be.make<float, dyn, dyn, config.dim>(1, batch);
    const auto before = be.make<std::int32_t, dyn>(batch);
    laws::fill_normal(said, 1, rng);
    for (Index b = 0; b < batch; ++b) std::copy_n(&z(b, t, 0), config.in_dim, &zt(b, 0, 0));
    auto frame = Block::begin_frame(be, batch);
    for (Index k = 0; k < K; ++k) {
      for (Index b = 0; b < batch; ++b) before(b) = codes(b, k, t);
      Block::step(be, *params, frame, k, zt, before, said);
      for (Index b = 0; b < batch; ++b) {
        const auto difference = laws::largest_difference(&said(0, b, 0), &y(k, b * steps + t, 0), config.dim);
        if (!(difference < mttt::testing::float_tolerance)) {
          FAIL_CHECK("frame " << t << ", step " << k << ", session " << b << ": " << difference);
        }
      }
    }
  }
  CHECK(allocation_count() == allocated);
}

TEST_CASE("Depformer: a code changes later steps of its frame, and nothing else, not by a bit") {
  using B = Cpu<float>;
  B be;
  using Block = Depformer<config, B>;
  constexpr Index batch = 2, steps = 3, K = config.steps;
  Rng rng(5);
  const auto params = laws::random_params<Block>(be, {}, rng);
  const auto z = be.make<float, dyn, dyn, config.in_dim>(batch, steps);
  laws::fill_normal(z, 1, rng);
  const auto codes = random_codes(be, batch, K + 1, steps, rng);
  const auto run = [&] {
    const auto y = be.make<float, dyn, dyn, config.dim>(K, batch * steps);
    Block::Saved saved;
    Block::forward(be, *params, z, codes, y, saved);
    return y;
  };
  const auto before = run();
  for (Index stream = 0; stream <= K; ++stream) {
    const auto scope = be.scope();
    auto& code = codes(1, stream, 1);
    const auto kept = std::exchange(code, code == 2 ? 3 : 2);
    const auto after = run();
    code = kept;
    for (Index k = 0; k < K; ++k) {
      for (Index row = 0; row < batch * steps; ++row) {
        const bool same = laws::detail::same_bits(&before(k, row, 0), &after(k, row, 0), config.dim);
        INFO("stream " << stream << ", step " << k << ", row " << row);
        CHECK(same == !(row == steps + 1 && k >= stream));
      }
    }
  }
}
