#include "mttt/train/adamw.hpp"

#include <cstring>

#include "catch.hpp"
#include "model.hpp"

namespace {
using namespace mttt;
using mttt::test::contains;

struct Pair {
  Tensor<double, 2, 2> weight;
  Tensor<double, 1, 1, 2> norm;
  static void visit(auto&& f, auto&&... p) { f("weight", p.weight...), f("norm.alpha", p.norm...); }
};

void set(Pair& p, double w, double n) {
  for (Index i = 0; i < 4; ++i) p.weight.data()[i] = w;
  for (Index i = 0; i < 2; ++i) p.norm.data()[i] = n;
}
}  // namespace

TEST_CASE("AdamW's steps are those of the published formula") {
  Cpu<double> be;
  Store<Pair, Cpu<double>> params(be), grad(be);
  AdamW<Pair, Cpu<double>> adam(be);
  ChunkTable<Pair, Cpu<double>> table(be, params, params);
  const AdamWOptions options{.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-3, .weight_decay = 0.5};
  const auto groups = make_groups(*params, options.weight_decay);
  REQUIRE(groups.size() == 2);
  CHECK(groups[0].weight_decay == 0.5);
  CHECK(groups[1].weight_decay == 0);  // one extent above 1

  set(*params, 1.0, 2.0);
  set(*grad, 0.2, 0.2);
  adam.update(be, table, params, params, grad, groups, options, 0.1);
  // t = 1: m/(1-b1) = 0.2, sqrt(v/(1-b2)) = 0.2, so the step is 0.1 * 0.2 / 0.201, the decay 0.1 * 0.5 * p
  const double first = 0.1 * 0.2 / 0.201;
  CHECK(params->weight(1, 1) == Approx(1.0 - 0.05 - first).epsilon(1e-14));
  CHECK(params->norm(0, 0, 1) == Approx(2.0 - first).epsilon(1e-14));
  CHECK(adam.m->weight(0, 0) == Approx(0.02).epsilon(1e-14));
  CHECK(adam.v->weight(0, 0) == Approx(0.0004).epsilon(1e-14));

  set(*grad, -0.8, -0.8);
  adam.update(be, table, params, params, grad, groups, options, 0.1, 0.5);  // g = -0.4
  // t = 2: m = 0.9*0.02 - 0.1*0.4 = -0.022, v = 0.99*0.0004 + 0.01*0.16 = 0.001996
  const double second = 0.1 * (-0.022 / 0.19) / (std::sqrt(0.001996 / 0.0199) + 1e-3);
  CHECK(params->weight(1, 1) == Approx((0.95 - first) * 0.95 - second).epsilon(1e-13));
  CHECK(params->norm(0, 0, 1) == Approx(2.0 - first - second).epsilon(1e-13));
  CHECK(adam.step == 2);
}

TEST_CASE("Groups: multipliers, decay and freezing by name; padding stays zero") {
  Cpu<float> be;
  using Model = test::Classifier<Cpu<float>>;
  Store<Model::Params, Cpu<float>> params(be), grad(be);
  Rng rng(1);
  Model::init(*params, rng);
  const Store<Model::Params, Cpu<float>> before(be, params);
  const std::vector<GroupRule> rules{
      {.says = "all of first", .matches = name_contains("first."), .learning_rate = 0.1, .weight_decay = 0.3},
      {.says = "first's weight", .matches = name_contains("first.weight"), .frozen = true}};
  const auto groups = make_groups(*params, 0.2, rules);
  REQUIRE(groups.size() == 4);
  CHECK(groups[0].frozen);
  CHECK(groups[1].learning_rate == 0.1);
  CHECK(groups[1].weight_decay == 0.3);
  CHECK(groups[2].weight_decay == 0.2);
  CHECK(groups[3].weight_decay == 0);

  for_each_tensor([](std::string_view, auto& g) { std::fill_n(g.data(), g.size(), 1.0f); }, *grad);
  AdamW<Model::Params, Cpu<float>> adam(be);
  ChunkTable<Model::Params, Cpu<float>> table(be, params, params);
  adam.update(be, table, params, params, grad, groups, {.weight_decay = 0.2}, 1e-2);
  CHECK(std::memcmp(params->first.weight.data(), before->first.weight.data(), sizeof(float) * 66) == 0);
  CHECK(params->first.bias(0) == Approx(-1e-3).epsilon(1e-5));
  CHECK(params->second.bias(0) == Approx(-1e-2).epsilon(1e-5));
  CHECK(params->second.weight(0, 0) ==
        Approx(before->second.weight(0, 0) * (1 - 2e-3f) - 1e-2f).epsilon(1e-5));
  const float* padding = params->first.bias.data() + 11;  // to the next multiple of 64 bytes
  for (int i = 0; i < 5; ++i) CHECK(padding[i] == 0);

  CHECK_THROWS_WITH(make_groups(*params, 0.2, {{.says = "the gates", .matches = name_contains("gate")}}),
                    contains("'the gates'") && contains("no tensor"));
  CHECK_THROWS_WITH(adam.update(be, table, params, params, grad, {}, {}, 1e-2),
                    contains("0 parameter groups"));
}

