// What the laws do not say of Sequential, Repeat, Residual and Recompute: names, equal bits, memory.
#include <string>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"
#include "mttt/nn/sequential.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;
constexpr Index dim = 8;
using Norm = RmsNorm<NormConfig{.dim = dim}, B>;
using Heads = Attention<AttentionConfig{.dim = dim, .num_heads = 2, .context = 4}, B>;
using Gate = SiluGating<GatingConfig{.dim = dim, .hidden = 5}, B>;
using Layer = Sequential<Residual<Sequential<Norm, Heads>>, Activation<Elu, dim, B>, Residual<Gate>>;

template <class Block>
std::string names() {
  std::string all;
  typename Block::Params p;
  for_each_tensor([&](std::string_view name, auto&) { all += std::string(name) + " "; }, p);
  typename Block::State s;
  all += "| ";
  for_each_tensor([&](std::string_view name, auto&) { all += std::string(name) + " "; }, s);
  return all;
}

struct Pass {
  std::vector<float> y, dx, grad;
};

template <class Block>
Pass run(B& be, Index batch, Index steps) {
  const auto scope = be.scope();
  Rng rng(7);
  auto params = laws::random_params<Block>(be, {}, rng);
  Store<typename Block::Params, B> grad(be);
  const auto x = be.template make<float, dyn, dyn, dim>(batch, steps),
             y = be.template make<float, dyn, dyn, dim>(batch, steps),
             dy = be.template make<float, dyn, dyn, dim>(batch, steps),
             dx = be.template make<float, dyn, dyn, dim>(batch, steps);
  laws::fill_normal(x, 1, rng);
  laws::fill_normal(dy, 1, rng);
  typename Block::Saved saved;
  Block::forward(be, *params, x, y, saved);
  Block::backward(be, *params, saved, dy, dx, *grad);
  const auto flat = grad.template flat<float>();
  return {{y.data(), y.data() + y.size()},
          {dx.data(), dx.data() + dx.size()},
          {flat.data(), flat.data() + flat.size()}};
}
}  // namespace

TEST_CASE("Composites name their parts by place, and wrappers add nothing") {
  CHECK(names<Repeat<2, Recompute<Layer>>>() ==
        "0.0.0.alpha 0.0.1.in_projs.0.weight 0.0.1.out_projs.0.weight 0.2.linear_in.weight "
        "0.2.linear_out.weight "
        "1.0.0.alpha 1.0.1.in_projs.0.weight 1.0.1.out_projs.0.weight 1.2.linear_in.weight "
        "1.2.linear_out.weight "
        "| 0.0.1.k 0.0.1.v 0.0.1.position 0.0.1.context 1.0.1.k 1.0.1.v 1.0.1.position 1.0.1.context ");
}

TEST_CASE("Recompute changes no bit") {
  B be;
  const Pass kept = run<Repeat<3, Layer>>(be, 2, 9), again = run<Repeat<3, Recompute<Layer>>>(be, 2, 9);
  CHECK(kept.y == again.y);
  CHECK(kept.dx == again.dx);
  CHECK(kept.grad == again.grad);
}

TEST_CASE("Recompute holds one layer's activations, not those of all") {
  B plain, frugal;
  run<Repeat<12, Layer>>(plain, 8, 500);
  run<Repeat<12, Recompute<Layer>>>(frugal, 8, 500);
  INFO(plain.arena_bytes() << " bytes against " << frugal.arena_bytes());
  CHECK(2 * frugal.arena_bytes() < plain.arena_bytes());
}
