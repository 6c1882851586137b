// Training of a codec: the loss, its terms, every gradient and what the codebooks learn, as on the CPU; the same
// of a discriminator.
#include "agreement.cuh"
#include "laws/mimi_small.hpp"
#include "mttt/train/codec_loss.hpp"

namespace {
using namespace mttt;

/// One backend's results, in host memory.
template <template <class> class Backend, class T>
struct Pass {
  using B = Backend<T>;
  using Codec = Mimi<mttt::testing::mimi_small, B>;
  using Host = Mimi<mttt::testing::mimi_small, Cpu<T>>;
  B be;
  Cpu<T> cpu;
  Store<typename Codec::Params, B> params{be}, grad{be};
  Store<typename Host::Params, Cpu<T>> learnt{cpu}, gradient{cpu};
  CodecLoss loss{}, quiet{};
  std::vector<CodebookUse> use;

  Pass(const Store<typename Host::Params, Cpu<T>>& start, const std::vector<T>& sound, Index sessions,
       bool tf32 = false) {
    if constexpr (requires { be.tf32(tf32); }) be.tf32(tf32);
    const auto samples = static_cast<Index>(sound.size()) / sessions;
    CodecTraining<Codec, B> training(be, {.spectra = {.windows = {8, 16, 32}}, .seed = 5});
    const auto scope = be.scope();
    const auto pcm = be.template make<T, dyn, dyn, 1>(sessions, samples);
    be.to_device(sound.data(), pcm.data(), pcm.size());
    upload(be, start, params);
    // Passes of 1 to 3 codebooks. The gradients add up: one that a later pass overwrote would show.
    for (int pass = 0; pass < 4; ++pass) loss = training(*params, pcm, pass, &*grad);
    quiet = training(*params, pcm, 0, nullptr);
    use = training.codebook_use();
    download(be, params, learnt);
    download(be, grad, gradient);
  }
};

template <class T>
void compare(double tolerance, bool tf32 = false) {
  using M = Mimi<mttt::testing::mimi_small, Cpu<T>>;
  Cpu<T> cpu;
  Rng rng(3);
  auto start = laws::random_params<M>(cpu, {}, rng);
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        if (name.ends_with("cluster_usage")) cpu.fill(t.data(), t.size(), T(0.5));
      },
      *start);
  start->quantizer.rvq_first.layers[0].cluster_usage(4) = T(1e-3);  // starts anew
  constexpr Index sessions = 3;
  std::vector<T> sound(sessions * 20 * M::frame_size);  // steps enough for products of all sessions
  for (T& x : sound) x = static_cast<T>(0.3 * rng.normal());
  const Pass<Cpu, T> expected(start, sound, sessions);
  const Pass<Cuda, T> got(start, sound, sessions, tf32), again(start, sound, sessions, tf32);

  laws::detail::Worst worst;
  laws::detail::compare(*again.gradient, *got.gradient, worst, "gradient");
  CHECK(worst.error == 0);  // the same bits twice
  if (tf32) {
    double away = 0, length = 0;
    for_each_tensor(
        [&](std::string_view, auto& mine, auto& exact) {
          for (Index i = 0; i < mine.size(); ++i) {
            away += std::pow(mine.data()[i] - exact.data()[i], 2);
            length += std::pow(exact.data()[i], 2);
          }
        },
        *got.gradient, *expected.gradient);
    INFO("gradient: " << std::sqrt(away / length) << ", tolerance " << tolerance);
    CHECK(away <= tolerance * tolerance * length);
  } else {
    laws::detail::compare(*got.gradient, *expected.gradient, worst, "gradient");
  }
  laws::detail::compare(*got.learnt, *expected.learnt, worst, "codebooks");
  INFO(worst.name << ": " << worst.error << ", tolerance " << tolerance);
  CHECK(worst.error <= tolerance);
  const auto same = [&](const CodecLoss& a, const CodecLoss& b) {
    CHECK(a.spectral == Approx(b.spectral).epsilon(tolerance));
    CHECK(a.waveform == Approx(b.waveform).epsilon(tolerance));
    CHECK(a.commitment == Approx(b.commitment).epsilon(tolerance));
    CHECK(a.total == Approx(b.total).epsilon(tolerance));
    CHECK(a.snr == Approx(b.snr).epsilon(tolerance).margin(10 * tolerance));
    CHECK(a.codebooks == b.codebooks);
  };
  same(got.loss, expected.loss);
  same(got.quiet, expected.quiet);
  REQUIRE(expected.use[0].restarts > 0);
  for (std::size_t q = 0; q < expected.use.size(); ++q) {
    CHECK(got.use[q].restarts == expected.use[q].restarts);
    CHECK(got.use[q].perplexity == Approx(expected.use[q].perplexity).epsilon(tolerance));
  }
}
}  // namespace

