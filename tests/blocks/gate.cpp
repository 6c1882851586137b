// With every gate at 0, a transformer with TTT layers is the one without, to the bit: offline and streamed.
#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/train/guard.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

constexpr TemporalConfig config(Placement placement) {
  return {.dim = 16,
          .num_heads = 2,
          .num_layers = 3,
          .hidden = 20,
          .context = 6,
          .ttt_layers = LayerSet::range(1, 2),
          .placement = placement,
          .ttt = {.dim = 0, .num_heads = 0, .mini_batch_size = 4}};
}

template <Placement placement>
void compare() {
  B be;
  using With = Temporal<config(placement), B>;
  using Without = Temporal<config(placement).without_ttt(), B>;
  Rng rng(3);
  Store<typename With::Params, B> params(be);
  Store<typename Without::Params, B> base(be);
  With::init(*params, rng);
  for_each_tensor([&](std::string_view, auto& t) { laws::fill_normal(t, 0.3, rng); }, *params);
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        if (name.ends_with("gating_alpha")) init_constant(t, 0);
        for_each_tensor(
            [&](std::string_view other, auto& to) {
              if (other == name) be.copy(t.data(), to.data(), to.size());
            },
            *base);
      },
      *params);

  const auto x = be.make<float, dyn, dyn, 16>(2, 19), y = be.make<float, dyn, dyn, 16>(2, 19);
  const auto expected = be.make<float, dyn, dyn, 16>(2, 19);
  laws::fill_normal(x, 1, rng);
  typename With::Saved saved;
  typename Without::Saved base_saved;
  With::forward(be, *params, x, y, saved);
  Without::forward(be, *base, x, expected, base_saved);
  CHECK(std::memcmp(y.data(), expected.data(), sizeof(float) * static_cast<std::size_t>(y.size())) == 0);

  Store<typename With::State, B> state(be, 2);
  Store<typename Without::State, B> base_state(be, 2);
  With::reset(be, *params, *state, Mask{});
  Without::reset(be, *base, *base_state, Mask{});
  With::step(be, *params, *state, x, y, Mask{});
  Without::step(be, *base, *base_state, x, expected, Mask{});
  CHECK(std::memcmp(y.data(), expected.data(), sizeof(float) * static_cast<std::size_t>(y.size())) == 0);
}

}  // namespace

TEST_CASE("gates at 0, parallel") { compare<Placement::parallel>(); }
TEST_CASE("gates at 0, after attention") { compare<Placement::after_attention>(); }
TEST_CASE("gates at 0, before attention") { compare<Placement::before_attention>(); }

TEST_CASE("gates are read layer by layer, and a training that closes all of them is refused") {
  using With = Temporal<config(Placement::parallel), B>;
  B be;
  Rng rng(1);
  Store<With::Params, B> params(be);
  With::init(*params, rng);
  const auto start = gate_openings(be, *params);
  REQUIRE(!start.empty());
  for (const auto& gate : start) CHECK(gate.opening == Approx(std::tanh(0.1)).epsilon(1e-5));
  force_gating_alpha(be, *params, -0.0005);
  check_gates(start, start);
  CHECK_THROWS_WITH(check_gates(start, gate_openings(be, *params)),
                    test::contains("0.000500") && test::contains("each under 1.0"));
  force_gating_alpha(be, *params, 0.2, LayerSet::range(start[0].layer, start[0].layer));
  check_gates(start, gate_openings(be, *params));  // one is open
  CHECK(gate_openings(be, *params)[0].layer == start[0].layer);
}

TEST_CASE("TTT instead of attention has no gate to measure") {
  B be;
  using Model = Temporal<config(Placement::instead_of_attention), B>;
  Rng rng(3);
  Store<Model::Params, B> params(be);
  Model::init(*params, rng);
  const auto x = be.make<float, dyn, dyn, 16>(1, 8), y = be.make<float, dyn, dyn, 16>(1, 8);
  laws::fill_normal(x, 1, rng);
  Model::Saved saved;
  Model::forward(be, *params, x, y, saved);
  CHECK(ttt_contributions<Model>(be, *params, saved, LayerSet::range(1, 2)).empty());
  CHECK(gate_openings(be, *params).empty());
}

TEST_CASE(
    "pulled gates: the gradient of weight / 2 times the mean square from the start, of gates that train") {
  using With = Temporal<config(Placement::parallel), B>;
  B be;
  Rng rng(2);
  const auto params = laws::random_params<With>(be, {.perturbation = 0.3}, rng);
  std::vector<bool> held;
  for_each_tensor([&](std::string_view name, const auto&) { held.push_back(!name.starts_with("layers.1.")); },
                  *params);
  Store<With::Params, B> grad(be), part(be, 1, held);
  const auto penalty = [&] {
    double sum = 0;
    for_each_tensor(
        [&](std::string_view name, const auto& t) {
          if (!name.ends_with("gating_alpha")) return;
          for (Index i = 0; i < t.size(); ++i)
            sum +=
                0.5 * 3 * std::pow(static_cast<double>(t.data()[i]) - 0.4, 2) / static_cast<double>(t.size());
        },
        *params);
    return sum;
  };
  pull_gates(be, *params, *grad, 0.4, 3);
  pull_gates(be, *params, *part, 0.4, 3);
  int gates = 0;
  for_each_tensor(
      [&](std::string_view name, auto& p, const auto& g, const auto& of_part) {
        INFO(name);
        if (!name.ends_with("gating_alpha")) {
          for (Index i = 0; i < g.size(); ++i) CHECK(g.data()[i] == 0);
          return;
        }
        ++gates;
        const float kept = p.data()[3];
        p.data()[3] = kept + 0.01f;
        const double above = penalty();
        p.data()[3] = kept - 0.01f;
        const double below = penalty();
        p.data()[3] = kept;
        CHECK(g.data()[3] == Approx((above - below) / 0.02).epsilon(1e-3));
        if (!left_out(of_part)) CHECK(of_part.data()[3] == g.data()[3]);
      },
      *params, *grad, *part);
  CHECK(gates == 2);
}

TEST_CASE("inner loops that diverge stop a training, those that merely learn nothing do not") {
  const InnerLosses healthy{2, 0.3, 0.2, 0.1, 0.1, 0.5}, idle{3, 0.3, 0.3, 0.3, 0.5, 0},
      late{5, 0.3, 0.2, 0.35, 0.4, 1};
  check_inner_loops({});
  check_inner_loops({healthy, idle, late});
  InnerLosses wild = healthy, lost = healthy, long_steps = healthy;
  wild.before = 12, lost.after = NAN, long_steps.after = 0.7;
  CHECK_THROWS_WITH(check_inner_loops({healthy, wild}),
                    test::contains("layer 2: unstable") && test::contains("12.0"));
  CHECK_THROWS_WITH(check_inner_loops({lost}),
                    test::contains("unstable") && test::contains("lower ttt.base_lr"));
  CHECK_THROWS_WITH(check_inner_loops({long_steps}), test::contains("steps overshoot"));
}
