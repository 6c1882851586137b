#include "temporal_small.cuh"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
using mttt::testing::temporal_small;
template <class B>
using AfterAttention = Temporal<temporal_small(Placement::after_attention, 1), B>;
template <class B>
using InsteadOfAttention = Temporal<temporal_small(Placement::instead_of_attention, 2), B>;
}  // namespace

TEST_CASE("CUDA: Temporal, TTT after attention") { hold_to_agreement_in<AfterAttention, float>(); }
TEST_CASE("CUDA: Temporal, TTT-MLP instead of attention") {
  hold_to_agreement_in<InsteadOfAttention, float>();
}
