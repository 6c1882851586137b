#include "laws.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
template <class B>
using TttMlp = Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4, .layers = 2, .expansion = 4}, B>;
template <class B>
using TttMlp3 =
    Ttt<TttConfig{.dim = 8, .num_heads = 1, .mini_batch_size = 5, .layers = 3, .expansion = 2}, B>;
}  // namespace

TEST_CASE("TTT-MLP of 2 layers") { mttt::testing::hold_to_all_laws<TttMlp>(); }
TEST_CASE("TTT-MLP of 3 layers") { mttt::testing::hold_to_all_laws<TttMlp3>(); }
