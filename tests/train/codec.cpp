// Training of a codec: gradients of its losses, the codebooks' averages and restarts, and that it learns.
#include "mttt/train/codec_loss.hpp"

#include "catch.hpp"
#include "laws/mimi_small.hpp"

namespace {
using namespace mttt;
using B = Cpu<double>;
using Codec = Mimi<mttt::testing::mimi_small, B>;
using Training = CodecTraining<Codec, B>;
using Rvq = RvqTraining<Codec::config.quantizer, B>;
constexpr Index card = Codec::card, dim = Codec::config.quantizer.codebook_dim;

/// Sessions of noise, and of noise that is another's.
struct Sounds {
  B be;
  Rng rng{5};
  Tensor<double, dyn, dyn> noise(Index sessions, Index samples) {
    const auto x = be.make<double, dyn, dyn>(sessions, samples);
    laws::fill_normal(x, 0.3, rng);
    return x;
  }
};

struct Setup {
  B be;
  Rng rng{3};
  Store<Codec::Params, B> params = laws::random_params<Codec>(be, {}, rng);
  Sequence<double, 1> pcm = be.make<double, dyn, dyn, 1>(2, 6 * Codec::frame_size);

  Setup() {
    for_each_tensor(
        [&](std::string_view name, auto& t) {
          if (name.ends_with("cluster_usage")) be.fill(t.data(), t.size(), 2.0);
        },
        *params);
    laws::fill_normal(pcm, 0.5, rng);
  }
  static CodecLossConfig config(double unquantised) {
    return {.spectra = {.windows = {8, 16, 32}}, .dropout = false, .unquantised = unquantised};
  }
};
}  // namespace

TEST_CASE("The spectral loss: nothing between equals, and a gradient that central differences confirm") {
  Sounds s;
  const auto x = s.noise(2, 75), y = s.noise(2, 75), dy = s.noise(2, 75);
  const auto term = GENERATE(0, 1, 2);
  SpectralConfig config{.windows = {8, 16, 32}, .linear = 0, .log_l1 = 0, .log_l2 = 0};
  (term == 0 ? config.linear : term == 1 ? config.log_l1 : config.log_l2) = 1;
  SpectralLoss<B> loss(s.be, 24000, config);
  const auto value = [&](auto a, auto b) {
    double total = 0;
    loss.queue(a, b, 3, &total);
    return total;
  };
  CHECK(value(x, x) == 0);
  CHECK(value(x, y) > 0.01);
  const std::vector<double> before(dy.data(), dy.data() + dy.size());
  double total = 0;
  loss.queue(x, y, 3, &total, dy);
  for (Index i = 0; i < dy.size(); ++i) dy.data()[i] -= before[static_cast<std::size_t>(i)];  // it is added
  const laws::Options options{.tolerance = 1e-6, .checked_elements = 60};
  laws::detail::Differences differences(options, s.rng);
  differences.check("y", y.data(), dy.data(), y.size(), [&] { return value(x, y); });
  mttt::testing::demand(differences.verdict());
}

TEST_CASE("The spectral loss: a tone's level by its formula, and what is refused") {
  Sounds s;
  // A cosine in the middle of a bin of one window: |S| = amplitude / 2 * sum(w) / sqrt(sum(w^2)).
  const Index n = 64, k = 9;
  const auto x = s.be.make<double, dyn, dyn>(1, n), silence = s.be.make<double, dyn, dyn>(1, n);
  s.be.fill(silence.data(), n, 0.0);
  for (Index i = 0; i < n; ++i) x(0, i) = 0.4 * std::cos(2 * M_PI * double(k * i) / double(n));
  SpectralLoss<B> loss(s.be, 24000, {.windows = {n}, .log_l1 = 0, .log_l2 = 0});
  double total = 0;
  loss.queue(silence, x, 1, &total);
  const auto bank = detail::mel_bank(n, 10, 24000);
  const double level = 0.2 * (n / 2.0) / std::sqrt(n * 3 / 8.0);
  double expected = 0;  // a Hann window leaks half of it into either neighbour
  for (Index m = 0; m < 10; ++m)
    expected += level * (bank[k * 10 + m] + 0.5 * bank[(k - 1) * 10 + m] + 0.5 * bank[(k + 1) * 10 + m]) / 10;
  CHECK(total == Approx(expected).epsilon(1e-4));  // sqrt(... + 1e-12) of the other bins
  for (Index m = 0; m < 10; ++m) {
    double sum = 0;
    for (Index bin = 0; bin <= n / 2; ++bin) sum += bank[bin * 10 + m];
    CHECK(sum > 0.5);  // no band between two bins
  }
  CHECK_THROWS_WITH((SpectralLoss<B>(s.be, 24000, {.windows = {30}})), test::contains("multiples of 4"));
  CHECK_THROWS_WITH(loss.queue(s.noise(1, 63), s.noise(1, 63), 1, &total), test::contains("63 samples"));
  CHECK_THROWS_WITH(loss.queue(s.noise(1, 80), s.noise(1, 81), 1, &total),
                    test::contains("different shapes"));
}

