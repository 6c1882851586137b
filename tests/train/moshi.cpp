// Moshi in training: recomputed layers, micro-batches, mixed precision, when errors are reported.
#include <cstring>
#include <vector>

#include "laws/moshi_small.hpp"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/trainer.hpp"
#include "mttt/train/work.hpp"

namespace {
using namespace mttt;
using mttt::test::contains;
using mttt::testing::moshi_small;

/// More of the layers whose activations recomputing saves.
constexpr MoshiConfig deep = [] {
  MoshiConfig config = moshi_small;
  config.temporal.dim = 32;
  config.temporal.hidden = 64;
  config.temporal.num_layers = 6;
  config.temporal.ttt_layers = LayerSet::range(1, 4);
  return config;
}();
constexpr MoshiConfig deep_recomputed = [] {
  MoshiConfig config = deep;
  config.temporal.recompute = true;
  return config;
}();

/// Codes that all count alike: none missing, no padding.
template <class B>
Streams<std::int32_t> full_codes(B& be, Index batch, Index steps) {
  Rng rng(6);
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(batch, moshi_small.streams(), steps);
  for (Index i = 0; i < codes.size(); ++i)
    codes.data()[i] = static_cast<std::int32_t>(
        i / steps % moshi_small.streams() == 0 ? 4 + rng.below(5) : rng.below(moshi_small.card));
  return codes;
}

/// Parameters in T that start at the same float32 numbers.
template <MoshiConfig C, class T>
struct Setup {
  using B = Cpu<T>;
  using Model = Moshi<C, B>;
  using P = typename Model::Params;
  using M = typename Moshi<C, Cpu<Wide<T>>>::Params;
  B be;
  Store<P, B> params{be};
  Store<M, B> grad{be};
  Setup() {
    Rng rng(2);
    auto start = laws::random_params<Moshi<C, Cpu<float>>>(cpu, {.perturbation = 0.3}, rng);
    for_each_tensor(
        [](std::string_view, const auto& from, auto& to) {
          for (Index i = 0; i < from.size(); ++i) to.data()[i] = static_cast<T>(from.data()[i]);
        },
        *start, *params);
  }
  Cpu<float> cpu;
};

template <class S>
bool same(const S& a, const S& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}
}  // namespace

TEMPLATE_TEST_CASE("Recomputed layers: the gradients of kept ones to the bit, in less memory", "", float,
                   bf16) {
  Setup<deep, TestType> kept;
  Setup<deep_recomputed, TestType> made_again;
  const auto codes = full_codes(kept.cpu, 4, 200);
  const auto a = moshi_loss<Moshi<deep, Cpu<TestType>>>(kept.be, *kept.params, codes, {}, &*kept.grad);
  const auto b = moshi_loss<Moshi<deep_recomputed, Cpu<TestType>>>(made_again.be, *made_again.params, codes,
                                                                   {}, &*made_again.grad);
  CHECK(a.text_loss == b.text_loss);
  CHECK(a.audio_loss == b.audio_loss);
  CHECK(kept.grad.bytes() == made_again.grad.bytes());
  CHECK(std::memcmp(kept.grad.data(), made_again.grad.data(), static_cast<std::size_t>(kept.grad.bytes())) ==
        0);
  INFO(kept.be.arena_bytes() << " bytes kept, " << made_again.be.arena_bytes() << " made again");
  CHECK(2 * made_again.be.arena_bytes() < kept.be.arena_bytes());
}

TEMPLATE_TEST_CASE("Four micro-batches equal a batch of four", "", float, bf16) {
  using S = Setup<moshi_small, TestType>;
  S whole, parts;
  const Index batch = 4, steps = 9;
  const auto codes = full_codes(whole.cpu, batch, steps);
  const auto train = [&](S& setup, int micro_batches) {
    Trainer<typename S::P, typename S::B, typename S::M> trainer(
        setup.be, setup.params, {.max_steps = 3, .lr = 1e-3, .num_microbatches = micro_batches});
    const Index rows = batch / micro_batches;
    std::vector<double> numbers;
    for (int i = 0; i < 3; ++i) {
      const auto report = trainer.step([&](std::int64_t index, typename S::M& grad) {
        const Streams<const std::int32_t> some(codes[static_cast<Index>(index) % micro_batches * rows].data(),
                                               {rows, codes.extent(1), steps});
        return MicroBatch{moshi_loss<typename S::Model>(setup.be, *setup.params, some, {}, &grad).total(),
                          rows * steps};
      });
      numbers.push_back(report.loss);
      numbers.push_back(report.gradient_norm);
    }
    return numbers;
  };
  const auto one = train(whole, 1), four = train(parts, 4);
  // Sums over rows are cut elsewhere, in float32 in both; in bf16 the logits' gradients, a quarter in size
  // there, round as before, but for those near the ends of a binade.
  const double tolerance = std::is_same_v<TestType, float> ? 2e-5 : 1e-2;
  for (std::size_t i = 0; i < one.size(); ++i) {
    INFO("number " << i);
    CHECK(four[i] == Approx(one[i]).epsilon(tolerance));
  }
  CHECK(one[4] < one[0]);
}

