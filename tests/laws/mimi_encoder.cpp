// The laws of Mimi's way from samples to the latent.
#include "mimi_small.hpp"

namespace {
using namespace mttt;
template <class B>
using ToLatent = typename Mimi<mttt::testing::mimi_small, B>::ToLatent;
}  // namespace

TEST_CASE("Mimi, samples to latent") { mttt::testing::hold_to_all_laws<ToLatent>({.steps = 7}); }
