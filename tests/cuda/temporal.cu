#include "temporal_small.cuh"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
using mttt::testing::temporal_small;
template <class B>
using Parallel = Temporal<temporal_small(Placement::parallel, 1), B>;
}  // namespace

TEST_CASE("CUDA: Temporal, TTT in parallel") { hold_to_agreement_in<Parallel, float, bf16>(); }
