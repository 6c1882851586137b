#include "agreement.cuh"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>  // scratch in shared memory on request
using Medium = Ttt<TttConfig{.dim = 64, .num_heads = 2, .mini_batch_size = 16, .layers = 2}, B>;
template <class B>  // heads as wide as Moshi's: scratch in global memory
using Broad =
    Ttt<TttConfig{.dim = 128, .num_heads = 1, .mini_batch_size = 16, .layers = 2, .base_lr = 0.1}, B>;
}  // namespace

TEST_CASE("CUDA: TTT-MLP, medium") { hold_to_agreement_in<Medium, float, bf16>({.batch = 1, .steps = 35}); }
TEST_CASE("CUDA: TTT-MLP, wide") { hold_to_agreement_in<Broad, float, bf16>({.batch = 1, .steps = 35}); }
