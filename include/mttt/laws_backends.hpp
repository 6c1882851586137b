// The law that a block gives the same numbers on another backend as on the CPU: hold a port to it.
//
//   backends_agree<Block<Cpu<T>>, Block<Cuda<T>>>(cpu, gpu)
//     forward         y
//     backward        dx and the gradient of every parameter, over two passes: the first one's stays in grad
//     step            replies and State of every session, over random chunks, masks and resets
//     and on the other: the same bits when run twice, masked sessions' State untouched to the bit
//   carried_agrees          the same of segments that hand their state on, and of gradients through it
//
// Formula: error = largest |gpu - cpu| of a tensor over the largest |cpu| in it; at most
//          tolerance = 8 epsilon sqrt(length) stages: two orders of a sum of `length` terms differ by about
//          epsilon sqrt(length), and each of a chain of `stages` adds its own. epsilon is that of the type
//          that sums are taken in; storage in bf16 adds its rounding (laws::rounding in laws.hpp).
// Shapes:  (B, T, C) = options.batch, options.steps, Block::in. Params and State are laid out alike on both.
// Units:   `length`: the longer of B T and the widest fan-in; `stages`: one, and one a parameter tensor.
// Errors:  what the blocks throw.
// Not supported: blocks with several inputs; their tests use `agreement` and the helpers here.
// Source:  Higham, "Accuracy and stability of numerical algorithms", section 4.2.
#pragma once

#include <algorithm>
#include <limits>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/carry.hpp"
#include "mttt/laws.hpp"

namespace mttt::laws {

/// The tolerance of comparisons between backends: see the formula above.
template <class T>
double agreement(double length, double stages) {
  const double sums = 8 * epsilon<Wide<T>>() * std::sqrt(length) * stages;
  return std::is_same_v<T, Wide<T>> ? sums : sums + rounding<T>(stages);
}

namespace detail {

/// agreement() of a block with these parameters for so many rows.
template <class T, class P>
double agreement_of(const P& params, Index rows) {
  Index length = rows, stages = 1;
  for_each_tensor(
      [&](std::string_view, const auto& t) {
        length = std::max(length, t.extent(0) == 0 ? 0 : t.size() / t.extent(0));
        ++stages;
      },
      params);
  return agreement<T>(static_cast<double>(length), static_cast<double>(stages));
}

/// The worst of many comparisons, and its name.
struct Worst {
  double error = 0;
  std::string name = "nothing";

