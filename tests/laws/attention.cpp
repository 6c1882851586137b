#include "mttt/nn/attention.hpp"

#include "laws.hpp"

namespace {
using namespace mttt;
template <class B>  // the ring wraps three times
using Windowed = Attention<AttentionConfig{.dim = 12, .num_heads = 2, .context = 4}, B>;
template <class B>  // 4 query heads to a key head, three key heads
using Grouped =
    Attention<AttentionConfig{.dim = 24, .num_heads = 12, .kv_repeat = 4, .context = 5, .max_period = 50}, B>;
template <class B>  // every step sees itself alone
using Alone = Attention<AttentionConfig{.dim = 6, .num_heads = 3, .context = 1}, B>;
template <class B>  // the window never binds; an odd head_dim, which only RoPE forbids
using Roomy =
    Attention<AttentionConfig{.dim = 10, .num_heads = 2, .kv_repeat = 2, .context = 40, .rope = false}, B>;
template <class B>
using Unlimited = Attention<AttentionConfig{.dim = 8, .num_heads = 2}, B>;

static_assert(Streamable<Windowed<Cpu<float>>, Cpu<float>>);
static_assert(Trainable<Unlimited<Cpu<float>>, Cpu<float>> && !Streamable<Unlimited<Cpu<float>>, Cpu<float>>,
              "without a context there is no bound on the cache");
}  // namespace

TEST_CASE("Attention, window shorter than the sequence") {
  mttt::testing::hold_to_all_laws<Windowed>({.batch = 3});
}
TEST_CASE("Attention, grouped queries") { mttt::testing::hold_to_all_laws<Grouped>(); }
TEST_CASE("Attention, window of one step") { mttt::testing::hold_to_all_laws<Alone>({.batch = 3}); }
TEST_CASE("Attention, window longer than the sequence") { mttt::testing::hold_to_all_laws<Roomy>(); }
TEST_CASE("Attention, unlimited") { mttt::testing::hold_to_training_laws<Unlimited>({.batch = 3}); }
