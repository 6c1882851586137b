// Probes of TTT layers against a plain loop in float64 that knows the formulas alone; and what they leave
// alone.
#include <functional>

#include "catch.hpp"
#include "laws/laws.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/lm/causality.hpp"
#include "mttt/lm/probes.hpp"
#include "mttt/ttt/verdict.hpp"

namespace {
using namespace mttt;
using B = Cpu<double>;
using Numbers = std::vector<double>;

constexpr TttConfig small(Index layers, TttMemory memory) {
  return {.dim = 8,
          .num_heads = 2,
          .mini_batch_size = 3,
          .layers = layers,
          .expansion = 2,
          .memory = memory,
          .rope = false,
          .base_lr = 2};
}

/// One head of width F, its weights as lists of (W, b), rows of W for inputs.
struct PlainHead {
  Index F, hidden, layers;
  Numbers gamma, beta;
  double eps;

  Index in(Index l) const { return l == 0 ? F : hidden; }
  Index out(Index l) const { return l + 1 == layers ? F : hidden; }

  double loss(const Numbers& weights, const Numbers& key, const Numbers& target) const {
    Numbers x = key;
    std::size_t at = 0;
    for (Index l = 0; l < layers; ++l) {
      Numbers z(static_cast<std::size_t>(out(l)));
      for (const double input : x)
        for (double& sum : z) sum += input * weights[at++];
      for (double& sum : z) sum += weights[at++];
      if (l + 1 < layers)
        for (double& v : z) v = 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
      x = z;
    }
    double mean = 0, variance = 0, total = 0;
    for (const double v : x) mean += v / static_cast<double>(F);
    for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(F);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double error = gamma[i] * (x[i] - mean) / std::sqrt(variance + eps) + beta[i] - target[i];
      total += error * error / 2;
    }
    return total;
  }
  Numbers gradient(Numbers weights, const Numbers& key, const Numbers& target) const {
    Numbers slope(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const double kept = weights[i], by = 1e-5;
      weights[i] = kept + by;
      const double up = loss(weights, key, target);
      weights[i] = kept - by;
      slope[i] = (up - loss(weights, key, target)) / (2 * by);
      weights[i] = kept;
    }
    return slope;
  }
};

Numbers moved(Numbers weights, const Numbers& sum, double rate) {
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] -= rate * sum[i];
  return weights;
}
double square(const Numbers& a) {
  double total = 0;
  for (const double v : a) total += v * v;
  return total;
}

/// inner_numbers of each token and head of one session, (T, H, inner_numbers).
template <class Learner>
Numbers plain_numbers(const typename Learner::Params& p, Sequence<const double, Learner::in> x) {
  constexpr TttConfig c = Learner::config;
  constexpr Index F = Learner::F, H = Learner::H;
  const Index steps = x.extent(1);
  Numbers numbers(static_cast<std::size_t>(steps * H * inner_numbers));
  for (Index h = 0; h < H; ++h) {
    PlainHead head{F, c.expansion * F, c.layers, {}, {}, c.inner_eps};
    for (Index i = 0; i < F; ++i)
      head.gamma.push_back(p.ttt_norm_weight(h, i)), head.beta.push_back(p.ttt_norm_bias(h, i));
    Numbers start;
    for (Index l = 0; l < c.layers; ++l) {
      const Index size = head.in(l)*head.out(l);
      start.insert(start.end(), p.inner.weight(l) + h * size, p.inner.weight(l) + (h + 1) * size);
      start.insert(start.end(), p.inner.bias(l) + h * head.out(l), p.inner.bias(l) + (h + 1) * head.out(l));
    }
    Numbers weights = start, sum(start.size());
    double scale_before = 0;
    for (Index t = 0; t < steps; ++t) {
      Numbers key(static_cast<std::size_t>(F)), target = key;
      double logit = p.learnable_ttt_lr_bias(h, 0);
      for (Index j = 0; j < c.dim; ++j) {
        logit += x(0, t, j) * p.learnable_ttt_lr_weight(h, 0, j);
        for (Index i = 0; i < F; ++i) {
          key[static_cast<std::size_t>(i)] += x(0, t, j) * p.k.weight(h * F + i, j);
          target[static_cast<std::size_t>(i)] +=
              x(0, t, j) * (p.v.weight(h * F + i, j) - p.k.weight(h * F + i, j));
        }
      }
      const Index place = t % c.mini_batch_size;
      const double rate = p.base_lr(0) / (1 + std::exp(-logit)) / F;
      const double scale = std::max(0.0, 1.0 / static_cast<double>(place + 1) + p.learnable_token_idx(place));
      const Numbers before = moved(weights, sum, scale_before);
      const Numbers slope = head.gradient(weights, key, target);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += rate * slope[i];
      const Numbers after = moved(weights, sum, scale);
      double* to = &numbers[static_cast<std::size_t>((t * H + h) * inner_numbers)];
      to[0] = head.loss(start, key, target) / F;
      to[1] = head.loss(before, key, target) / F;
      to[2] = head.loss(after, key, target) / F;
      to[3] = square(moved(after, start, 1));
      to[4] = square(start);
      scale_before = scale;
      if (place + 1 == c.mini_batch_size) weights = after, sum.assign(sum.size(), 0), scale_before = 0;
    }
  }
  return numbers;
}