  void take(double e, std::string_view where) {
    if (e <= error) return;
    error = e;
    name = where;
  }
};

/// Host copies of tensors in the arena of the GPU live in that of the CPU.
template <class Host, class Device, class T, Index... E>
Tensor<T, E...> fetch(Host& cpu, Device& gpu, Tensor<T, E...> t) {
  const Tensor<T, E...> copy(cpu.template make<T, dyn>(t.size()).data(), t.extents());
  gpu.to_host(t.data(), copy.data(), t.size());
  return copy;
}
template <class Device, class T, Index... E>
Tensor<T, E...> send(Device& gpu, Tensor<T, E...> t) {
  const Tensor<T, E...> copy(gpu.template make<T, dyn>(t.size()).data(), t.extents());
  gpu.to_device(t.data(), copy.data(), t.size());
  return copy;
}

/// All tensors of two aggregates in host memory; whole numbers must be equal.
template <class P, class Q>
void compare(const P& gpu, const Q& cpu, Worst& worst, const std::string& prefix) {
  for_each_tensor(
      [&](std::string_view name, const auto& a, const auto& b) {
        using T = std::remove_const_t<typename std::remove_cvref_t<decltype(b)>::value_type>;
        const std::string full = prefix + " " + std::string(name);
        if constexpr (StorageType<T>) {
          worst.take(largest_difference(a.data(), b.data(), b.size()), full);
        } else {
          worst.take(same_bits(a.data(), b.data(), b.size()) ? 0 : INFINITY, full);
        }
      },
      gpu, cpu);
}

template <class T, Index... E>
T* poison(auto& be, Tensor<T, E...> t) {
  be.fill(t.data(), t.size(), static_cast<T>(NAN));
  return t.data();
}

/// forward and backward on both; the two stores of parameters hold the same numbers. Gradient: Params of the
/// block in the type to compute in.
template <class Block, class DeviceBlock, class Gradient, class Host, class Device, class P, class Q>
void passes_agree(Host& cpu, Device& gpu, const P& params, const Q& device_params, const Options& options,
                  Rng& rng, Worst& worst) {
  using T = typename Host::Scalar;
  const auto scope = cpu.scope();
  const auto device_scope = gpu.scope();
  const Index steps = options.steps * time_multiple<Block>();
  const auto x = cpu.template make<T, dyn, dyn, Block::in>(options.batch, steps);
  const auto dx = cpu.template make<T, dyn, dyn, Block::in>(options.batch, steps);
  const auto y = cpu.template make<T, dyn, dyn, Block::out>(options.batch, out_time<Block>(steps));
  const auto dy = cpu.template make<T, dyn, dyn, Block::out>(options.batch, out_time<Block>(steps));
  fill_normal(x, options.input_scale, rng);
  fill_normal(dy, 1, rng);
  const auto gx = send(gpu, x), gdx = send(gpu, dx);
  const auto gy = send(gpu, y), gdy = send(gpu, dy);

  Store<Gradient, Host> grad(cpu), fetched(cpu), before(cpu);
  Store<Gradient, Device> device_grad(gpu);
  for (int pass = 0; pass < 2; ++pass) {
    const auto inner = cpu.scope();
    const auto device_inner = gpu.scope();
    typename Block::Saved saved;
    Block::forward(cpu, *params, x, y, saved);
    Block::backward(cpu, *params, saved, dy, dx, *grad);
    poison(gpu, gy), poison(gpu, gdx);
    typename DeviceBlock::Saved device_saved;
    DeviceBlock::forward(gpu, *device_params, gx, gy, device_saved);
    DeviceBlock::backward(gpu, *device_params, device_saved, gdy, gdx, *device_grad);
    worst.take(largest_difference(fetch(cpu, gpu, gy).data(), y.data(), y.size()), "y");
    worst.take(largest_difference(fetch(cpu, gpu, gdx).data(), dx.data(), dx.size()), "dx");
    download(gpu, device_grad, fetched);
    compare(*fetched, *grad, worst, "gradient of");
    if (pass == 0) before.assign(cpu, fetched);
  }
  // From zero again: the bits of the first pass.
  gpu.fill(device_grad.data(), device_grad.bytes(), std::byte{0});
  typename DeviceBlock::Saved again;
  DeviceBlock::forward(gpu, *device_params, gx, gy, again);
  DeviceBlock::backward(gpu, *device_params, again, gdy, gdx, *device_grad);
  download(gpu, device_grad, fetched);
  worst.take(same_bits(fetched.data(), before.data(), before.bytes()) ? 0 : INFINITY, "a second run's bits");
}

/// A stream of random chunks on both, with masks, and a reset of some sessions on the way.
template <class Block, class DeviceBlock, class Host, class Device, class P, class Q>
void steps_agree(Host& cpu, Device& gpu, const P& params, const Q& device_params, const Options& options,
                 Rng& rng, Worst& worst) {
  using T = typename Host::Scalar;
  const Index batch = std::max<Index>(2, options.batch);
  Store<typename Block::State, Host> state(cpu, batch), fetched(cpu, batch), before(cpu, batch);
  Store<typename DeviceBlock::State, Device> device_state(gpu, batch);
  Block::reset(cpu, *params, *state, Mask{});
  DeviceBlock::reset(gpu, *device_params, *device_state, Mask{});
  for (Index i = 0; i < options.steps; ++i) {
    const auto scope = cpu.scope();
    const auto device_scope = gpu.scope();
    const Index steps = (1 + static_cast<Index>(rng.below(4))) * time_multiple<Block>();
    const auto x = cpu.template make<T, dyn, dyn, Block::in>(batch, steps);
    const auto y = cpu.template make<T, dyn, dyn, Block::out>(batch, out_time<Block>(steps));
    const auto mask = cpu.template make<std::uint8_t, dyn>(batch);
    fill_normal(x, options.input_scale, rng);
    for (Index b = 0; b < batch; ++b) mask(b) = rng.uniform() < 0.7;
    const auto gx = send(gpu, x);
    const auto gy = send(gpu, y);
    const auto gmask = send(gpu, mask);
    if (i == options.steps / 2) {
      Block::reset(cpu, *params, *state, mask);
      DeviceBlock::reset(gpu, *device_params, *device_state, gmask);
    }
    download(gpu, device_state, before);
    Block::step(cpu, *params, *state, x, y, mask);
    DeviceBlock::step(gpu, *device_params, *device_state, gx, gy, gmask);
    download(gpu, device_state, fetched);
    compare(*fetched, *state, worst, "State");
    const auto reply = fetch(cpu, gpu, gy);
    const Index width = y.extent(1) * Block::out;
    for (Index b = 0; b < batch; ++b) {
      if (mask(b) != 0) {
        worst.take(largest_difference(reply.data() + b * width, y.data() + b * width, width), "step");
      } else if (!same_session(*fetched, *before, b)) {
        worst.take(INFINITY, "a masked session's State");
      }
    }
  }
}

/// Three segments that hand their state on, the last not of whole units; gradients of the second, through the
/// state at both its ends. Session 0 starts anew there.
template <class Block, class DeviceBlock, class Gradient, class Host, class Device, class P, class Q>
void segments_agree(Host& cpu, Device& gpu, const P& params, const Q& device_params, const Options& options,
                    Rng& rng, Worst& worst) {
  using T = typename Host::Scalar;
  const auto scope = cpu.scope();
  const auto device_scope = gpu.scope();
  const Index batch = std::max<Index>(2, options.batch), unit = Block::carry_multiple;
  Store<typename Block::Carried, Host> state(cpu, batch), fetched(cpu, batch);
  Store<typename DeviceBlock::Carried, Device> device_state(gpu, batch);
  Store<typename Block::CarriedGradient, Host> dstate(cpu, batch), fetched_gradient(cpu, batch);
  Store<typename DeviceBlock::CarriedGradient, Device> device_dstate(gpu, batch);
  const auto continuing = cpu.template make<std::uint8_t, dyn>(batch);
  for (Index b = 0; b < batch; ++b) continuing(b) = b > 0;
  const Mask device_continuing = send(gpu, continuing);

  for (int i = 0; i < 3; ++i) {
    const bool first = i == 0, second = i == 1;
    const Index steps = first ? unit : second ? options.steps * unit : unit + 1;
    const auto x = cpu.template make<T, dyn, dyn, Block::in>(batch, steps);
    const auto y = cpu.template make<T, dyn, dyn, Block::out>(batch, steps);
    fill_normal(x, options.input_scale, rng);
    const auto gx = send(gpu, x);
    const auto gy = send(gpu, y);
    poison(gpu, gy);
    typename Block::Saved saved;
    typename DeviceBlock::Saved device_saved;
    Block::forward(cpu, *params, x, y, saved,
                   {first ? nullptr : &*state, &*state, second ? Mask(continuing) : Mask{}});
    DeviceBlock::forward(
        gpu, *device_params, gx, gy, device_saved,
        {first ? nullptr : &*device_state, &*device_state, second ? device_continuing : Mask{}});
    worst.take(largest_difference(fetch(cpu, gpu, gy).data(), y.data(), y.size()), "y of a segment");
    download(gpu, device_state, fetched);
    compare(*fetched, *state, worst, "carried");
    if (!second) continue;

    const auto dy = cpu.template make<T, dyn, dyn, Block::out>(batch, steps);
    const auto dx = cpu.template make<T, dyn, dyn, Block::in>(batch, steps);
    fill_normal(dy, 1, rng);
    for_each_tensor([&](std::string_view, const auto& t) { fill_normal(t, 1, rng); }, *dstate);
    upload(gpu, dstate, device_dstate);
    const auto gdy = send(gpu, dy);
    const auto gdx = send(gpu, dx);
    poison(gpu, gdx);
    Store<Gradient, Host> grad(cpu), fetched_grad(cpu);
    Store<Gradient, Device> device_grad(gpu);
    Block::backward(cpu, *params, saved, dy, dx, *grad, {&*dstate, &*dstate});
    DeviceBlock::backward(gpu, *device_params, device_saved, gdy, gdx, *device_grad,
                          {&*device_dstate, &*device_dstate});
    worst.take(largest_difference(fetch(cpu, gpu, gdx).data(), dx.data(), dx.size()), "dx of a segment");
    download(gpu, device_grad, fetched_grad);
    compare(*fetched_grad, *grad, worst, "gradient of");
    download(gpu, device_dstate, fetched_gradient);
    compare(*fetched_gradient, *dstate, worst, "gradient of carried");
  }
}

}  // namespace detail

/// `Block` and `DeviceBlock` are one block on either backend; Gradient is its Params in the type to compute
/// in, where that is another than the storage type.
template <class Block, class DeviceBlock, class Gradient = typename Block::Params, class Host, class Device>
Verdict backends_agree(Host& cpu, Device& gpu, const Options& options = {}) {
  using T = typename Host::Scalar;
  Rng rng(options.seed);
  const auto params = random_params<Block>(cpu, options, rng);
  Store<typename DeviceBlock::Params, Device> device_params(gpu);
  upload(gpu, params, device_params);
  detail::Worst worst;
  if constexpr (Trainable<Block, Host>)
    detail::passes_agree<Block, DeviceBlock, Gradient>(cpu, gpu, params, device_params, options, rng, worst);
  if constexpr (Streamable<Block, Host>)
    detail::steps_agree<Block, DeviceBlock>(cpu, gpu, params, device_params, options, rng, worst);
  const Index rows = options.batch * options.steps * time_multiple<Block>();
  return detail::judge(worst.error, detail::agreement_of<T>(*params, rows),
                       ("GPU against CPU, " + worst.name).c_str());
}

/// The same of segments that hand their state on (core/carry.hpp): outputs, State, and gradients through it, of
/// segments of options.steps units.
template <class Block, class DeviceBlock, class Gradient = typename Block::Params, class Host, class Device>
requires Carries<Block> Verdict carried_agrees(Host& cpu, Device& gpu, const Options& options = {}) {
  using T = typename Host::Scalar;
  Rng rng(options.seed);
  const auto params = random_params<Block>(cpu, options, rng);
  Store<typename DeviceBlock::Params, Device> device_params(gpu);
  upload(gpu, params, device_params);
  detail::Worst worst;
  detail::segments_agree<Block, DeviceBlock, Gradient>(cpu, gpu, params, device_params, options, rng, worst);
  const Index rows = options.batch * options.steps * Block::carry_multiple;
  return detail::judge(worst.error, detail::agreement_of<T>(*params, rows),
                       ("GPU against CPU, " + worst.name).c_str());
}

}  // namespace mttt::laws
