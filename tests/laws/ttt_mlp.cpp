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
