// TTT-Linear and TTT-MLP against the published implementation: outputs, and gradients of sum(y dy).
#pragma once

#include "golden.hpp"
#include "mttt/ttt/ttt.hpp"

namespace mttt::testing {

inline constexpr TttConfig linear_golden{.dim = 32, .num_heads = 4, .mini_batch_size = 8};
inline constexpr TttConfig mlp_golden{.dim = 32, .num_heads = 4, .mini_batch_size = 8, .layers = 2};

template <TttConfig C, class B>
void ttt_equals_published(const std::string& name) {
  using Real = typename B::Scalar;
  using Layer = Ttt<C, B>;
  B be;
  Cpu<Real> host;
  const SafetensorsFile file = open_golden(name);
  Store<typename Layer::Params, B> params(be), grad(be);
  for_each_tensor(
      [&](std::string_view tensor, const auto& t) {
        std::vector<Real> values(static_cast<std::size_t>(t.size()), Real(1));
        if (tensor != "base_lr")  // a number of the published config, not a tensor
          file.read(file.at("weights." + std::string(tensor)), values.data(), values.size());
        be.to_device(values.data(), t.data(), t.size());
      },
      *params);
  const Index batch = 2, steps = 37;
  const auto sequence = [&](const std::string& tensor) {
    auto values = read_golden<Real>(file, tensor);
    REQUIRE(static_cast<Index>(values.size()) == batch * steps * C.dim);
    return send(be, Sequence<Real, C.dim>(values.data(), {batch, steps, C.dim}));
  };
  const auto difference = [&](auto found, const std::string& tensor) {
    const auto expected = read_golden<Real>(file, tensor);
    REQUIRE(static_cast<Index>(expected.size()) == found.size());
    return laws::largest_difference(fetch(host, be, found).data(), expected.data(), found.size());
  };

  const auto scope = be.scope();
  const auto x = sequence("in.x"), dy = sequence("in.dy");
  const auto y = be.template make<Real, dyn, dyn, C.dim>(batch, steps);
  const auto dx = be.template make<Real, dyn, dyn, C.dim>(batch, steps);
  typename Layer::Saved saved;
  Layer::forward(be, *params, x, y, saved);
  CHECK(difference(y, "out.y") < 1e-4);
  Layer::backward(be, *params, saved, dy, dx, *grad);
  CHECK(difference(dx, "out.dx") < 1e-3);
  for_each_tensor(
      [&](std::string_view tensor, const auto& g) {
        if (tensor == "base_lr") return;
        INFO("gradient of " << tensor);
        CHECK(difference(g, "out.grad." + std::string(tensor)) < 1e-3);
      },
      *grad);

  Store<typename Layer::State, B> state(be, batch);
  Layer::reset(be, *params, *state, Mask{});
  be.fill(y.data(), y.size(), static_cast<Real>(NAN));
  Layer::step(be, *params, *state, x, y, Mask{});
  CHECK(difference(y, "out.y") < 1e-4);
}

}  // namespace mttt::testing
