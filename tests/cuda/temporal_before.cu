#include "temporal_small.cuh"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
using mttt::testing::temporal_small;
template <class B>
using BeforeAttention = Temporal<temporal_small(Placement::before_attention, 2), B>;
}  // namespace

TEST_CASE("CUDA: Temporal, TTT-MLP before attention") {
  hold_to_agreement_in<BeforeAttention, float, bf16>();
}
