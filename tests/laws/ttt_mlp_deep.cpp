#include "laws.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
template <class B>
using TttMlp4 =
    Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4, .layers = 4, .expansion = 2}, B>;
template <class B>
using TttMlp5Video = Ttt<TttConfig{.dim = 8,
                                   .num_heads = 2,
                                   .mini_batch_size = 4,
                                   .layers = 5,
                                   .expansion = 3,
                                   .variant = TttVariant::video},
                         B>;
}  // namespace

TEST_CASE("TTT-MLP of 4 layers") { mttt::testing::hold_to_all_laws<TttMlp4>(); }
TEST_CASE("TTT-MLP of 5 layers, video variant") { mttt::testing::hold_to_all_laws<TttMlp5Video>(); }
