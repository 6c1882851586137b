#include "mttt/nn/linear.hpp"
#include "laws.hpp"

namespace {
using namespace mttt;
template <class B>
using LinearWithBias = Linear<LinearConfig{.in = 7, .out = 5, .bias = true}, B>;
template <class B>
using LinearWithoutBias = Linear<LinearConfig{.in = 16, .out = 9}, B>;
}  // namespace

TEST_CASE("Linear with bias") { mttt::testing::hold_to_all_laws<LinearWithBias>(); }
TEST_CASE("Linear without bias") { mttt::testing::hold_to_all_laws<LinearWithoutBias>(); }