TEST_CASE("The whole loss: gradients of encoder, decoder and projections by central differences") {
  // Without quantisation nothing is passed straight through: the gradient is that of the function. Codebooks
  // that do not move (decay 1, no restarts) keep the function the same.
  Setup s;
  auto config = Setup::config(1);
  config.codebooks = {.decay = 1, .restart = 0};
  Training training(s.be, config);
  Store<Codec::Params, B> grad(s.be), unused(s.be);
  training(*s.params, s.pcm, 0, &*grad);
  const laws::Options options{.checked_elements = 3};
  laws::detail::Differences differences(options, s.rng);
  for_each_tensor(
      [&](std::string_view name, auto& p, auto& g) {
        if (name.find("_codebook") != name.npos) return;
        differences.check(name, p.data(), g.data(), p.size(),
                          [&] { return training(*s.params, s.pcm, 0, &*unused).total; });
      },
      *s.params, *grad);
  mttt::testing::demand(differences.verdict());
}

TEST_CASE("The quantiser: straight through as without commitment, and the commitment's own gradient") {
  Setup s;
  const Index n = GENERATE(1, 3), sessions = 2, steps = 4;
  Store<Codec::Codebooks, B> books(s.be);
  Codec::derive(s.be, *s.params, *books);
  const auto make = [&] { return s.be.make<double, dyn, dyn, 8>(sessions, steps); };
  const auto x = make(), y = make(), dy = make(), dx = make(), plain_y = make(), plain_dx = make();
  laws::fill_normal(x, 1, s.rng);
  laws::fill_normal(dy, 1, s.rng);
  const auto codes = s.be.make<std::int32_t, dyn, dyn, dyn>(sessions, n, steps);
  const auto& p = s.params->quantizer;
  using Q = Codec::Quantizer;
  Q::Saved plain;
  Q::forward(s.be, p, *books, x, codes, plain_y, plain);
  Rvq::Saved saved;
  double commitment = 0;
  Rvq::forward(s.be, p, *books, x, {}, codes, y, saved, &commitment, 2);
  CHECK(laws::largest_difference(y.data(), plain_y.data(), y.size()) < 1e-12);
  Store<Q::Params, B> grad(s.be), plain_grad(s.be);
  Q::backward(s.be, p, plain, dy, plain_dx, *plain_grad);
  Rvq::backward(s.be, p, saved, dy, dx, *grad, 0);
  CHECK(laws::largest_difference(dx.data(), plain_dx.data(), dx.size()) < 1e-12);
  CHECK(laws::largest_difference(grad.data(), plain_grad.data(), 0) == 0);
  for_each_tensor(
      [](std::string_view name, const auto& a, const auto& b) {
        INFO(name);
        CHECK(laws::largest_difference(a.data(), b.data(), a.size()) < 1e-12);
      },
      *grad, *plain_grad);

  s.be.fill(dy.data(), dy.size(), 0.0);  // the commitment alone
  Store<Q::Params, B> pull(s.be);
  Rvq::backward(s.be, p, saved, dy, dx, *pull, 2);
  const auto loss = [&] {
    double total = 0;
    Rvq::forward(s.be, p, *books, x, {}, codes, y, saved, &total, 2);
    return total;
  };
  const laws::Options options{.checked_elements = 16};
  laws::detail::Differences differences(options, s.rng);
  differences.check("x", x.data(), dx.data(), x.size(), loss);
  auto& first = s.params->quantizer.rvq_first.input_proj;
  differences.check("input_proj", first.data(), pull->rvq_first.input_proj.data(), first.size(), loss);
  mttt::testing::demand(differences.verdict());
  CHECK(commitment == Approx(loss()));
}

