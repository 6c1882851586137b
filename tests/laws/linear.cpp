#include "mttt/nn/linear.hpp"
#include "laws.hpp"
#include "mttt/backend/with_weights.hpp"

namespace {
using namespace mttt;
template <class B>
using LinearWithBias = Linear<LinearConfig{.in = 7, .out = 5, .bias = true}, B>;
template <class B>
using LinearWithoutBias = Linear<LinearConfig{.in = 16, .out = 9}, B>;
// Here, where CI compiles with clang++ too: overloads beside those of a base are found differently there.
static_assert(Backend<WithWeights<f16, Cpu<float>>> && Backend<WithWeights<Int8, Cpu<float>>>);
}  // namespace

TEST_CASE("Linear with bias") { mttt::testing::hold_to_all_laws<LinearWithBias>(); }
TEST_CASE("Linear without bias") { mttt::testing::hold_to_all_laws<LinearWithoutBias>(); }
