#include "agreement.cuh"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement;
template <class B>
using TttLinear = Ttt<TttConfig{.dim = 12, .num_heads = 3, .mini_batch_size = 4}, B>;
}  // namespace

TEST_CASE("CUDA: TTT-Linear, lm variant") { hold_to_agreement<TttLinear>(); }