template <Index layers, TttMemory memory = TttMemory::sums>
void equals_plain_loop() {
  using Learner = Ttt<small(layers, memory), B>;
  constexpr Index steps = 8;  // two mini-batches and a part
  B be;
  Rng rng(3);
  auto params = laws::random_params<Learner>(be, {.perturbation = 0.3}, rng);
  const auto x = be.make<double, dyn, dyn, Learner::in>(1, steps);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = rng.normal();
  const Numbers expected = plain_numbers<Learner>(*params, x);
  const auto check = [&](const auto& numbers) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      INFO("number " << i % inner_numbers << " of token " << i / inner_numbers / Learner::H);
      REQUIRE(numbers.data()[i] == Approx(expected[i]).epsilon(1e-7));
    }
  };
  const auto numbers = be.make<double, dyn, dyn, Learner::H, inner_numbers>(1, steps);

  typename Learner::Saved saved;
  const auto y = be.make<double, dyn, dyn, Learner::in>(1, steps);
  Learner::forward(be, *params, x, y, saved);
  probe_forward<Learner>(be, *params, saved, numbers);
  check(numbers);

  Store<typename Learner::State, B> state(be);  // and in a stream, in pieces that end within a mini-batch
  Learner::reset(be, *params, *state, Mask{});
  be.fill(numbers.data(), numbers.size(), 0.0);
  for (Index at = 0, n = 0; at < steps; at += n) {
    n = std::min<Index>(at == 0 ? 1 : 4, steps - at);
    probe_step<Learner>(
        be, *params, *state,
        Sequence<const double, Learner::in>(x.data() + at * x.extent(2), {1, n, x.extent(2)}),
        {numbers.data() + at * Learner::H * inner_numbers, {1, n, Learner::H, inner_numbers}});
  }
  check(numbers);
}

constexpr TemporalConfig watched(Placement placement) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 3,
          .hidden = 12,
          .context = 6,
          .ttt_layers = LayerSet::range(1, 2),
          .placement = placement,
          .ttt_layer_context = 3,
          .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};
}

/// A stream that is watched goes on like one that is not, and is seen as the forward pass is.
template <Placement placement>
void watching_changes_nothing() {
  using Transformer = Temporal<watched(placement), B>;
  constexpr Index steps = 11, dim = Transformer::dim;
  B be;
  Rng rng(4);
  auto params = laws::random_params<Transformer>(be, {.perturbation = 0.3}, rng);
  const auto make = [&] { return be.make<double, dyn, dyn, dim>(1, steps); };
  const auto x = make(), y = make(), seen = make(), offline = make();
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = rng.normal();
  Store<typename Transformer::State, B> state(be), watched_state(be);
  Transformer::reset(be, *params, *state, Mask{});
  Transformer::reset(be, *params, *watched_state, Mask{});
  StreamProbe<Transformer, B> probe(be);
  for (Index at = 0, n = 0; at < steps; at += n) {
    n = std::min<Index>(at < 2 ? 1 : 5, steps - at);
    const auto piece = [&](auto t) { return decltype(t)(t.data() + at * dim, {1, n, dim}); };
    Transformer::step(be, *params, *state, piece(x), piece(y), Mask{});
    probe.step(*params, *watched_state, piece(x), piece(seen));
  }
  CHECK(std::equal(y.data(), y.data() + y.size(), seen.data()));
  CHECK(std::equal(state.data(), state.data() + state.bytes(), watched_state.data()));

  typename Transformer::Saved saved;
  Transformer::forward(be, *params, x, offline, saved);
  const auto curves = inner_curves<Transformer>(be, *params, saved);
  REQUIRE(curves.size() == 2);
  for (std::size_t i = 0; i < curves.size(); ++i) {
    CHECK(curves[i].layer == probe.curves[i].layer);
    CHECK(curves[i].layer == static_cast<Index>(i) + 1);
    REQUIRE(curves[i].after.size() == steps);
    for (std::size_t t = 0; t < steps; ++t) {
      CHECK(curves[i].at_start[t] == Approx(probe.curves[i].at_start[t]).epsilon(1e-9));
      CHECK(curves[i].before[t] == Approx(probe.curves[i].before[t]).epsilon(1e-9));
      CHECK(curves[i].after[t] == Approx(probe.curves[i].after[t]).epsilon(1e-9));
      CHECK(curves[i].drift[t] == Approx(probe.curves[i].drift[t]).epsilon(1e-9));
    }
    if constexpr (placement != Placement::instead_of_attention) {
      const auto& kept = saved.learning[i].ttt;
      double base = 0, branch = 0, gated = 0;
      const Index last = (steps - 1) * dim;
      for (Index c = 0; c < dim; ++c) {
        const double t = kept.t.data()[last + c], b = kept.base.data()[last + c],
                     through = std::tanh(params->learning[i].ttt.alpha(c)) * t;
        base += b * b, branch += t * t, gated += through * through;
      }
      CHECK(probe.curves[i].base.back() == Approx(std::sqrt(base)));
      CHECK(probe.curves[i].branch.back() == Approx(std::sqrt(branch)));
      CHECK(probe.curves[i].gated.back() == Approx(std::sqrt(gated)));
    }
  }
}
}  // namespace

