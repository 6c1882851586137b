// Segments that hand fast weights on, and gradients through them, on both backends: by the composed scans
// and, where the backend has them for the shape, by its own.
#include "agreement.cuh"
#include "mttt/nn/recompute.hpp"
#include "mttt/ttt/gate.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;

template <class B>
using Linear12 = Ttt<TttConfig{.dim = 12, .num_heads = 3, .mini_batch_size = 4}, B>;
template <class B>
using Learner = Recompute<Residual<Gated<GateConfig{.initial_alpha = 0.4}, Linear12<B>, B>>>;
/// The width and mini-batch of the models that are trained.
template <class B>
using Linear64 = Ttt<TttConfig{.dim = 128, .num_heads = 2}, B>;
template <class B>
using Mlp64 = Ttt<TttConfig{.dim = 64, .num_heads = 1, .layers = 2}, B>;

template <template <class> class Block, StorageType T>
void hold(const laws::Options& options = {}) {
  Cpu<T> cpu;
  Cuda<T> gpu;
  mttt::testing::demand(
      laws::carried_agrees<Block<Cpu<T>>, Block<Cuda<T>>, typename Block<Cpu<Wide<T>>>::Params>(cpu, gpu,
                                                                                                options));
}
/// More mini-batches than stand between two checkpoints of the backend's own scans.
constexpr laws::Options groups{.batch = 3, .steps = 18};
}  // namespace

// With seed 1 the gradient of base_lr, a single number, is a sum that cancels to a thousandth of its usual size.
TEST_CASE("CUDA: segments of recomputed gated TTT-Linear, float64") { hold<Learner, double>({.seed = 2}); }
TEST_CASE("CUDA: segments of TTT-Linear of heads of 64, bfloat16") { hold<Linear64, bf16>(groups); }
TEST_CASE("CUDA: segments of TTT-MLP of heads of 64, bfloat16") { hold<Mlp64, bf16>(groups); }

TEST_CASE("CUDA: a segment from inside of a mini-batch gives NaN, and is refused by who asks") {
  using B = Cuda<double>;
  using Layer = Linear12<B>;
  B gpu;
  Cpu<double> cpu;
  Rng rng(1);
  const auto params = laws::random_params<Linear12<Cpu<double>>>(cpu, {}, rng);
  Store<Layer::Params, B> device_params(gpu);
  upload(gpu, params, device_params);
  Store<Layer::Carried, B> state(gpu, 2);
  const auto x = cpu.make<double, dyn, dyn, 12>(2, 6);
  laws::fill_normal(x, 1, rng);
  const auto gx = laws::detail::send(gpu, x);
  const auto gy = gpu.make<double, dyn, dyn, 12>(2, 6);
  Layer::Saved saved;
  Layer::forward(gpu, *device_params, gx, gy, saved, {nullptr, &*state});
  CHECK(std::isfinite(laws::detail::fetch(cpu, gpu, gy)(1, 5, 11)));
  const Carry<Layer::Carried> carry{&*state, nullptr};
  Layer::forward(gpu, *device_params, gx, gy, saved, carry);
  CHECK(std::isnan(laws::detail::fetch(cpu, gpu, gy)(1, 5, 11)));
  CHECK_THROWS_WITH(check_carry(gpu, carry, 2, Layer::carry_multiple),
                    mttt::test::contains("found 6; expected a multiple of 4"));
}
