// Every functor gives a team of several members the numbers that it gives a team of one.
#include "emulated.hpp"
#include "laws.hpp"
#include "mttt/laws_backends.hpp"
#include "mttt/lm/temporal.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/nn/layer_scale.hpp"

namespace {
using namespace mttt;
using mttt::testing::Emulated;

template <template <class> class Block>
void hold_teams(const laws::Options& options = {.batch = 2, .steps = 9}) {
  Cpu<double> cpu(1);
  Emulated<double> emulated;
  mttt::testing::demand(
      laws::backends_agree<Block<Cpu<double>>, Block<Emulated<double>>>(cpu, emulated, options));
}

template <template <class> class Block>
void hold_carrying_teams() {
  Cpu<double> cpu(1);
  Emulated<double> emulated;
  mttt::testing::demand(laws::carried_agrees<Block<Cpu<double>>, Block<Emulated<double>>>(
      cpu, emulated, {.batch = 2, .steps = 3}));
}

constexpr TemporalConfig config(Index layers, TttVariant variant, Placement placement) {
  return {.dim = 8,
          .num_heads = 2,
          .num_layers = 2,
          .hidden = 12,
          .context = 5,
          .kv_repeat = 2,
          .ttt_layers = LayerSet::range(1, 1),
          .placement = placement,
          .ttt = {.dim = 0,
                  .num_heads = 0,
                  .mini_batch_size = 4,
                  .layers = layers,
                  .expansion = 2,
                  .variant = variant}};
}
template <class B>
using WithLinear = Temporal<config(1, TttVariant::lm, Placement::parallel), B>;
template <class B>
using WithMlp = Temporal<config(2, TttVariant::video, Placement::after_attention), B>;
template <class B>
using Factors = Ttt<TttConfig{.dim = 8,
                              .num_heads = 2,
                              .mini_batch_size = 4,
                              .layers = 2,
                              .expansion = 2,
                              .memory = TttMemory::factors},
                    B>;
template <class B>
using Norms = LayerNorm<NormConfig{.dim = 70}, B>;
template <class B>
using Biased = Linear<LinearConfig{.in = 7, .out = 300, .bias = true}, B>;
template <class B>
using Scaled = LayerScale<LayerScaleConfig{.dim = 33}, B>;
template <class B>
using Feed = FeedForward<FeedForwardConfig{.dim = 6, .hidden = 10}, B>;
}  // namespace

TEST_CASE("teams: Temporal with TTT-Linear") { hold_teams<WithLinear>(); }
TEST_CASE("teams: Temporal with TTT-MLP") { hold_teams<WithMlp>(); }
TEST_CASE("teams: segments of Temporal with TTT-Linear") { hold_carrying_teams<WithLinear>(); }
TEST_CASE("teams: TTT-MLP that keeps factors") {
  hold_teams<Factors>();
  hold_carrying_teams<Factors>();
}
TEST_CASE("teams: LayerNorm") { hold_teams<Norms>({.batch = 5, .steps = 20}); }
TEST_CASE("teams: Linear with bias") { hold_teams<Biased>(); }
TEST_CASE("teams: LayerScale") { hold_teams<Scaled>(); }
TEST_CASE("teams: FeedForward") { hold_teams<Feed>(); }

TEST_CASE("teams: products of every kind") {
  Rng rng(1);
  Cpu<double> be(1);
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const auto [M, N, K] :
           {std::array<Index, 3>{1, 1, 1}, {5, 7, 3}, {16, 16, 64}, {17, 40, 9}, {64, 65, 16}, {3, 5, 0}}) {
        for (const double beta : {0.0, -0.5}) {
          const auto a = be.make<double, dyn>(70 * 70), b = be.make<double, dyn>(70 * 70);
          const auto c = be.make<double, dyn>(70 * 70), expected = be.make<double, dyn>(70 * 70);
          for (const auto& t : {a, b, c}) laws::fill_normal(t, 1, rng);
          be.copy(c.data(), expected.data(), c.size());
          const auto plane = [](const double* data, Index rows, Index cols, bool transposed) {
            return transposed ? Matrix<const double>{data, cols, rows, 70}.t()
                              : Matrix<const double>{data, rows, cols, 70};
          };
          const auto A = plane(a.data(), M, K, ta), B = plane(b.data(), K, N, tb);
          for (Index i = 0; i < M; ++i) {
            for (Index j = 0; j < N; ++j) {
              double sum = 0;
              for (Index k = 0; k < K; ++k)
                sum += (ta ? a(k * 70 + i) : a(i * 70 + k)) * (tb ? b(j * 70 + k) : b(k * 70 + j));
              expected(i * 70 + j) = 1.5 * sum + (beta == 0 ? 0 : beta * expected(i * 70 + j));
            }
          }
          for (int member = 0; member < 5; ++member)
            mttt::detail::member_matmul<double>(member, 5, A, B, {c.data(), M, N, 70}, 1.5, beta);
          INFO(M << " x " << N << " x " << K << ", transposed " << ta << tb << ", beta " << beta);
          CHECK(laws::largest_difference(c.data(), expected.data(), c.size()) < 1e-14);
        }
      }
    }
  }
}
