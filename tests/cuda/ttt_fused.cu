#include "ttt_fused.cuh"

using mttt::testing::FusedScan;

TEST_CASE("CUDA: fused TTT-Linear, heads of 64, mini-batches of 16") { FusedScan<64, 16>::hold_to_all(); }
TEST_CASE("CUDA: fused TTT-Linear, heads of 64, mini-batches of 32") { FusedScan<64, 32>::hold_to_all(); }
TEST_CASE("CUDA: fused TTT-Linear, heads of 64, mini-batches of 64") { FusedScan<64, 64>::hold_to_all(); }
TEST_CASE("CUDA: fused TTT-Linear, a few mini-batches", "[small]") {  // short enough for compute-sanitizer
  FusedScan<64, 16>::hold_to_composed({1, 1, 5 * 16 + 5});
  FusedScan<64, 64>::hold_to_composed({1, 1, 5 * 64 + 5});
  FusedScan<64, 16>::batch_changes_nothing(FusedScan<64, 16>::many(18 * 16 + 5));
  FusedScan<64, 64>::batch_changes_nothing(FusedScan<64, 64>::many(64 + 5));
}
