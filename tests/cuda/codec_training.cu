// Training of a codec: the loss, its terms, every gradient and what the codebooks learn, as on the CPU.
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

  Pass(const Store<typename Host::Params, Cpu<T>>& start, const std::vector<T>& sound, Index sessions) {
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
void compare(double tolerance) {
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
  const Pass<Cuda, T> got(start, sound, sessions);

  laws::detail::Worst worst;
  laws::detail::compare(*got.gradient, *expected.gradient, worst, "gradient");
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