TEST_CASE("Probe: TTT-Linear as a plain loop has it") { equals_plain_loop<1>(); }
TEST_CASE("Probe: TTT-MLP as a plain loop has it") { equals_plain_loop<2>(); }
TEST_CASE("Probe: TTT-MLP that keeps factors as a plain loop has it") {
  equals_plain_loop<2, TttMemory::factors>();
}
TEST_CASE("Probe: watching a stream changes nothing, TTT in parallel") {
  watching_changes_nothing<Placement::parallel>();
}
TEST_CASE("Probe: watching a stream changes nothing, TTT before attention") {
  watching_changes_nothing<Placement::before_attention>();
}
TEST_CASE("Probe: watching a stream changes nothing, TTT instead of attention") {
  watching_changes_nothing<Placement::instead_of_attention>();
}

namespace {

/// Curves of `frames` frames; f(t) gives the three losses.
InnerReport report_of(std::size_t frames, const std::function<std::array<double, 3>(double)>& f) {
  Numbers curves[3];
  for (std::size_t t = 0; t < frames; ++t) {
    const auto losses = f(static_cast<double>(t) / static_cast<double>(frames));
    for (std::size_t i = 0; i < 3; ++i) curves[i].push_back(losses[i]);
  }
  const InnerLossCurves one{curves[0], curves[1], curves[2]};
  return inner_report(std::span(&one, 1));
}
}  // namespace

TEST_CASE("Verdict: each kind of curve gets its own") {
  const auto verdict = [](const auto& f) { return report_of(400, f).verdict; };
  using Losses = std::array<double, 3>;
  CHECK(verdict([](double x) { return Losses{0.8, 0.5 - 0.2 * x, 0.4 - 0.2 * x}; }) == InnerVerdict::healthy);
  CHECK(verdict([](double) { return Losses{0.8, 0.5, 0.4}; }) == InnerVerdict::flat);
  CHECK(verdict([](double x) { return Losses{8, 5 - 2 * x, 4 - 2 * x}; }) == InnerVerdict::odd_size);
  CHECK(verdict([](double x) {
          return Losses{0.8, 0.4 + 0.2 * x, 0.3 + 0.2 * x};
        }) == InnerVerdict::no_adaptation);
  CHECK(verdict([](double x) {  // memory helps often, and harms more
          return Losses{0.4, std::fmod(400 * x, 4) < 1 ? 0.9 : 0.35, 0.3};
        }) == InnerVerdict::no_adaptation);
  CHECK(verdict([](double x) {  // every other step makes it worse
          const bool odd = std::fmod(400 * x + 0.5, 2) > 1;
          return Losses{odd ? 0.4 : 0.9, 0.6, odd ? 0.3 : 0.85};
        }) == InnerVerdict::no_order);
  CHECK(verdict([](double) { return Losses{0.5, 0.5, 0.5}; }) == InnerVerdict::no_learning);
  CHECK(verdict([](double x) {
          return Losses{0.5, 0.5 - 0.1 * x, 0.4999 - 0.1 * x};
        }) == InnerVerdict::no_learning);
  CHECK(verdict([](double) { return Losses{0.5, 0.45, 0.6}; }) == InnerVerdict::rate_too_high);
  CHECK(verdict([](double) { return Losses{0.5, 30, 40}; }) == InnerVerdict::unstable);
  CHECK(verdict([](double x) { return Losses{0.5, 0.4, x > 0.9 ? NAN : 0.3}; }) == InnerVerdict::unstable);
  CHECK(report_of(20, [](double) { return Losses{0.8, 0.5, 0.4}; }).verdict == InnerVerdict::too_short);
}

