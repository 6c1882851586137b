#include "agreement.cuh"
#include "laws/mimi_small.hpp"

namespace {
using namespace mttt;
template <class B>
using FromLatent = typename Mimi<mttt::testing::mimi_small, B>::FromLatent;
}  // namespace

TEST_CASE("CUDA: Mimi, latent to samples") {
  mttt::testing::hold_to_agreement_in<FromLatent, float>({.steps = 7});
}
