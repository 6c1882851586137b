#include "mttt/nn/feed_forward.hpp"

#include "laws.hpp"
#include "mttt/nn/gating.hpp"

namespace {
using namespace mttt;
template <class B>
using Gated = SiluGating<GatingConfig{.dim = 8, .hidden = gating_hidden(8, 32)}, B>;
template <class B>
using GatedOdd = SiluGating<GatingConfig{.dim = 5, .hidden = 7}, B>;
template <class B>
using Plain = FeedForward<FeedForwardConfig{.dim = 5, .hidden = 13}, B>;

static_assert(gating_hidden(4096, 4 * 4096) == 10752,
              "published: 21/8 of dim when the feed-forward is 4 dim");
static_assert(gating_hidden(1024, 4224) == 2816, "published: two thirds of any other feed-forward");
}  // namespace

TEST_CASE("SiluGating") { mttt::testing::hold_to_all_laws<Gated>({.batch = 3}); }
TEST_CASE("SiluGating, odd widths") { mttt::testing::hold_to_all_laws<GatedOdd>({.input_scale = 2}); }
TEST_CASE("FeedForward") { mttt::testing::hold_to_all_laws<Plain>({.batch = 3, .input_scale = 2}); }
