#include "mttt/nn/lora.hpp"

#include <array>

#include "laws.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/core/quantise.hpp"

namespace {
using namespace mttt;
template <class B>
using Plain = Linear<LinearConfig{.in = 7, .out = 5, .bias = true}, B>;
template <bool frozen, bool bias, class B>
using Adapted = Lora<LoraConfig{.rank = 3, .scaling = 1.5, .frozen = frozen},
                     Linear<LinearConfig{.in = 7, .out = 5, .bias = bias}, B>>;
template <class B>
using Learning = Adapted<false, true, B>;
template <class B>
using Frozen = Adapted<true, true, B>;

/// The weights that the adapter makes of W.
template <class Params>
std::array<double, 35> fused(const Params& p) {
  std::array<double, 35> w{};
  for (Index o = 0; o < 5; ++o) {
    for (Index i = 0; i < 7; ++i) {
      double sum = 0;
      for (Index r = 0; r < 3; ++r) sum += p.b(o, r) * p.a(r, i);
      w[static_cast<std::size_t>(7 * o + i)] = p.inner.weight(o, i) + 1.5 * sum;
    }
  }
  return w;
}
}  // namespace

TEST_CASE("Lora, all of which learns") { mttt::testing::hold_to_all_laws<Learning>(); }

TEST_CASE("Lora apart is a linear layer with W + scaling B A") {
  using B = Cpu<double>;
  B be;
  Rng rng(4);
  const auto params = laws::random_params<Frozen<B>>(be, {.perturbation = 0.5}, rng);
  const auto w = fused(*params);
  Store<Plain<B>::Params, B> one(be);
  std::copy(w.begin(), w.end(), one->weight.data());
  std::copy_n(params->inner.bias.data(), 5, one->bias.data());
  const auto scope = be.scope();
  const auto x = be.make<double, dyn, dyn, 7>(2, 4), dx = be.make<double, dyn, dyn, 7>(2, 4),
             dx_one = be.make<double, dyn, dyn, 7>(2, 4);
  const auto y = be.make<double, dyn, dyn, 5>(2, 4), y_one = be.make<double, dyn, dyn, 5>(2, 4),
             y_step = be.make<double, dyn, dyn, 5>(2, 4), dy = be.make<double, dyn, dyn, 5>(2, 4);
  laws::fill_normal(x, 1, rng), laws::fill_normal(dy, 1, rng);

  Frozen<B>::Saved saved;
  Plain<B>::Saved saved_one;
  Frozen<B>::forward(be, *params, x, y, saved);
  Plain<B>::forward(be, *one, x, y_one, saved_one);
  CHECK(laws::largest_difference(y.data(), y_one.data(), y.size()) < 1e-14);
  NoState state;
  Frozen<B>::step(be, *params, state, x, y_step, Mask{});
  CHECK(laws::largest_difference(y_step.data(), y_one.data(), y.size()) < 1e-14);

  Store<Frozen<B>::Params, B> grad(be);
  Store<Plain<B>::Params, B> grad_one(be);
  Frozen<B>::backward(be, *params, saved, dy, dx, *grad);
  Plain<B>::backward(be, *one, saved_one, dy, dx_one, *grad_one);
  CHECK(laws::largest_difference(dx.data(), dx_one.data(), dx.size()) < 1e-14);
  // By the chain rule: dB = s dW A^T, dA = s B^T dW.
  for (Index r = 0; r < 3; ++r) {
    for (Index o = 0; o < 5; ++o) {
      double sum = 0;
      for (Index i = 0; i < 7; ++i) sum += grad_one->weight(o, i) * params->a(r, i);
      CHECK(grad->b(o, r) == Approx(1.5 * sum).epsilon(1e-12));
    }
    for (Index i = 0; i < 7; ++i) {
      double sum = 0;
      for (Index o = 0; o < 5; ++o) sum += grad_one->weight(o, i) * params->b(o, r);
      CHECK(grad->a(r, i) == Approx(1.5 * sum).epsilon(1e-12));
    }
  }
}

