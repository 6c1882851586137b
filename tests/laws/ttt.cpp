#include "mttt/ttt/ttt.hpp"
#include "laws.hpp"

// Streaming == offline is also the law "primal == dual": step is the primal form, forward the dual one.
namespace {
using namespace mttt;
template <class B>
using TttLinear = Ttt<TttConfig{.dim = 12, .num_heads = 3, .mini_batch_size = 4}, B>;
template <class B>
using TttLinearVideo =
    Ttt<TttConfig{.dim = 12, .num_heads = 2, .mini_batch_size = 4, .variant = TttVariant::video}, B>;
template <class B>
using TttLinearVideoNoRope =
    Ttt<TttConfig{
            .dim = 12, .num_heads = 2, .mini_batch_size = 5, .variant = TttVariant::video, .rope = false},
        B>;
}  // namespace

TEST_CASE("TTT-Linear, lm variant") { mttt::testing::hold_to_all_laws<TttLinear>(); }
TEST_CASE("TTT-Linear, video variant") { mttt::testing::hold_to_all_laws<TttLinearVideo>(); }
TEST_CASE("TTT-Linear, video variant without RoPE") {
  mttt::testing::hold_to_all_laws<TttLinearVideoNoRope>();
}
