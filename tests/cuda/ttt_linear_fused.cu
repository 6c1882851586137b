// The layer with its fused scans, against the composed layer on the CPU.
#include "agreement.cuh"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>
using TttLinear = Ttt<TttConfig{.dim = 128, .num_heads = 2, .mini_batch_size = 16}, B>;
template <class B>
using TttLinearVideo =
    Ttt<TttConfig{.dim = 256, .num_heads = 2, .mini_batch_size = 16, .variant = TttVariant::video}, B>;
static_assert(Cuda<bf16>::fuses_ttt<64, 256, 1, 16> && Cuda<bf16>::fuses_ttt<128, 512, 1, 16> &&
              !Cuda<float>::fuses_ttt<64, 256, 1, 16>);
}  // namespace

TEST_CASE("CUDA: fused TTT-Linear, lm variant") { hold_to_agreement_in<TttLinear, bf16>({.steps = 37}); }
TEST_CASE("CUDA: fused TTT-Linear, video variant") {
  hold_to_agreement_in<TttLinearVideo, bf16>({.steps = 37});
}
