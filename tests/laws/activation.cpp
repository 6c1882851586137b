#include "mttt/nn/activation.hpp"

#include "laws.hpp"

namespace {
using namespace mttt;
template <class B>
using EluBlock = Activation<Elu, 5, B>;
template <class B>
using SiluBlock = Activation<Silu, 7, B>;
template <class B>
using GeluBlock = Activation<Gelu, 3, B>;
template <class B>
using GeluTanhBlock = Activation<GeluTanh, 3, B>;
}  // namespace

TEST_CASE("Activation: ELU") { mttt::testing::hold_to_all_laws<EluBlock>({.input_scale = 2}); }
TEST_CASE("Activation: SiLU") { mttt::testing::hold_to_all_laws<SiluBlock>({.batch = 3, .input_scale = 2}); }
TEST_CASE("Activation: GELU") { mttt::testing::hold_to_all_laws<GeluBlock>({.input_scale = 2}); }
TEST_CASE("Activation: GELU by tanh") { mttt::testing::hold_to_all_laws<GeluTanhBlock>(); }
