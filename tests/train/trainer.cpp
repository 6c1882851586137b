#include "mttt/train/trainer.hpp"

#include <csignal>
#include <cstring>

#include "catch.hpp"
#include "model.hpp"

namespace {
using namespace mttt;
using mttt::test::contains;

template <class B>
struct Setup {
  using Model = test::Classifier<B>;
  B be;
  Store<typename Model::Params, B> params{be};
  Setup() {
    Rng rng(4);
    Model::init(*params, rng);
  }
  auto trainer(const TrainOptions& options) {
    return Trainer<typename Model::Params, B>(be, params, options);
  }
  /// Micro-batch i holds examples [rows * i, rows * (i + 1)).
  auto data(Index rows) {
    return [this, rows](std::int64_t i, typename Model::Params& grad) {
      return Model::loss_and_gradient(be, *params, static_cast<Index>(i) * rows, rows, grad);
    };
  }
};

std::string printed(std::FILE* file) {
  std::rewind(file);
  std::string text(4096, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}
}  // namespace

TEST_CASE("Two micro-batches of half the batch equal one whole batch") {
  Setup<Cpu<double>> whole, halves;
  const TrainOptions options{.max_steps = 6, .lr = 1e-2, .num_microbatches = 1};
  auto one = whole.trainer(options);
  auto two = halves.trainer([&] {
    auto o = options;
    o.num_microbatches = 2;
    return o;
  }());
  for (int i = 0; i < 6; ++i) {
    const auto a = one.step(whole.data(32)), b = two.step(halves.data(16));
    CHECK(a.loss == Approx(b.loss).epsilon(1e-12));
    CHECK(a.gradient_norm == Approx(b.gradient_norm).epsilon(1e-12));
  }
  CHECK(two.micro_batches == 12);
  for_each_tensor(
      [](std::string_view name, const auto& a, const auto& b) {
        INFO(name);
        for (Index i = 0; i < a.size(); ++i)
          CHECK(a.data()[i] == Approx(b.data()[i]).epsilon(1e-9).margin(1e-11));
      },
      *whole.params, *halves.params);
}

TEST_CASE("Mixed precision: float32 weights learn what bf16 would round away") {
  using Model = test::Classifier<Cpu<bf16>>;
  using Exact = test::Classifier<Cpu<float>>;
  using Mixed = Trainer<Model::Params, Cpu<bf16>, Exact::Params>;
  Setup<Cpu<bf16>> setup;
  Setup<Cpu<float>> exact;
  for_each_tensor(  // the same start
      [](std::string_view, const auto& from, auto& to) { std::copy_n(from.data(), from.size(), to.data()); },
      *setup.params, *exact.params);
  const TrainOptions options{.max_steps = 200, .lr = 1e-2};
  Mixed trainer(setup.be, setup.params, options);
  auto reference = exact.trainer(options);
  const auto rounded = [&] {
    bool all = true;
    for_each_tensor(
        [&](std::string_view, const auto& w, const auto& p) {
          for (Index i = 0; i < w.size(); ++i) all = all && bf16(w.data()[i]).bits == p.data()[i].bits;
        },
        *trainer.weights(), *setup.params);
    return all;
  };
  CHECK(rounded());
  const auto data = [&](std::int64_t i, Exact::Params& grad) {
    return Model::loss_and_gradient(setup.be, *setup.params, static_cast<Index>(i) * 64, 64, grad);
  };
  const Store<Exact::Params, Cpu<float>> start(exact.be, exact.params);
  trainer.step(data);  // the first step, of 4e-4, is below half a unit in the last place of most weights
  reference.step(exact.data(64));
  int moved = 0, seen = 0;
  for (Index i = 0; i < 66; ++i) {
    const float before = start->first.weight.data()[i];
    moved += trainer.weights()->first.weight.data()[i] != before;
    seen += static_cast<float>(setup.params->first.weight.data()[i]) != before;
  }
  CHECK(moved == 66);
  CHECK(seen < 33);
  CHECK(rounded());
  double loss = 0, expected = 0;
  while (trainer.adam.step < options.max_steps) {
    loss = trainer.step(data).loss;
    expected = reference.step(exact.data(64)).loss;
    CHECK(loss ==
          Approx(expected).epsilon(0.02));  // bf16 rounds to 1 in 256; here errors of many roundings mix
  }
  CHECK(loss < 0.8);  // guessing costs log 4 = 1.39
  CHECK(rounded());

  trainer.weights()->second.bias(2) = 1.0f / 3;
  trainer.weights_changed();
  CHECK(static_cast<float>(setup.params->second.bias(2)) == 0.333984375f);
}

TEST_CASE("Training lowers the loss, reports and asks for checkpoints when it should") {
  Setup<Cpu<float>> setup;
  auto trainer =
      setup.trainer({.max_steps = 205, .lr = 2e-2, .num_microbatches = 2, .log_freq = 50, .ckpt_freq = 100});
  std::vector<StepReport> reports;
  std::vector<std::int64_t> checkpoints;
  std::FILE* out = std::tmpfile();
  const bool finished =
      trainer.run(setup.data(16), {.log = [&](const StepReport& r) { reports.push_back(r); },
                                   .checkpoint = [&] { checkpoints.push_back(trainer.adam.step); },
                                   .progress = out});
  CHECK(finished);
  CHECK(checkpoints == std::vector<std::int64_t>{100, 200, 205});
  REQUIRE(reports.size() == 6);
  CHECK(reports[0].step == 1);
  CHECK(reports[1].step == 50);
  CHECK(reports[5].step == 205);
  CHECK(reports[5].loss < 0.5);  // guessing costs log 4 = 1.39
  CHECK(reports[5].frames_per_second == Approx(205 * 32 / reports[5].seconds).epsilon(1e-9));
  CHECK(reports[5].seconds_left == 0);
  CHECK(reports[1].seconds_left == Approx(reports[1].seconds / 50 * 155));
  CHECK(reports[2].learning_rate ==
        Approx(OneCycle({.total_steps = 205, .max_lr = 2e-2})(99)).epsilon(1e-15));
  const std::string text = printed(out);
  CHECK(std::count(text.begin(), text.end(), '\n') == 6);  // not a terminal: plain lines
  CHECK_THAT(
      text, contains("step 50/205  loss ") && contains(" lr ") && contains(" frames/s") && contains(" left"));
  CHECK(trainer.run(setup.data(16)));  // nothing left to do
  CHECK(trainer.adam.step == 205);
}

TEST_CASE("A signal finishes the step, saves and leaves") {
  Setup<Cpu<float>> setup;
  auto trainer = setup.trainer({.max_steps = 100});
  const int signal = GENERATE(SIGINT, SIGTERM);
  struct sigaction before = {}, after = {};
  sigaction(signal, nullptr, &before);
  int saved = 0;
  auto data = setup.data(8);
  const bool finished = trainer.run(
      [&](std::int64_t i, auto& grad) {
        if (i == 3) std::raise(signal);
        return data(i, grad);
      },
      {.checkpoint = [&] { ++saved; }, .progress = nullptr});
  CHECK_FALSE(finished);
  CHECK(trainer.adam.step == 4);
  CHECK(saved == 1);
  CHECK(trainer.run(data, {.progress = nullptr}));  // goes on where it stopped
  CHECK(trainer.micro_batches == 100);
  sigaction(signal, nullptr, &after);
  CHECK(after.sa_handler == before.sa_handler);
}

TEST_CASE("Divergence stops the training before the parameters change") {
  Setup<Cpu<float>> setup;
  auto trainer = setup.trainer({.max_steps = 10});
  auto data = setup.data(8);
  trainer.step(data);
  const Store<test::Classifier<Cpu<float>>::Params, Cpu<float>> before(setup.be, setup.params);
  const auto same = [&] {
    return std::memcmp(before.data(), setup.params.data(), static_cast<std::size_t>(before.bytes())) == 0;
  };
  CHECK_THROWS_WITH(trainer.step([&](std::int64_t i, auto& grad) {
    return MicroBatch{data(i, grad).loss * NAN, 8};
  }),
                    contains("training step 2") && contains("NaN") && contains("those of step 1"));
  CHECK(same());
  CHECK_THROWS_WITH(trainer.step([&](std::int64_t i, auto& grad) {
    const auto done = data(i, grad);
    grad.second.weight(1, 1) = NAN;
    return done;
  }),
                    contains("'second.weight'") && contains("NaN"));
  CHECK(same());
  CHECK(trainer.adam.step == 1);
  CHECK_THROWS_WITH(setup.trainer({.num_microbatches = 0}), contains("num_microbatches"));
}

TEST_CASE("Durations are short") {
  CHECK(duration_text(7.4) == "7s");
  CHECK(duration_text(130) == "2m10s");
  CHECK(duration_text(3725) == "1h02m");
}