TEST_CASE(
    "Codebooks: averages equal those by the definition, unused codes start anew, levels out of use stay") {
  Setup s;
  const Index n = 2, sessions = 2, steps = 15, rows = sessions * steps;
  const CodebookLearning options{.decay = 0.8, .restart = 0.1};
  Store<Codec::Codebooks, B> books(s.be);
  auto& p = s.params->quantizer;
  auto& level = p.rvq_rest.layers[0];  // the first of the second branch: level 1
  level.cluster_usage(4) = 1e-3;       // a dead code, far away
  for (Index i = 0; i < dim; ++i) level.embedding_sum(4, i) = 1;
  Codec::derive(s.be, *s.params, *books);
  const auto x = s.be.make<double, dyn, dyn, 8>(sessions, steps),
             y = s.be.make<double, dyn, dyn, 8>(sessions, steps);
  laws::fill_normal(x, 1, s.rng);
  const auto codes = s.be.make<std::int32_t, dyn, dyn, dyn>(sessions, n, steps);
  Rvq::Saved saved;
  double commitment = 0;
  Rvq::forward(s.be, p, *books, x, {}, codes, y, saved, &commitment);
  std::vector<double> projected(static_cast<std::size_t>(rows * dim));
  s.be.matmul(x.matrix(), p.rvq_rest.project_in().t(), Matrix<double>{projected.data(), rows, dim, dim});

  std::vector<double> usage(card), sum(card * dim);
  for (Index c = 0; c < card; ++c) usage[c] = 0.8 * level.cluster_usage(c);
  for (Index i = 0; i < card * dim; ++i) sum[i] = 0.8 * level.embedding_sum.data()[i];
  for (Index r = 0; r < rows; ++r) {
    const auto c = codes(r / steps, 1, r % steps);
    usage[c] += 0.2;
    for (Index i = 0; i < dim; ++i) sum[c * dim + i] += 0.2 * projected[r * dim + i];
  }
  double mean = 0;
  for (const double u : usage) mean += u / card;
  const auto untouched = p.rvq_rest.layers[1];  // level 2 takes no part
  const std::vector<double> others(untouched.embedding_sum.data(),
                                   untouched.embedding_sum.data() + card * dim);

  Store<Rvq::Survey, B> survey(s.be);
  Store<Codec::Params, B> before(s.be, s.params);
  Rvq::learn(s.be, p, saved, options, 7, 11, *survey);
  Index restarted = 0;
  for (Index c = 0; c < card; ++c) {
    const bool dead = usage[c] < 0.1 * mean;
    restarted += dead;
    if (dead) {
      CHECK(level.cluster_usage(c) == Approx(mean));
      bool found = false;  // it is one of the rows
      for (Index r = 0; r < rows; ++r) {
        double away = 0;
        for (Index i = 0; i < dim; ++i)
          away += std::abs(level.embedding_sum(c, i) / level.cluster_usage(c) - projected[r * dim + i]);
        found = found || away < 1e-9;
      }
      CHECK(found);
      continue;
    }
    CHECK(level.cluster_usage(c) == Approx(usage[c]));
    for (Index i = 0; i < dim; ++i)
      CHECK(level.embedding_sum(c, i) == Approx(sum[c * dim + i]).margin(1e-12));
  }
  REQUIRE(restarted > 0);
  REQUIRE(restarted < card);
  CHECK(survey->use(1).restarts == static_cast<double>(restarted));
  CHECK(survey->use(1).usage == Approx(mean * card));
  CHECK(std::equal(others.begin(), others.end(), untouched.embedding_sum.data()));

  // The same seed and pass, the same bits; another pass draws other rows.
  const auto again = [&](std::uint64_t pass) {
    Store<Codec::Params, B> other(s.be, before);
    Rvq::learn(s.be, other->quantizer, saved, options, 7, pass, *survey);
    return std::equal(other.data(), other.data() + other.bytes(), s.params.data());
  };
  CHECK(again(11));
  CHECK(!again(12));
}

