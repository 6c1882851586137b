// A Moshi like presets/tiny.hpp, in the smallest sizes that the fused kernels take, and its training on any
// backend.
#pragma once

#include <vector>

#include "agreement.cuh"
#include "mttt/lm/moshi.hpp"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/trainer.hpp"

namespace mttt::testing {

inline constexpr MoshiConfig train_small{
    .n_q = 4,
    .dep_q = 2,
    .card = 24,
    .text_card = 40,
    .delays = {0, 0, 1, 0, 1},
    .temporal = {.dim = 128,
                 .num_heads = 2,
                 .num_layers = 2,
                 .hidden = gating_hidden(128, 128 * 33 / 8),
                 .context = 10,
                 .ttt_layers = LayerSet::range(1, 1),
                 .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 16}},
    .depformer = {.dim = 64, .num_heads = 1, .num_layers = 1, .hidden = gating_hidden(64, 64 * 33 / 8)}};

inline constexpr Index train_batch = 4, train_steps = 20;

/// Codes that can be learned: each stream counts on, from a start and in a stride of its session.
inline std::vector<std::int32_t> train_codes() {
  std::vector<std::int32_t> codes;
  for (Index b = 0; b < train_batch; ++b) {
    for (Index k = 0; k < train_small.streams(); ++k) {
      const Index card = k == 0 ? train_small.text_card : train_small.card;
      for (Index t = 0; t < train_steps; ++t)
        codes.push_back(static_cast<std::int32_t>((3 * b + k + (1 + b % 2) * t) % card));
    }
  }
  return codes;
}

/// A training on backend B, from one start. M: Params in the type to compute in.
template <class B>
struct Training {
  using Model = Moshi<train_small, B>;
  using P = typename Model::Params;
  using Start = Moshi<train_small, Cpu<typename B::Scalar>>;
  template <class U>
  using ParamsOf = typename Moshi<train_small, decltype(std::declval<B>().template as<U>())>::Params;
  using M = ParamsOf<typename B::Accum>;

  B be;
  Store<P, B> params{be};
  std::vector<std::int32_t> codes = train_codes();
  Streams<std::int32_t> here =
      be.template make<std::int32_t, dyn, dyn, dyn>(train_batch, train_small.streams(), train_steps);
  TrainOptions options;
  Trainer<P, B, M> trainer;

  explicit Training(const TrainOptions& o) : options(o), trainer(be, started(), o) {
    be.to_device(codes.data(), here.data(), here.size());
  }

  Store<P, B>& started() {
    Cpu<typename B::Scalar> cpu;
    Store<typename Start::Params, Cpu<typename B::Scalar>> start(cpu);
    Rng rng(3);
    Start::init(*start, rng);
    upload(be, start, params);
    return params;
  }
  StepReport step() {
    return trainer.step([&](std::int64_t, M& grad) {
      return MicroBatch{moshi_loss<Model>(be, *params, here, {}, &grad).total(), train_batch * train_steps};
    });
  }
  std::vector<double> losses(int steps) {
    std::vector<double> all;
    for (int i = 0; i < steps; ++i) all.push_back(step().loss);
    return all;
  }
  std::vector<std::byte> weights() {
    std::vector<std::byte> all(static_cast<std::size_t>(trainer.weights().bytes()));
    be.to_host(trainer.weights().data(), all.data(), trainer.weights().bytes());
    return all;
  }
};

}  // namespace mttt::testing
