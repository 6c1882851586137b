#include "laws.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
template <class B>
using TttMlp = Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4, .layers = 2, .expansion = 4}, B>;
template <class B>
using TttMlp3 =
    Ttt<TttConfig{.dim = 8, .num_heads = 1, .mini_batch_size = 5, .layers = 3, .expansion = 2}, B>;
/// Its causal products are of several blocks of a CPU team, its sessions keep factors.
template <class B>
using TttMlpFactors = Ttt<TttConfig{.dim = 16,
                                    .num_heads = 2,
                                    .mini_batch_size = 20,
                                    .layers = 2,
                                    .expansion = 2,
                                    .memory = TttMemory::factors},
                          B>;
}  // namespace

TEST_CASE("TTT-MLP of 2 layers") { mttt::testing::hold_to_all_laws<TttMlp>(); }
TEST_CASE("TTT-MLP of 3 layers") { mttt::testing::hold_to_all_laws<TttMlp3>(); }
TEST_CASE("TTT-MLP of 2 layers that keeps factors, mini-batches of 20") {
  mttt::testing::hold_to_all_laws<TttMlpFactors>({.steps = 45});
}

TEST_CASE("A TTT-MLP streams on a CPU with factors, which reply as sums do") {
  constexpr TttConfig sums{.dim = 16, .num_heads = 2, .mini_batch_size = 5, .layers = 2};
  constexpr TttConfig factors = sums.for_cpu_streams();
  static_assert(factors.memory == TttMemory::factors && factors.for_cpu_streams().memory == factors.memory);
  constexpr TttConfig linear{.dim = 256, .num_heads = 2}, long_ones{.dim = 16, .num_heads = 2, .layers = 2};
  static_assert(linear.for_cpu_streams().memory == TttMemory::sums);
  static_assert(long_ones.for_cpu_streams().memory ==
                TttMemory::sums);  // 16 tokens of 80 numbers: more than sums

  using B = Cpu<double>;
  using Sums = Ttt<sums, B>;
  using Factors = Ttt<factors, B>;
  B be(1);
  Rng rng(3);
  const auto drawn = laws::random_params<Sums>(be, {.perturbation = 0.3}, rng);
  Store<Factors::Params, B> same(be);
  REQUIRE(same.bytes() == drawn.bytes());
  std::memcpy(same.data(), drawn.data(), drawn.bytes());
  Store<Sums::State, B> sums_state(be, 2);
  Store<Factors::State, B> factors_state(be, 2);
  CHECK(factors_state.bytes() < sums_state.bytes());
  Sums::reset(be, *drawn, *sums_state, Mask{});
  Factors::reset(be, *same, *factors_state, Mask{});
  const Index steps = 3;  // mini-batches begin and end inside of a call, and at its borders
  const auto x = be.make<double, dyn, dyn, Sums::in>(2, steps);
  const auto expected = be.make<double, dyn, dyn, Sums::in>(2, steps),
             found = be.make<double, dyn, dyn, Sums::in>(2, steps);
  for (Index call = 0; call < 12; ++call) {
    laws::fill_normal(x, 1, rng);
    Sums::step(be, *drawn, *sums_state, x, expected, Mask{});
    Factors::step(be, *same, *factors_state, x, found, Mask{});
    CHECK(laws::largest_difference(expected.data(), found.data(), found.size()) < 1e-12);
  }
}
