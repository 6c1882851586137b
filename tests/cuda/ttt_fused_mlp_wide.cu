#include "ttt_fused_mlp.cuh"

using mttt::bf16;
using mttt::Cuda;
using Scans = mttt::testing::FusedMlp<128>;

static_assert(Cuda<bf16>::fuses_ttt<128, 512, 2, 16> && Cuda<bf16>::fuses_ttt<128, 512, 2, 32> &&
              Cuda<bf16>::fuses_ttt<128, 512, 2, 64> && !Cuda<bf16>::fuses_ttt<128, 256, 2, 16>);

TEST_CASE("CUDA: fused TTT-MLP, heads of 128") {
  Scans::hold<16>({1, 16 * 17 + 5, 2});  // more than one group of mini-batches, and one that is not whole
  Scans::hold<32>({1, 32 * 2 + 5, 3});
  Scans::hold<64>({2, 64 * 2, 1});
  Scans::hold<64>({1, 64 * 3 + 21, 1});
}
TEST_CASE("CUDA: fused TTT-MLP, heads of 128, one token and more than one group") {
  Scans::hold<16>({1, 1, 2});
  Scans::hold<64>({1, 64 * 17 + 21, 1});
}
TEST_CASE("CUDA: fused TTT-MLP, heads of 128, does not see the future") {
  Scans::hold_to_causality<16>({1, 70, 1}, 37);
  Scans::hold_to_causality<32>({1, 70, 1}, 40);
  Scans::hold_to_causality<64>({2, 150, 1}, 77);
}
TEST_CASE("CUDA: fused TTT-MLP, heads of 128, of a session alone and in a batch") {
  Scans::hold_to_batches<16>({3, 37, 2});
  Scans::hold_to_batches<32>({3, 69, 1});
  Scans::hold_to_batches<64>({3, 149, 1});
}
TEST_CASE("CUDA: fused TTT-MLP, heads of 128, a mini-batch and a token", "[small]") {
  Scans::hold_to_batches<16>({3, 17, 1});
  Scans::hold_to_batches<64>({3, 65, 1});
}
TEST_CASE("CUDA: fused TTT-MLP, more heads of 128 than clusters at a time") {
  Scans::hold_to_batches<64>({3, 70, 13});
  // Where 15 or 16 fit at once: 18 heads go group by group, the 6 alone as a whole.
  Scans::hold_to_batches<16>({3, 17 * 16 + 5, 6});
}
