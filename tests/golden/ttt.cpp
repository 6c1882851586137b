// TTT-Linear and TTT-MLP against the published implementation: outputs, and gradients of sum(y dy).
#include "mttt/ttt/ttt.hpp"
#include "golden.hpp"
#include "mttt/backend/cpu/cpu.hpp"

namespace {
using namespace mttt;

constexpr TttConfig linear{.dim = 32, .num_heads = 4, .mini_batch_size = 8};
constexpr TttConfig mlp{.dim = 32, .num_heads = 4, .mini_batch_size = 8, .layers = 2};

template <TttConfig C, class Real>
void compare(const std::string& name) {
  using namespace mttt::testing;
  Cpu<Real> be;
  using Layer = Ttt<C, Cpu<Real>>;
  const SafetensorsFile file = open_golden(name);
  Store<typename Layer::Params, Cpu<Real>> params(be), grad(be);
  for_each_tensor(
      [&](std::string_view tensor, auto& t) {
        if (tensor == "base_lr")
          return init_constant(t, 1);  // a number of the published config, not a tensor
        file.read(file.at("weights." + std::string(tensor)), t.data(), static_cast<std::size_t>(t.size()));
      },
      *params);
  auto x = read_golden<Real>(file, "in.x"), dy = read_golden<Real>(file, "in.dy");
  const auto y_expected = read_golden<Real>(file, "out.y"), dx_expected = read_golden<Real>(file, "out.dx");
  std::vector<Real> y(x.size()), dx(x.size());
  const Index batch = 2, steps = 37;
  REQUIRE(static_cast<Index>(x.size()) == batch * steps * C.dim);
  const auto sequence = [&](std::vector<Real>& v) {
    return Sequence<Real, C.dim>(v.data(), {batch, steps, C.dim});
  };

  const auto scope = be.scope();
  typename Layer::Saved saved;
  Layer::forward(be, *params, sequence(x), sequence(y), saved);
  CHECK(laws::largest_difference(y.data(), y_expected.data(), batch * steps * C.dim) < 1e-4);
  Layer::backward(be, *params, saved, sequence(dy), sequence(dx), *grad);
  CHECK(laws::largest_difference(dx.data(), dx_expected.data(), batch * steps * C.dim) < 1e-3);
  for_each_tensor(
      [&](std::string_view tensor, auto& g) {
        if (tensor == "base_lr") return;
        const auto expected = read_golden<Real>(file, "out.grad." + std::string(tensor));
        REQUIRE(static_cast<Index>(expected.size()) == g.size());
        INFO("gradient of " << tensor);
        CHECK(laws::largest_difference(g.data(), expected.data(), g.size()) < 1e-3);
      },
      *grad);

  Store<typename Layer::State, Cpu<Real>> state(be, batch);
  Layer::reset(be, *params, *state, Mask{});
  std::fill(y.begin(), y.end(), Real(NAN));
  Layer::step(be, *params, *state, sequence(x), sequence(y), Mask{});
  CHECK(laws::largest_difference(y.data(), y_expected.data(), batch * steps * C.dim) < 1e-4);
}

}  // namespace

TEST_CASE("TTT-Linear equals ttt-lm-pytorch in float32") { compare<linear, float>("ttt_linear"); }
TEST_CASE("TTT-Linear equals ttt-lm-pytorch in float64") { compare<linear, double>("ttt_linear"); }
TEST_CASE("TTT-MLP equals ttt-lm-pytorch in float32") { compare<mlp, float>("ttt_mlp"); }
TEST_CASE("TTT-MLP equals ttt-lm-pytorch in float64") { compare<mlp, double>("ttt_mlp"); }
