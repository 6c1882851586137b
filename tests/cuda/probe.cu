// Probes of TTT layers: CPU and GPU see the same, of a forward pass, through fused kernels too, and of a
// stream.
#include "mttt/lm/probes.hpp"
#include "temporal_small.cuh"

namespace {
using namespace mttt;

/// The same parameters and inputs on both sides.
template <template <class> class Block, class T>
struct Pair {
  using Host = Block<Cpu<T>>;
  using Device = Block<Cuda<T>>;
  static constexpr Index dim = Host::in;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng{9};
  Store<typename Host::Params, Cpu<T>> here = laws::random_params<Host>(cpu, {.perturbation = 0.2}, rng);
  Store<typename Device::Params, Cuda<T>> there{gpu};
  Pair() { upload(gpu, here, there); }

  Sequence<T, dim> host_input(Index batch, Index steps) {
    const auto x = cpu.template make<T, dyn, dyn, dim>(batch, steps);
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(rng.normal());
    return x;
  }
  Sequence<T, dim> to_gpu(Sequence<T, dim> x) {
    const auto y = gpu.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1));
    gpu.to_device(x.data(), y.data(), x.size());
    return y;
  }
};

/// Numbers of all tokens of a forward pass, then of a stream over them.
template <class Learner, class B>
std::vector<float> all_numbers(B& be, const typename Learner::Params& p,
                               Sequence<const typename B::Scalar, Learner::in> x) {
  const Index batch = x.extent(0), steps = x.extent(1);
  const auto numbers = be.template make<float, dyn, dyn, Learner::H, inner_numbers>(batch, steps);
  typename Learner::Saved saved;
  const auto y = be.template make<typename B::Scalar, dyn, dyn, Learner::in>(batch, steps);
  Learner::forward(be, p, x, y, saved);
  probe_forward<Learner>(be, p, saved, numbers);
  std::vector<float> found = mttt::detail::on_host(be, numbers);

  Store<typename Learner::State, B> state(be, batch);
  Learner::reset(be, p, *state, Mask{});
  be.fill(numbers.data(), numbers.size(), 0.0f);
  probe_step<Learner>(be, p, *state, x, numbers);
  const auto streamed = mttt::detail::on_host(be, numbers);
  found.insert(found.end(), streamed.begin(), streamed.end());
  return found;
}

void expect_near(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::abs(double(a[i]) - double(b[i])) / (1e-3 + std::abs(double(a[i]))));
  CHECK(worst < tolerance);
}

template <template <class> class Block, class T>
void numbers_agree(double tolerance) {
  Pair<Block, T> pair;
  const auto x = pair.host_input(2, 40);  // two mini-batches of 16 and a part
  expect_near(all_numbers<typename Pair<Block, T>::Host>(pair.cpu, *pair.here, x),
              all_numbers<typename Pair<Block, T>::Device>(pair.gpu, *pair.there, pair.to_gpu(x)), tolerance);
}

template <class B>
using TttLinear = Ttt<TttConfig{.dim = 128, .num_heads = 2, .mini_batch_size = 16}, B>;
template <class B>
using TttMlp = Ttt<TttConfig{.dim = 128, .num_heads = 2, .mini_batch_size = 16, .layers = 2}, B>;
template <class B>
using Parallel = Temporal<mttt::testing::temporal_small(Placement::parallel, 1), B>;

template <class Transformer, class B>
std::vector<LayerCurves> watched(B& be, const typename Transformer::Params& p,
                                 Sequence<const float, Transformer::dim> x) {
  Store<typename Transformer::State, B> state(be, 1);
  Transformer::reset(be, p, *state, Mask{});
  StreamProbe<Transformer, B> probe(be);
  for (Index at = 0, n = 0; at < x.extent(1); at += n) {
    n = std::min<Index>(at == 0 ? 1 : 6, x.extent(1) - at);
    const auto y = be.template make<float, dyn, dyn, Transformer::dim>(1, n);
    probe.step(p, *state, {x.data() + at * Transformer::dim, {1, n, Transformer::dim}}, y);
  }
  return probe.curves;
}
}  // namespace

TEST_CASE("CUDA: probes of TTT-Linear") {
  SECTION("float32") { numbers_agree<TttLinear, float>(2e-3); }
  SECTION("bfloat16") { numbers_agree<TttLinear, bf16>(5e-2); }  // keys and targets are rounded to 3 digits
}
TEST_CASE("CUDA: probes of TTT-MLP") { numbers_agree<TttMlp, float>(2e-3); }

TEST_CASE("CUDA: a stream that is watched") {
  Pair<Parallel, float> pair;
  const auto x = pair.host_input(1, 23);
  const auto here = watched<Parallel<Cpu<float>>>(pair.cpu, *pair.here, x);
  const auto there = watched<Parallel<Cuda<float>>>(pair.gpu, *pair.there, pair.to_gpu(x));
  REQUIRE(here.size() == there.size());
  for (std::size_t l = 0; l < here.size(); ++l) {
    for (const auto curve :
         {&LayerCurves::at_start, &LayerCurves::before, &LayerCurves::after, &LayerCurves::drift,
          &LayerCurves::base, &LayerCurves::branch, &LayerCurves::gated}) {
      REQUIRE((here[l].*curve).size() == 23);
      for (std::size_t t = 0; t < 23; ++t)
        CHECK((there[l].*curve)[t] == Approx((here[l].*curve)[t]).epsilon(2e-3).margin(1e-5));
    }
  }
}
