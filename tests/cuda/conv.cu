#include "agreement.cuh"
#include "mttt/codec/conv_transpose1d.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>
using Plain = Conv1d<Conv1dConfig{.in = 3, .out = 5, .kernel = 7}, B>;
template <class B>
using Strided = Conv1d<Conv1dConfig{.in = 4, .out = 6, .kernel = 7, .stride = 3}, B>;
template <class B>
using Dilated = Conv1d<Conv1dConfig{.in = 3, .out = 4, .kernel = 3, .dilation = 4}, B>;
template <class B>
using Replicate =
    Conv1d<Conv1dConfig{
               .in = 4, .out = 4, .kernel = 4, .stride = 2, .bias = false, .pad_mode = PadMode::replicate},
           B>;
template <class B>
using Grouped = Conv1d<Conv1dConfig{.in = 6, .out = 9, .kernel = 4, .stride = 2, .groups = 3}, B>;
template <class B>
using Depthwise =
    Conv1d<Conv1dConfig{
               .in = 5, .out = 5, .kernel = 3, .dilation = 2, .groups = 5, .pad_mode = PadMode::replicate},
           B>;
}  // namespace

TEST_CASE("CUDA: Conv1d") { hold_to_agreement_in<Plain, float, double>({.steps = 25}); }
TEST_CASE("CUDA: Conv1d with a stride") { hold_to_agreement_in<Strided, float, double>({.steps = 20}); }
TEST_CASE("CUDA: Conv1d at many sessions") {
  hold_to_agreement_in<Strided, float, double>({.batch = 19, .steps = 4});
}
TEST_CASE("CUDA: Conv1d with dilation") { hold_to_agreement_in<Dilated, float, double>(); }
TEST_CASE("CUDA: Conv1d that repeats the first sample") { hold_to_agreement_in<Replicate, float, double>(); }
TEST_CASE("CUDA: Conv1d with groups") { hold_to_agreement_in<Grouped, float, double>(); }
TEST_CASE("CUDA: Conv1d, depthwise") { hold_to_agreement_in<Depthwise, float, double>(); }

// Products of windows. Small whole numbers are exact in TF32, and so are their sums in float32: whatever a kernel
// mixes up shows.
namespace {
template <template <class> class Block>
void windows_are_exact(Index sessions, Index steps) {
  using Host = Block<Cpu<float>>;
  using Device = Block<Cuda<float>>;
  constexpr Index in = Host::in, out = Host::out;
  Cpu<float> cpu;
  Cuda<float> be;
  be.tf32(true);
  Rng rng(1);
  const auto whole = [&](auto& t, Index least, Index most) {
    for (Index i = 0; i < t.size(); ++i)
      t.data()[i] = static_cast<float>(
          least + static_cast<Index>(rng.below(static_cast<std::uint64_t>(most - least + 1))));
  };
  Store<typename Host::Params, Cpu<float>> params(cpu), grad(cpu), got_grad(cpu);
  for_each_tensor([&](std::string_view, auto& t) { whole(t, -3, 3); }, *params);
  const Index out_steps = out_time<Host>(steps);
  const auto make = [](Index channels, Index b, Index t) {
    return std::vector<float>(static_cast<std::size_t>(channels * b * t));
  };
  auto x = make(in, sessions, steps), y = make(out, sessions, out_steps), dy = y, dx = x;
  Sequence<float, in> to_x(x.data(), {sessions, steps, in}), to_dx(dx.data(), {sessions, steps, in});
  Sequence<float, out> to_y(y.data(), {sessions, out_steps, out}),
      to_dy(dy.data(), {sessions, out_steps, out});
  whole(to_x, -4, 4);
  whole(to_dy, -4, 4);
  {
    const auto scope = cpu.scope();
    typename Host::Saved saved;
    Host::forward(cpu, *params, to_x, to_y, saved);
    Host::backward(cpu, *params, saved, to_dy, to_dx, *grad);
    Host::backward(cpu, *params, saved, to_dy, to_dx, *grad);
  }
  Store<typename Device::Params, Cuda<float>> device_params(be), device_grad(be);
  upload(be, params, device_params);
  const auto scope = be.scope();
  const auto at_x = be.make<float, dyn, dyn, in>(sessions, steps),
             at_dx = be.make<float, dyn, dyn, in>(sessions, steps);
  const auto at_y = be.make<float, dyn, dyn, out>(sessions, out_steps),
             at_dy = be.make<float, dyn, dyn, out>(sessions, out_steps);
  be.to_device(x.data(), at_x.data(), at_x.size());
  be.to_device(dy.data(), at_dy.data(), at_dy.size());
  typename Device::Saved saved;
  Device::forward(be, *device_params, at_x, at_y, saved);
  Device::backward(be, *device_params, saved, at_dy, at_dx, *device_grad);
  const Sequence<float, in> none(nullptr, {sessions, steps, in});
  if constexpr (requires { Host::context; }) {
    Device::backward(be, *device_params, saved, at_dy, none, *device_grad);
  } else {
    Device::backward(be, *device_params, saved, at_dy, at_dx, *device_grad);
  }
  auto got_y = y, got_dx = dx;
  be.to_host(at_y.data(), got_y.data(), at_y.size());
  be.to_host(at_dx.data(), got_dx.data(), at_dx.size());
  download(be, device_grad, got_grad);
  CHECK((got_y == y));
  CHECK((got_dx == dx));
  laws::detail::Worst worst;
  laws::detail::compare(*got_grad, *grad, worst, "gradient");
  INFO(worst.name);
  CHECK(worst.error == 0);
}
template <class B>
using First = Conv1d<Conv1dConfig{.in = 1, .out = 20, .kernel = 7}, B>;
template <class B>
using Narrow = Conv1d<Conv1dConfig{.in = 20, .out = 10, .kernel = 3}, B>;
template <class B>
using Pointwise = Conv1d<Conv1dConfig{.in = 10, .out = 20, .kernel = 1}, B>;
template <class B>
using Last = Conv1d<Conv1dConfig{.in = 20, .out = 1, .kernel = 3}, B>;
template <class B>
using Down = Conv1d<Conv1dConfig{.in = 20, .out = 40, .kernel = 8, .stride = 4}, B>;
template <class B>
using Odd = Conv1d<Conv1dConfig{.in = 5, .out = 67, .kernel = 9, .stride = 3, .bias = false}, B>;
template <class B>
using Up = ConvTranspose1d<ConvTranspose1dConfig{.in = 40, .out = 20, .kernel = 8, .stride = 4}, B>;
template <class B>
using OddUp = ConvTranspose1d<ConvTranspose1dConfig{.in = 3, .out = 5, .kernel = 9, .stride = 3}, B>;
}  // namespace

TEST_CASE("CUDA: convolutions as products of windows") {
  windows_are_exact<First>(3, 1000);
  windows_are_exact<Narrow>(3, 30000);
  windows_are_exact<Pointwise>(2, 333);
  windows_are_exact<Last>(3, 77);
  windows_are_exact<Down>(3, 400);
  windows_are_exact<Odd>(5, 150);
  windows_are_exact<Up>(3, 101);
  windows_are_exact<OddUp>(3, 70);
}