TEST_CASE("Codebooks at the start: usage of one pass, and codes of a single row start anew at once") {
  Setup s;
  const Index n = 40, rows = 10;
  const auto latents = s.be.make<double, dyn, 8>(n);
  laws::fill_normal(latents, 1, s.rng);
  auto& p = s.params->quantizer;
  Store<Codec::Params, B> plain(s.be, s.params);
  Rng rng(1), same(1);
  init_codebooks<Codec::Quantizer>(s.be, plain->quantizer, latents, same);
  Rvq::start(s.be, p, latents, rows, rng);
  int kept = 0;
  for (Index c = 0; c < card; ++c) {
    const auto &level = p.rvq_rest.layers[1], &before = plain->quantizer.rvq_rest.layers[1];
    const double share = before.cluster_usage(c) > 1 ? double(rows) / double(n) : 0;
    kept += share > 0;
    CHECK(level.cluster_usage(c) == Approx(share * before.cluster_usage(c)));
    for (Index i = 0; i < dim; ++i)
      CHECK(level.embedding_sum(c, i) == Approx(share * before.embedding_sum(c, i)));
  }
  CHECK(kept > 2);
}

/// A backend that gets its work in large pieces, as a GPU does, on the CPU.
struct Large : Cpu<double> {
  static constexpr bool host_memory = false;
};

TEST_CASE("Work in large pieces: the gradients of convolutions over all sessions at once") {
  using Conv = Conv1d<Conv1dConfig{.in = 3, .out = 2, .kernel = 4, .stride = 2}, Large>;
  using Transposed =
      ConvTranspose1d<ConvTranspose1dConfig{.in = 3, .out = 2, .kernel = 5, .stride = 2}, Large>;
  Large be;
  mttt::testing::demand(laws::gradient<Conv>(be, {.batch = 3, .steps = 18}));
  mttt::testing::demand(laws::gradient<Transposed>(be, {.batch = 3, .steps = 18}));
}

TEST_CASE("Work in large pieces: products and sums of very many rows") {
  Large be;
  Rng rng(1);
  const Index rows = 9 * 4096 + 123, m = 3, n = 5;
  const auto a = be.make<double, dyn, dyn>(rows, m), b = be.make<double, dyn, dyn>(rows + 1, n - 1);
  const auto got = be.make<double, dyn, dyn>(m, n), expected = be.make<double, dyn, dyn>(m, n);
  laws::fill_normal(a, 1, rng);
  laws::fill_normal(b, 1, rng);
  for (Index i = 0; i < m * n; ++i) got.data()[i] = expected.data()[i] = double(i);
  const Matrix<const double> overlapping{b.data(), rows, n, n - 1};
  detail::add_tall_product<Large, double>(be, a.matrix(), overlapping, got.matrix());
  be.matmul(a.matrix().t(), overlapping, expected.matrix(), 1, 1);
  CHECK(laws::largest_difference(got.data(), expected.data(), got.size()) < 1e-12);
  const auto sums = be.make<double, dyn>(m), plain = be.make<double, dyn>(m);
  for (Index i = 0; i < m; ++i) sums(i) = plain(i) = double(i);
  detail::sum_many_rows(be, static_cast<const double*>(a.data()), sums.data(), rows, m);
  sum_columns(be, static_cast<const double*>(a.data()), plain.data(), rows, m);
  CHECK(laws::largest_difference(sums.data(), plain.data(), m) < 1e-12);
}