TEST_CASE("CUDA: the training loss of a codec in float64") { compare<double>(1e-10); }
// Chains of 40 products and norms, sums of up to 720 terms: as agreement_of, without its square root of
// stages.
TEST_CASE("CUDA: the training loss of a codec in float32") { compare<float>(1e-3); }
// Factors are off by up to 2^-11 (5e-4), of 40 products in a row: as the discriminator below, by length.
TEST_CASE("CUDA: the training loss of a codec in TF32") { compare<float>(1e-2, true); }

namespace {
constexpr DiscriminatorConfig judge_config{.filters = 8, .windows = {256, 64, 16}};

/// One backend's losses and gradients, in host memory: of the discriminator's weights, then of the replies.
template <class B>
std::pair<AdversaryLoss, std::vector<double>> judged(const std::vector<double>& sound,
                                                     const std::vector<double>& start, Index sessions) {
  using Judge = SpectralDiscriminator<judge_config, B>;
  using A = typename B::Accum;
  B be;
  auto full = be.template as<A>();
  Cpu<A> host;
  Store<typename SpectralDiscriminator<judge_config, Cpu<A>>::Params, Cpu<A>> weights(host);
  auto from = start.begin();
  for_each_tensor(
      [&](std::string_view, auto& t) {
        for (Index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<A>(*from++);
      },
      *weights);
  Store<typename Judge::Params, decltype(full)> params(full), grad(full);
  upload(full, weights, params);
  typename Judge::Bases bases(be);
  const std::vector<A> narrow(sound.begin(), sound.end());
  const Index n = static_cast<Index>(sound.size()) / 2, each = n / sessions;
  const auto pcm = be.template make<A, 2, dyn>(n);
  const auto dy = be.template make<A, dyn>(n);
  auto* sums = be.template make<typename Judge::Sums, 1>().data();
  full.to_device(narrow.data(), pcm.data(), 2 * n);
  full.fill(dy.data(), n, A(0));
  full.fill(sums, 1, typename Judge::Sums{});
  Judge::queue(be, *params, bases, {pcm[0].data(), sessions, each - 5, each},
               {pcm[1].data(), sessions, each - 5, each}, {1, 2, 3}, sums, &*grad, dy.data());
  typename Judge::Sums got;
  full.to_host(sums, &got, 1);
  std::vector<A> of_reply(static_cast<std::size_t>(n));
  full.to_host(dy.data(), of_reply.data(), n);
  download(full, grad, weights);
  std::vector<double> all;
  for_each_tensor([&](std::string_view, auto& t) { all.insert(all.end(), t.data(), t.data() + t.size()); },
                  *weights);
  all.insert(all.end(), of_reply.begin(), of_reply.end());
  return {Judge::losses(got, 3), all};
}

/// Angle and length are what an optimiser sees.
template <class Got, class Expected>
void compare_judges(double tolerance) {
  Rng rng(7);
  constexpr Index sessions = 3;
  std::vector<double> sound(2 * sessions * 9000);  // frames enough for products cut into slices
  for (double& x : sound) x = 0.3 * rng.normal();
  Cpu<double> host;
  using Judge = SpectralDiscriminator<judge_config, Cpu<double>>;
  auto params = laws::random_params<Judge>(host, {.perturbation = 0.05}, rng);
  std::vector<double> start;
  for_each_tensor(
      [&](std::string_view, auto& t) { start.insert(start.end(), t.data(), t.data() + t.size()); }, *params);
  const auto [loss, gradient] = judged<Got>(sound, start, sessions);
  const auto [expected, exact] = judged<Expected>(sound, start, sessions);
  CHECK(loss.discriminator == Approx(expected.discriminator).epsilon(tolerance));
  CHECK(loss.adversarial == Approx(expected.adversarial).epsilon(tolerance).margin(tolerance));
  CHECK(loss.features == Approx(expected.features).epsilon(tolerance));
  REQUIRE(gradient.size() == exact.size());
  const auto compare = [&](std::size_t from, std::size_t to, const char* what) {
    double away = 0, length = 0;
    for (std::size_t i = from; i < to; ++i) {
      away += (gradient[i] - exact[i]) * (gradient[i] - exact[i]);
      length += exact[i] * exact[i];
    }
    INFO(what << ": " << std::sqrt(away / length) << ", tolerance " << tolerance);
    REQUIRE(length > 0);
    CHECK(std::sqrt(away / length) <= tolerance);
  };
  compare(0, start.size(), "gradient of the discriminator");
  compare(start.size(), exact.size(), "gradient of the replies");
}
}  // namespace

TEST_CASE("CUDA: the discriminator in float64") { compare_judges<Cuda<double>, Cpu<double>>(1e-10); }
// A number whose sign a rounding turns goes through the other slope: its gradient is off by 0.8 of itself. In bf16
// these are about 1 % of a layer's, of six layers: sqrt(6 * 0.01) * 0.8 = 0.2.
TEST_CASE("CUDA: the discriminator in float32") { compare_judges<Cuda<float>, Cpu<double>>(1e-3); }
TEST_CASE("CUDA: the discriminator in bf16") { compare_judges<Cuda<bf16>, Cpu<double>>(0.2); }
