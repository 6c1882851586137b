#include "ttt_fused_mlp.cuh"

using mttt::bf16;
using mttt::Cuda;
using Scans = mttt::testing::FusedMlp<64>;

static_assert(Cuda<bf16>::fuses_ttt<64, 256, 2, 16> && Cuda<bf16>::fuses_ttt<64, 256, 2, 32> &&
              Cuda<bf16>::fuses_ttt<64, 256, 2, 64> && !Cuda<float>::fuses_ttt<64, 256, 2, 16>);

TEST_CASE("CUDA: TTT-MLP's fused scans equal the composed ones") {
  Scans::hold<16>({2, 16 * 16 + 37, 2});  // more than one group of mini-batches, and one that is not whole
  Scans::hold<32>({1, 32 * 2 + 5, 3});
  Scans::hold<64>({1, 64 * 3, 2});
  Scans::hold<64>({1, 64 * 17 + 21, 1});
}
TEST_CASE("CUDA: TTT-MLP's fused scans of one token and of one mini-batch") {
  Scans::hold<16>({1, 1, 2});
  Scans::hold<64>({2, 64, 1});
}
TEST_CASE("CUDA: TTT-MLP's fused scan does not see the future") {
  Scans::hold_to_causality<16>({1, 70, 1}, 37);
  Scans::hold_to_causality<32>({1, 70, 1}, 40);
  Scans::hold_to_causality<64>({2, 150, 1}, 77);
}
TEST_CASE("CUDA: TTT-MLP's fused scans of a session alone and in a batch", "[small]") {
  Scans::hold_to_batches<16>({3, 37, 2});
  Scans::hold_to_batches<64>({3, 149, 1});
}
