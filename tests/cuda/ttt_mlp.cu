#include "agreement.cuh"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement;
template <class B>
using TttMlp = Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4, .layers = 2, .expansion = 4}, B>;
template <class B>
using TttMlp3Video = Ttt<TttConfig{.dim = 8,
                                   .num_heads = 2,
                                   .mini_batch_size = 4,
                                   .layers = 3,
                                   .expansion = 3,
                                   .variant = TttVariant::video},
                         B>;
template <class B>  // scratch in shared memory on request
using Medium = Ttt<TttConfig{.dim = 64, .num_heads = 2, .mini_batch_size = 16, .layers = 2}, B>;
template <class B>  // heads as wide as Moshi's: scratch in global memory
using Wide =
    Ttt<TttConfig{.dim = 128, .num_heads = 1, .mini_batch_size = 16, .layers = 2, .base_lr = 0.1}, B>;
}  // namespace

TEST_CASE("CUDA: TTT-MLP of 2 layers") { hold_to_agreement<TttMlp>(); }
TEST_CASE("CUDA: TTT-MLP of 3 layers, video variant") { hold_to_agreement<TttMlp3Video>(); }
TEST_CASE("CUDA: TTT-MLP, medium") { hold_to_agreement<Medium>({.batch = 1, .steps = 35}); }
TEST_CASE("CUDA: TTT-MLP, wide") { hold_to_agreement<Wide>({.batch = 1, .steps = 35}); }