TEST_CASE("Lora frozen: the adapter learns as it would, the inner layer does not") {
  using B = Cpu<float>;
  B be;
  Rng rng(5);
  const auto params = laws::random_params<Frozen<B>>(be, {}, rng);
  const auto scope = be.scope();
  const auto x = be.make<float, dyn, dyn, 7>(2, 4), dx = be.make<float, dyn, dyn, 7>(2, 4),
             dx_all = be.make<float, dyn, dyn, 7>(2, 4);
  const auto y = be.make<float, dyn, dyn, 5>(2, 4), dy = be.make<float, dyn, dyn, 5>(2, 4);
  laws::fill_normal(x, 1, rng), laws::fill_normal(dy, 1, rng);
  Store<Frozen<B>::Params, B> grad(be);
  Store<Learning<B>::Params, B> grad_all(be), params_all(be);
  params_all->inner = params->inner, params_all->a = params->a, params_all->b = params->b;
  Frozen<B>::Saved saved;
  Frozen<B>::forward(be, *params, x, y, saved);
  Frozen<B>::backward(be, *params, saved, dy, dx, *grad);
  Learning<B>::Saved saved_all;
  Learning<B>::forward(be, *params_all, x, y, saved_all);
  Learning<B>::backward(be, *params_all, saved_all, dy, dx_all, *grad_all);
  const auto same = [](auto a, auto b) {
    return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
  };
  CHECK(same(dx, dx_all));
  CHECK(same(grad->a, grad_all->a));
  CHECK(same(grad->b, grad_all->b));
  for (Index i = 0; i < 35; ++i) CHECK(grad->inner.weight.data()[i] == 0);
  for (Index i = 0; i < 5; ++i) CHECK(grad->inner.bias(i) == 0);
  CHECK(grad_all->inner.weight(1, 2) != 0);
}

TEST_CASE("Lora starts as what it adapts, and streams beside weights in 8 bits") {
  using B = WithWeights<Int8, Cpu<float>>;
  using Block = Adapted<true, false, B>;
  using Inner = Linear<LinearConfig{.in = 7, .out = 5}, B>;
  B be;
  Rng rng(6);
  Store<Block::Params, B> params(be);
  Block::init(*params, rng);
  const auto scope = be.scope();
  const auto x = be.make<float, dyn, dyn, 7>(2, 1);
  const auto y = be.make<float, dyn, dyn, 5>(2, 1), y_inner = be.make<float, dyn, dyn, 5>(2, 1);
  laws::fill_normal(x, 1, rng);
  NoState state;
  Block::step(be, *params, state, x, y, Mask{});
  Inner::step(be, params->inner, state, x, y_inner, Mask{});
  CHECK(std::memcmp(y.data(), y_inner.data(), 10 * sizeof(float)) == 0);
  laws::fill_normal(params->b, 1, rng);
  Block::step(be, *params, state, x, y, Mask{});
  double expected = y_inner(1, 0, 3);
  for (Index r = 0; r < 3; ++r) {
    double low = 0;
    for (Index i = 0; i < 7; ++i) low += double(x(1, 0, i)) * double(params->a(r, i));
    expected += 1.5 * low * double(params->b(3, r));
  }
  CHECK(y(1, 0, 3) == Approx(expected).epsilon(1e-5));
}

TEST_CASE("an adapter of another rank or scaling is refused") {
  constexpr LoraConfig config{.rank = 64, .scaling = 2};
  CHECK_NOTHROW(expect_lora<config>("lora.safetensors", 64, 2));
  CHECK_NOTHROW(expect_lora<config>("lora.safetensors", 0, 2));
  CHECK_THROWS_WITH(expect_lora<config>("lora.safetensors", 128, 2),
                    mttt::test::contains("found rank 128, scaling 2") &&
                        mttt::test::contains("; expected rank 64, scaling 2"));
  CHECK_THROWS(expect_lora<config>("lora.safetensors", 64, 4));
}
