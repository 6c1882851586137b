#include "agreement.cuh"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>
using TttMlp3Video = Ttt<TttConfig{.dim = 8,
                                   .num_heads = 2,
                                   .mini_batch_size = 4,
                                   .layers = 3,
                                   .expansion = 3,
                                   .variant = TttVariant::video},
                         B>;
}  // namespace

TEST_CASE("CUDA: TTT-MLP of 3 layers, video variant") { hold_to_agreement_in<TttMlp3Video, float, double>(); }