TEST_CASE("Verdict: what harder data do to all curves is no lack of adaptation") {
  const auto r = report_of(400, [](double x) {
    return std::array<double, 3>{0.5 + 0.4 * x, 0.3 + 0.2 * x, 0.2 + 0.2 * x};
  });
  CHECK(r.trend > 0.3);
  CHECK(r.verdict == InnerVerdict::healthy);
}

TEST_CASE("Verdict: the numbers of a report") {
  const Numbers start{1, 1, 1, 1}, before{0.5, 1.5, 0.5, 0.5}, after{0.4, 0.4, 0.6, 0.4};
  const InnerLossCurves both[] = {{start, before, after}, {start, before, after}};
  const auto r = inner_report(both);
  CHECK(r.frames == 8);
  CHECK(r.before.mean == Approx(0.75));
  CHECK(r.before.deviation == Approx(std::sqrt(3) / 4));
  CHECK(r.before.least == 0.5);
  CHECK(r.before.largest == 1.5);
  CHECK(r.improvement == Approx(0.3));
  CHECK(r.benefit == Approx(0.25));
  CHECK(r.worse_after == Approx(0.25));
  CHECK(r.worse_before == Approx(0.25));
  CHECK(r.violations == Approx(0.25));
}

namespace {

constexpr CodeOrder order{.streams = 4, .delays = {{0, 0, 2, 1}}, .text_card = 7, .card = 5};
constexpr std::size_t said = 3;  // stream 3 is heard

/// Predictions of the model's streams as a function of all that they may see; with `leak`, of one code more.
CodeLogits toy_logits(const std::vector<std::int32_t>& codes, bool leak) {
  const Index frames = static_cast<Index>(codes.size()) / order.streams;
  CodeLogits all{frames, {}, {}};
  for (std::size_t k = 0; k < said; ++k) {
    all.cards.push_back(order.card_of(static_cast<Index>(k)));
    all.of.emplace_back();
    for (Index t = 0; t < frames; ++t) {
      const Index place = (t + order.delays.of[k]) * order.streams + static_cast<Index>(k);
      double sum = 0;
      for (Index j = 0; j < order.streams; ++j) {
        for (Index s = 0; s < frames; ++s) {
          const Index from = (s + order.delays.of[j]) * order.streams + j;
          const bool seen = from < place || (leak && from == place + 3);
          if (seen)
            sum += static_cast<double>(codes[static_cast<std::size_t>(j * frames + s)] * (from % 13 + 1));
        }
      }
      for (Index c = 0; c < all.cards.back(); ++c)
        all.of.back().push_back(static_cast<float>(std::sin(sum + static_cast<double>(c))));
    }
  }
  return all;
}

}  // namespace

TEST_CASE("Causality: a model that knows the past alone passes, one code of the future is found") {
  Rng rng(5);
  std::vector<std::int32_t> codes;
  for (int i = 0; i < 4 * 20; ++i) codes.push_back(static_cast<std::int32_t>(rng.below(5)));
  const auto honest = check_causality([](const auto& c) { return toy_logits(c, false); }, codes, order, 30);
  CHECK(honest.causal());
  CHECK(honest.trials == 30);
  CHECK(honest.live > 20);
  CHECK(honest.compared > 1000);
  const auto leaky = check_causality([](const auto& c) { return toy_logits(c, true); }, codes, order, 30);
  CHECK(!leaky.causal());
  CHECK(leaky.leaks.size() > 20);
  for (const Leak& leak : leaky.leaks)
    CHECK((leak.frame + order.delays.of[leak.stream]) * 4 + leak.stream <=
          (leak.changed_frame + order.delays.of[leak.changed_stream]) * 4 + leak.changed_stream);
  const auto deaf =
      check_causality([](const auto& c) { return toy_logits(std::vector<std::int32_t>(c.size(), 1), false); },
                      codes, order, 4);
  CHECK(deaf.leaks.empty());
  CHECK(!deaf.causal());  // it shows nothing

  auto other = toy_logits(codes, false);
  CHECK(agreement_of(toy_logits(codes, false), other, order).largest == 0);
  other.of[1][3 * 5 + 2] += 0.25f;
  const auto found = agreement_of(toy_logits(codes, false), other, order);
  CHECK(found.largest == Approx(0.25));
  CHECK(found.worst_stream == 1);
  CHECK(found.worst_frame == 3);
}
