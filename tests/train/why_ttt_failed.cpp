#include "../../examples/why_ttt_failed/offline_only.hpp"

#include <cstring>

#include "../../examples/why_ttt_failed/model.hpp"
#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"

namespace {
using namespace mttt;

constexpr TemporalConfig config{.dim = 32,
                                .num_heads = 2,
                                .num_layers = 2,
                                .hidden = 48,
                                .context = 8,
                                .ttt_layers = LayerSet::range(0, 1),
                                .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};
using Causal = Cpu<double>;
using Ahead = why::HearsAhead<Causal>;
template <class B>
using Layer = Ttt<TttConfig{.dim = 12, .num_heads = 2, .mini_batch_size = 4}, B>;
template <class B>
using Model = why::Recaller<config, B>;

static_assert(Trainable<Layer<Ahead>, Ahead>);
static_assert(Streamable<Layer<Causal>, Causal>);
static_assert(!Streamable<Layer<Ahead>, Ahead>);
static_assert(Streamable<Layer<why::PadsWithZeros<Ahead>>, why::PadsWithZeros<Ahead>>);

/// A model's weights and four streams; the same ones on every backend.
template <class B>
struct Start {
  B be;
  Store<typename Model<B>::Params, B> params{be};
  why::Streamed data = why::draw(be, 3, 0, 4, 32);
  Start() {
    Rng rng(5);
    Model<B>::init(*params, rng);
  }
  std::vector<double> offline() {
    typename Model<B>::Saved saved;
    const auto logits = Model<B>::forward(be, *params, data.tokens, saved);
    return {logits.data(), logits.data() + logits.size()};
  }
  std::vector<double> streamed() {
    Store<typename Model<B>::State, B> state(be, 4);
    Model<B>::Transformer::reset(be, params->transformer, *state, Mask{});
    std::vector<double> all(4 * 32 * why::card);
    for (Index t = 0; t < 32; ++t) {
      const auto logits = Model<B>::step(be, *params, *state, data.tokens, t);
      for (Index b = 0; b < 4; ++b)
        std::copy_n(logits.data() + b * why::card, why::card, all.data() + (b * 32 + t) * why::card);
    }
    return all;
  }
  std::vector<double> losses(int steps) {
    Trainer<typename Model<B>::Params, B> trainer(be, params, {.max_steps = steps, .lr = 1e-2});
    std::vector<double> all;
    for (int i = 0; i < steps; ++i)
      all.push_back(trainer
                        .step([&](std::int64_t, auto& grad) {
                          return Model<B>::loss_and_gradient(be, *params, data, grad);
                        })
                        .loss);
    return all;
  }
};

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}
}  // namespace

TEST_CASE("A TTT layer that hears ahead has the gradient of what it computes") {
  Ahead be;
  const auto v = laws::gradient<Layer<Ahead>>(be, {.steps = 8});
  INFO(v.says);
  CHECK(v.holds);
}

TEST_CASE("The last token of a mini-batch changes the answers before it, unless the masks are causal") {
  const auto change = [](auto be, auto layer) {
    using L = typename decltype(layer)::type;
    Rng rng(2);
    Store<typename L::Params, decltype(be)> params(be);
    L::init(*params, rng);
    const auto x = be.template make<double, dyn, dyn, 12>(1, 8),
               y = be.template make<double, dyn, dyn, 12>(1, 8);
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = rng.normal();
    typename L::Saved saved;
    L::forward(be, *params, x, y, saved);
    const std::vector<double> before(y.data(), y.data() + y.size());
    x(0, 3, 5) += 1;  // of the first mini-batch
    L::forward(be, *params, x, y, saved);
    double most = 0;
    for (std::size_t i = 0; i < 3 * 12; ++i) most = std::max(most, std::abs(y.data()[i] - before[i]));
    return most;
  };
  CHECK(change(Causal{}, std::type_identity<Layer<Causal>>{}) == 0);
  CHECK(change(Ahead{}, std::type_identity<Layer<Ahead>>{}) > 0.01);
}

TEST_CASE("A model that hears ahead is another function when it is streamed; a causal one is not") {
  Start<Causal> causal;
  Start<Ahead> ahead;
  Start<why::PadsWithZeros<Causal>> padded;
  Start<why::PadsWithZeros<Ahead>> padded_ahead;
  const auto offline = causal.offline(), leaking = ahead.offline();
  CHECK(distance(causal.streamed(), offline) < 1e-9);
  CHECK(distance(offline, leaking) > 1e-3);  // with the same weights
  CHECK(distance(padded.streamed(), offline) > 1e-3);
  CHECK(distance(padded_ahead.streamed(), leaking) > 1e-3);
}

TEST_CASE("Both learn the task, one of them by its future") {
  Start<Causal> causal;
  Start<Ahead> ahead;
  const auto honest = causal.losses(30), leaking = ahead.losses(30);
  CHECK(honest.front() > 3);  // guessing costs log 32 = 3.47
  CHECK(honest.back() < 0.8 * honest.front());
  CHECK(leaking.back() < 0.8 * leaking.front());
  why::Accuracy offline, streamed;
  why::add_offline<Model<Causal>>(causal.be, *causal.params, causal.data, offline);
  why::add_streamed<Model<Causal>>(causal.be, *causal.params, causal.data, streamed);
  CHECK(offline.of == streamed.of);
  CHECK(offline.hits == streamed.hits);
  CHECK(offline.heard() > 0.1);
}

TEST_CASE("Keys keep their values, and are asked for after they were heard") {
  Causal be;
  const auto data = why::draw(be, 7, 5, 3, 64);
  why::Accuracy count;
  for (Index b = 0; b < 3; ++b) {
    std::array<std::int32_t, why::keys> value{}, last{};
    for (Index t = 0; t < 64; t += 2) {
      const auto key = static_cast<std::size_t>(data.tokens(b, t));
      REQUIRE(key < why::keys);
      REQUIRE((data.tokens(b, t + 1) >= why::keys && data.tokens(b, t + 1) < why::card));
      CHECK(data.targets(b, t) == data.tokens(b, t + 1));
      CHECK(data.weights(b, t) == (value[key] != 0 ? 1.0f : 0.0f));
      CHECK(data.weights(b, t + 1) == 0);
      CHECK((value[key] == 0 || value[key] == data.tokens(b, t + 1)));
      CHECK(data.distances(b, t) == (value[key] == 0 ? 0 : t - last[key]));
      value[key] = data.tokens(b, t + 1);
      last[key] = static_cast<std::int32_t>(t);
      count.add(data.distances(b, t), true);
    }
  }
  CHECK(count.of[0] <= 3 * why::keys);
  CHECK(count.heard() == 1);
  const auto again = why::draw(be, 7, 6, 1, 64);  // stream 6 is stream 6 wherever it lies
  CHECK(std::memcmp(again.tokens.data(), &data.tokens(1, 0), 64 * sizeof(std::int32_t)) == 0);
}
