// The laws of Mimi's way from the latent to samples.
#include "mimi_small.hpp"

namespace {
using namespace mttt;
template <class B>
using FromLatent = typename Mimi<mttt::testing::mimi_small, B>::FromLatent;
}  // namespace

TEST_CASE("Mimi, latent to samples") { mttt::testing::hold_to_all_laws<FromLatent>({.steps = 7}); }
