#include "agreement.cuh"
#include "laws/mimi_small.hpp"

namespace {
using namespace mttt;
template <class B>
using ToLatent = typename Mimi<mttt::testing::mimi_small, B>::ToLatent;
}  // namespace

TEST_CASE("CUDA: Mimi, samples to latent") {
  mttt::testing::hold_to_agreement_in<ToLatent, float>({.steps = 7});
}