TEST_CASE("What is drawn follows seed and pass; a loss that is not finite leaves the codebooks alone") {
  Setup s;
  auto config = Setup::config(0.5);
  config.dropout = true;
  Training training(s.be, config);
  Store<Codec::Params, B> grad(s.be);
  std::array<int, 4> drawn{};
  for (int pass = 0; pass < 30; ++pass) ++drawn[training(*s.params, s.pcm, pass, &*grad).codebooks];
  CHECK(drawn[0] == 0);
  for (int n = 1; n <= 3; ++n) CHECK(drawn[n] > 3);
  CHECK(training(*s.params, s.pcm, 0, nullptr).codebooks == 3);
  const Store<Codec::Params, B> kept(s.be, s.params);
  s.pcm(1, 5, 0) = NAN;
  CHECK(!std::isfinite(training(*s.params, s.pcm, 1, &*grad).total));
  CHECK(std::equal(kept.data(), kept.data() + kept.bytes(), s.params.data()));
}

namespace {
constexpr DiscriminatorConfig judge_config{.filters = 8, .windows = {32, 16}};
using Judge = SpectralDiscriminator<judge_config, B>;

/// Noise, other noise for replies, and a discriminator whose weights are all other than at the start.
struct Trial {
  Sounds s;
  Store<Judge::Params, B> params = laws::random_params<Judge>(s.be, {.perturbation = 0.05}, s.rng);
  Judge::Bases bases{s.be};
  static constexpr Index sessions = 2, samples = 75, stride = 80;
  Tensor<double, dyn, dyn> x = s.noise(sessions, stride), y = s.noise(sessions, stride);

  Judge::Sums sums(const Judge::Weights& weights, Judge::Params* grad, double* dy, Index first = 0,
                   Index count = sessions) {
    Judge::Sums sums{};
    const auto some = [&](auto& sound) {
      return Sounding<const double>{sound.data() + first * stride, count, samples, stride};
    };
    Judge::queue(s.be, *params, bases, some(x), some(y), weights, &sums, grad, dy);
    return sums;
  }
  AdversaryLoss losses(Index first = 0, Index count = sessions) {
    return Judge::losses(sums({}, nullptr, nullptr, first, count), 2);
  }
};
}  // namespace

TEST_CASE("The discriminator: gradients of its own loss and of the codec's by central differences") {
  Trial t;
  Store<Judge::Params, B> grad(t.s.be);
  const auto dy = t.s.be.make<double, dyn, dyn>(Trial::sessions, Trial::stride);
  t.s.be.fill(dy.data(), dy.size(), 0.25);  // it is added to
  const Judge::Weights weights{.discriminator = 0.5, .adversarial = 2, .features = 3};
  t.sums(weights, &*grad, dy.data());
  for (Index i = 0; i < dy.size(); ++i) dy.data()[i] -= 0.25;
  const laws::Options options{.tolerance = 1e-5, .checked_elements = 6, .difference = 1e-6};
  laws::detail::Differences own(options, t.s.rng);
  for_each_tensor(
      [&](std::string_view name, auto& p, auto& g) {
        own.check(name, p.data(), g.data(), p.size(), [&] { return 0.5 * t.losses().discriminator; });
      },
      *t.params, *grad);
  mttt::testing::demand(own.verdict());
  const laws::Options of_reply{.tolerance = 1e-5, .checked_elements = 60, .difference = 1e-6};
  laws::detail::Differences reply(of_reply, t.s.rng);
  reply.check("y", t.y.data(), dy.data(), dy.size(), [&] {
    const auto loss = t.losses();
    return 2 * loss.adversarial + 3 * loss.features;
  });
  mttt::testing::demand(reply.verdict());
  for (Index b = 0; b < Trial::sessions; ++b)
    for (Index i = Trial::samples; i < Trial::stride; ++i) CHECK(dy(b, i) == 0);  // not judged
}