TEST_CASE("The gradient norm: value, threads, clipping, frozen tensors, first bad tensor") {
  using Wide = Linear<LinearConfig{.in = 300, .out = 217, .bias = true}, Cpu<float>>;
  Cpu<float> be(1);
  Store<Wide::Params, Cpu<float>> grad(be);
  Rng rng(2);
  double sum = 0, bias = 0;
  for_each_tensor(
      [&](std::string_view name, auto& g) {
        for (Index i = 0; i < g.size(); ++i) {
          g.data()[i] = static_cast<float>(rng.normal());
          sum += static_cast<double>(g.data()[i]) * static_cast<double>(g.data()[i]);
          if (name == "bias") bias += static_cast<double>(g.data()[i]) * static_cast<double>(g.data()[i]);
        }
      },
      *grad);
  auto groups = make_groups(*grad, 0.1);
  ChunkTable<Wide::Params, Cpu<float>> table(be, grad, grad);
  const double norm = gradient_norm(be, table, grad, groups);
  CHECK(norm == Approx(std::sqrt(sum)).epsilon(1e-13));
  CHECK(gradient_norm(be, table, grad, groups, 0.5) == Approx(norm / 2).epsilon(1e-15));
  Cpu<float> two(2);
  CHECK(gradient_norm(two, table, grad, groups) == norm);

  CHECK(clip_factor(4.0, 1.0) == Approx(0.25).epsilon(1e-6));
  CHECK(clip_factor(0.5, 1.0) == 1.0);
  CHECK(clip_factor(4.0, 0.0) == 1.0);

  grad->weight(100, 7) = NAN;
  CHECK_THROWS_WITH(gradient_norm(be, table, grad, groups), contains("'weight'") && contains("NaN"));
  groups[0].frozen = true;
  CHECK(gradient_norm(be, table, grad, groups) == Approx(std::sqrt(bias)).epsilon(1e-13));
  grad->bias(3) = INFINITY;
  CHECK_THROWS_WITH(gradient_norm(be, table, grad, groups), contains("'bias'") && contains("infinite"));
}

TEST_CASE("The pass over chunks has the bits of one over each tensor, with any number of threads") {
  using Model = Linear<LinearConfig{.in = 301, .out = 217, .bias = true}, Cpu<float>>;  // 4 chunks and a rest
  Cpu<float> be(GENERATE(1, 2));
  Store<Model::Params, Cpu<float>> params(be), grad(be), expected(be), m(be), v(be);
  Rng rng(3);
  Model::init(*params, rng);
  Model::init(*grad, rng);
  expected.assign(be, params);
  auto groups = make_groups(*params, 0.1);
  groups[1].learning_rate = 0.3;
  const AdamWOptions options;
  AdamW<Model::Params, Cpu<float>> adam(be);
  ChunkTable<Model::Params, Cpu<float>> table(be, params, params);
  CHECK(table.size() == 5);
  for (int t = 1; t <= 3; ++t) {
    adam.update(be, table, params, params, grad, groups, options, 1e-2, 0.5);
    std::size_t at = 0;
    for_each_tensor(
        [&](std::string_view, auto& p, auto& g, auto& first, auto& second) {
          const double lr = 1e-2 * groups[at].learning_rate;
          const detail::AdamWRule<float> rule{0.5f,
                                              static_cast<float>(options.beta1),
                                              static_cast<float>(options.beta2),
                                              static_cast<float>(lr / (1 - std::pow(options.beta1, t))),
                                              static_cast<float>(1 - std::pow(options.beta2, t)),
                                              static_cast<float>(options.eps),
                                              static_cast<float>(1 - lr * groups[at].weight_decay)};
          ++at;
          for (Index i = 0; i < p.size(); ++i)
            rule(g.data()[i], p.data()[i], first.data()[i], second.data()[i]);
        },
        *expected, *grad, *m, *v);
  }
  const auto same = [](const auto& a, const auto& b) {
    return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
  };
  CHECK(same(params, expected));
  CHECK(same(adam.m, m));
  CHECK(same(adam.v, v));
}

TEST_CASE("One-cycle equals torch's OneCycleLR") {
  // By hand from its definition: up over steps 0 ... pct_start * n - 1, then down to step n - 1.
  const OneCycle cycle(
      {.total_steps = 10, .max_lr = 1.0, .pct_start = 0.3, .div_factor = 25, .final_div_factor = 1e4});
  CHECK(cycle(0) == Approx(0.04).epsilon(1e-12));
  CHECK(cycle(1) == Approx(0.52).epsilon(1e-12));
  CHECK(cycle(2) == Approx(1.0).epsilon(1e-12));
  CHECK(cycle(3) == Approx(0.950484632).epsilon(1e-8));  // 4e-6 + (1 - 4e-6) / 2 * (1 + cos(pi / 7))
  CHECK(cycle(9) == Approx(4e-6).epsilon(1e-9));
  CHECK(cycle(100) == cycle(9));

  // The peak lies between steps: 0.25 * 10 - 1 = 1.5
  const OneCycle between({.total_steps = 10, .max_lr = 2.0, .pct_start = 0.25, .warmup = Warmup::linear});
  CHECK(between(1) == Approx(0.08 + 1.92 / 1.5).epsilon(1e-12));
  CHECK(between(2) == Approx(8e-6 + (2 - 8e-6) / 2 * (1 + std::cos(M_PI * 0.5 / 7.5))).epsilon(1e-12));

  const OneCycle without(
      {.total_steps = 4, .max_lr = 1.0, .pct_start = 0});  // down from the step before the first
  CHECK(without(0) == Approx(4e-6 + (1 - 4e-6) / 2 * (1 + std::cos(M_PI / 4))).epsilon(1e-12));
  CHECK(OneCycle({.total_steps = 1, .max_lr = 0.5})(0) == Approx(2e-6).epsilon(1e-12));
  CHECK(OneCycle({.total_steps = 4, .max_lr = 0.5, .pct_start = 1})(3) == 0.5);
  CHECK(ConstantRate{0.3}(7) == 0.3);

  CHECK_THROWS_WITH(OneCycle({.total_steps = 0, .max_lr = 1}), contains("0 steps"));
  CHECK_THROWS_WITH(OneCycle({.total_steps = 5, .max_lr = 1, .pct_start = 1.5}), contains("pct_start 1.5"));
}
