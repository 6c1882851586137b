#include "agreement.cuh"
#include "mttt/nn/attention.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement;
template <class B>  // the ring wraps
using Windowed = Attention<AttentionConfig{.dim = 12, .num_heads = 2, .context = 4}, B>;
template <class B>
using Grouped =
    Attention<AttentionConfig{.dim = 24, .num_heads = 12, .kv_repeat = 4, .context = 5, .max_period = 50}, B>;
template <class B>
using Roomy =
    Attention<AttentionConfig{.dim = 10, .num_heads = 2, .kv_repeat = 2, .context = 40, .rope = false}, B>;
}  // namespace

TEST_CASE("CUDA: attention with a window") { hold_to_agreement<Windowed>({.batch = 3}); }
TEST_CASE("CUDA: attention with grouped queries") { hold_to_agreement<Grouped>(); }
TEST_CASE("CUDA: attention, window longer than the sequence") { hold_to_agreement<Roomy>(); }