TEST_CASE("An adversary: its gradient is balanced with the codec's own") {
  Trial t;
  const auto judged = [&](double share) {
    Adversary<judge_config, B> adversary(
        t.s.be, {.adversarial = 2, .features = 3, .share = share, .samples = 40, .seed = 5});
    const auto dy = t.s.be.make<double, dyn, dyn>(Trial::sessions, Trial::stride);
    t.s.be.fill(dy.data(), dy.size(), 0.25);
    adversary(t.x, t.y, dy, 3);
    for (Index i = 0; i < dy.size(); ++i) dy.data()[i] -= 0.25;
    return dy;
  };
  const auto plain = judged(0), balanced = judged(0.75);
  const auto norm = [](const auto& g) {
    return std::sqrt(std::inner_product(g.data(), g.data() + g.size(), g.data(), 0.0));
  };
  const double own = 0.25 * std::sqrt(Trial::sessions * 40.0);  // in what is judged
  CHECK(norm(balanced) == Approx(3 * own));
  for (Index i = 0; i < plain.size(); ++i)  // the same direction
    CHECK(balanced.data()[i] == Approx(plain.data()[i] * norm(balanced) / norm(plain)).margin(1e-12));
}

TEST_CASE("The discriminator: sessions are judged alone, equals have no features apart, and hinges end") {
  Trial t;
  const auto both = t.losses(), first = t.losses(0, 1), second = t.losses(1, 1);
  CHECK(both.discriminator == Approx((first.discriminator + second.discriminator) / 2).epsilon(1e-12));
  CHECK(both.adversarial == Approx((first.adversarial + second.adversarial) / 2).epsilon(1e-12));
  CHECK(both.logit_fake == Approx(-both.adversarial));
  CHECK(both.features > 0.1);
  t.y = t.x;
  const auto equal = t.losses();
  CHECK(equal.features == 0);
  CHECK(equal.logit_fake == Approx(equal.logit_real));
  CHECK(equal.discriminator > 1.9);  // nothing tells them apart: 2 or more
  for (auto& scale : t.params->discriminators) scale.conv_post.bias(0) = 50;  // all are taken for sounds
  Store<Judge::Params, B> grad(t.s.be);
  const auto dy = t.s.be.make<double, dyn, dyn>(Trial::sessions, Trial::stride);
  t.sums({}, &*grad, dy.data());
  CHECK(grad->discriminators[0].conv_post.bias(0) == Approx(0.5));  // the replies pull down, sounds no more
}

TEST_CASE("A convolution over time and frequency is the one of its formula") {
  constexpr Conv2dConfig config{
      .in = 8, .out = 8, .kernel_time = 3, .kernel_band = 9, .stride = 2, .dilation = 2};
  using Conv = Conv2d<config, B>;
  Sounds s;
  Store<Conv::Params, B> params = laws::random_params<Conv>(s.be, {}, s.rng);
  const Index steps = 6, slots = 18, bands = slots - 1, out_slots = Conv::out_slots(slots);
  REQUIRE(out_slots == 10);
  const auto x = s.be.make<double, dyn, dyn, dyn, 8>(2, steps, slots);
  const auto y = s.be.make<double, dyn, dyn, dyn, 8>(2, steps, out_slots);
  laws::fill_normal(x, 1, s.rng);
  for (Index r = 0; r < 2 * steps; ++r) s.be.fill(x.data() + (r * slots + bands) * 8, 8, 0.0);
  Conv::Saved saved;
  Conv::forward(s.be, *params, Conv::derive(s.be, *params), x, y, saved, 0.2);
  double worst = 0;
  for (Index t = 0; t < steps; ++t)
    for (Index f = 0; f < out_slots; ++f)
      for (Index o = 0; o < 8; ++o) {
        double sum = params->bias(o), norm = 0;
        const double* v = params->weight_v.data() + o * 27 * 8;
        for (Index e = 0; e < 27 * 8; ++e) norm += v[e] * v[e];
        for (Index k = 0; k < 3; ++k)
          for (Index l = 0; l < 9; ++l) {
            const Index tt = t + (k - 1) * 2, p = 2 * f + l - 4;
            if (tt < 0 || tt >= steps || p < 0 || p >= bands) continue;
            for (Index i = 0; i < 8; ++i)
              sum += params->weight_g(o) / std::sqrt(norm) * v[(k * 9 + l) * 8 + i] * x(1, tt, p, i);
          }
        const double expected = f + 1 == out_slots ? 0 : std::max(sum, 0.2 * sum);
        worst = std::max(worst, std::abs(y(1, t, f, o) - expected));
      }
  CHECK(worst < 1e-12);
}
