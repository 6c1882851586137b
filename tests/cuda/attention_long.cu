#include "agreement.cuh"
#include "mttt/nn/attention.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>  // heads as wide as Moshi's, more keys than a team has members
using Long = Attention<AttentionConfig{.dim = 256, .num_heads = 2, .context = 300}, B>;
template <class B>
using Unlimited = Attention<AttentionConfig{.dim = 8, .num_heads = 2}, B>;
}  // namespace

TEST_CASE("CUDA: attention over hundreds of keys", "[long]") {
  hold_to_agreement_in<Long, float, bf16>({.batch = 1, .steps = 400});
}
TEST_CASE("CUDA: attention, unlimited") { hold_to_agreement_in<Unlimited, float, double>({.batch = 3}); }
