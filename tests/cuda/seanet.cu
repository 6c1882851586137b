#include "mttt/codec/seanet.hpp"

#include "agreement.cuh"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
constexpr SeanetConfig config{
    .channels = 2, .dimension = 5, .n_filters = 2, .kernel_size = 5, .ratios = {3, 2}, .dilation_base = 3};
template <class B>
using Encoder = SeanetEncoder<config, B>;
template <class B>
using Decoder = SeanetDecoder<config, B>;
}  // namespace

TEST_CASE("CUDA: SEANet encoder") { hold_to_agreement_in<Encoder, float>({.steps = 7}); }
TEST_CASE("CUDA: SEANet decoder") { hold_to_agreement_in<Decoder, float>({.steps = 7}); }
