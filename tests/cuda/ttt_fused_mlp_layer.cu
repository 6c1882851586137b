// A TTT-MLP layer whose scans the GPU fuses, beside the composed ones on the CPU.
#include "agreement.cuh"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
template <class B>
using Layer = Ttt<TttConfig{.dim = 128, .num_heads = 2, .mini_batch_size = 16, .layers = 2}, B>;
}  // namespace

TEST_CASE("CUDA: TTT-MLP layer, fused") {
  mttt::testing::hold_to_agreement_in<Layer, bf16>({.batch = 2, .steps = 16 * 16 + 21});
}
