// The laws of SEANet encoders and decoders, with other layers than Mimi's: two residual ones a stage.
#include "mttt/codec/seanet.hpp"

#include "laws.hpp"

namespace {
using namespace mttt;
constexpr SeanetConfig config{.channels = 2,
                              .dimension = 5,
                              .n_filters = 2,
                              .n_residual_layers = 2,
                              .kernel_size = 5,
                              .ratios = {3, 2},
                              .dilation_base = 3};
template <class B>
using Encoder = SeanetEncoder<config, B>;
template <class B>
using Decoder = SeanetDecoder<config, B>;
}  // namespace

TEST_CASE("SEANet encoder") { mttt::testing::hold_to_all_laws<Encoder>({.steps = 7}); }
TEST_CASE("SEANet decoder") { mttt::testing::hold_to_all_laws<Decoder>({.steps = 7}); }