TEMPLATE_TEST_CASE("What is frozen stays, has no gradient and no moments; what trains learns as beside all",
                   "", float, bf16) {
  using S = Setup<moshi_small, TestType>;
  S all, some;
  const auto codes = full_codes(all.cpu, 2, 9);
  const std::vector<GroupRule> rules{
      {.says = "all", .matches = [](std::string_view) { return true; }, .frozen = true},
      {.says = "TTT", .matches = mttt::name_contains(".ttt.")}};
  const TrainOptions options{.max_steps = 2, .lr = 1e-2, .max_norm = 0};
  const auto trainer_of = [&](S& setup, const std::vector<GroupRule>& which) {
    return Trainer<typename S::P, typename S::B, typename S::M>(setup.be, setup.params, options, which);
  };
  const auto step = [&](S& setup, auto& trainer) {
    trainer.step([&](std::int64_t, typename S::M& grad) {
      return MicroBatch{moshi_loss<typename S::Model>(setup.be, *setup.params, codes, {}, &grad).total(), 18};
    });
  };
  auto trains_all = trainer_of(all, {}), trains_some = trainer_of(some, rules);
  CHECK(3 * trains_some.grad.bytes() < trains_all.grad.bytes());
  CHECK(trains_some.adam.m.bytes() == trains_some.grad.bytes());
  CHECK(trains_some.adam.v.bytes() == trains_some.grad.bytes());
  if constexpr (std::is_same_v<TestType, bf16>)
    CHECK(trains_some.weights().bytes() == trains_some.grad.bytes());

  const Store<typename S::P, typename S::B> start(some.be, some.params);
  step(all, trains_all), step(some, trains_some);
  int learned = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& before, const auto& alone, const auto& beside) {
        INFO(name);
        const auto bits = [&](const auto& a, const auto& b) {
          return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(TestType)) == 0;
        };
        const bool trains = name.find(".ttt.") != name.npos;
        CHECK(bits(alone, trains ? beside : before));
        learned += !bits(before, alone);
      },
      *start, *some.params, *all.params);
  CHECK(learned > 10);
  CHECK_THROWS_WITH((trains_some.groups = trains_all.groups, step(some, trains_some)),
                    contains("tensor 0 that is to train, and has no gradient; expected it frozen"));
}

TEST_CASE("A foreign code is reported before the parameters change") {
  using S = Setup<moshi_small, bf16>;
  S setup;
  const auto codes = full_codes(setup.cpu, 2, 5);
  Trainer<S::P, S::B, S::M> trainer(setup.be, setup.params, {});
  const Store<S::P, S::B> before(setup.be, setup.params);
  const auto step = [&] {
    trainer.step([&](std::int64_t, S::M& grad) {
      return MicroBatch{moshi_loss<S::Model>(setup.be, *setup.params, codes, {}, &grad).total(), 10};
    });
  };
  codes(1, 2, 3) = moshi_small.card;
  CHECK_THROWS_WITH(step(), contains("Moshi: codes") && contains("code 6 in session 1, stream 2, frame 3"));
  CHECK(same(before, setup.params));
  CHECK(trainer.adam.step == 0);
  codes(1, 2, 3) = 0;
  step();
  CHECK_FALSE(same(before, setup.params));
}

TEST_CASE("The work of a step, by count: of all weights, of those that train, and of what runs twice") {
  using B = Cpu<float>;
  B be;
  Store<Moshi<deep, B>::Params, B> params(be);
  constexpr Index batch = 2, frames = 9;
  double weights = 0, behind = 0, last_layer = 0;  // behind: the transformer
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if (t.rank < 2 || name.find("emb") != name.npos) return;
        const double size = static_cast<double>(t.size());
        weights += size;
        if (!name.starts_with("transformer.")) behind += size;
        if (name.starts_with("transformer.layers.5.")) last_layer += size;
      },
      *params);
  const double n = batch * frames, keys = std::min<double>(deep.temporal.context, 0.5 * (frames + 1)),
               attention = 4 * n * keys * 32,  // a layer forward
      depth =
          4 * n * 0.5 *
          static_cast<double>((deep.dep_q + 1) * deep.dep_q * deep.depformer.dim * deep.depformer.num_layers);
  const auto all = make_groups(*params, 0);
  CHECK(train_work<deep>(*params, all, batch, frames).use ==
        Approx(n * 6 * weights + 18 * attention + 3 * depth));
  CHECK(train_work<deep>(*params, all, batch, frames).again == 0);
  const auto last = make_groups(*params, 0,
                                {{.says = "all", .matches = name_contains(""), .frozen = true},
                                 {.says = "the last layer", .matches = name_contains("layers.5.gating")}});
  double trained = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if (t.rank > 1 && name.starts_with("transformer.layers.5.gating"))
          trained += static_cast<double>(t.size());
      },
      *params);
  CHECK(train_work<deep>(*params, last, batch, frames).use ==
        Approx(n * (2 * weights + 2 * (behind + last_layer) + 2 * trained) + 8 * attention + 3 * depth));
  CHECK(train_work<deep_recomputed>(*params, last, batch, frames).again ==
        Approx(n * 2 * last_layer + attention));
  CHECK(product_peak(be, 64) > 0);
}
