#include "agreement.cuh"
#include "mttt/ttt/gate.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;
using mttt::testing::hold_to_agreement_in;
template <class B>
using TttLinearVideo =
    Ttt<TttConfig{.dim = 12, .num_heads = 2, .mini_batch_size = 4, .variant = TttVariant::video}, B>;
template <class B>
using GatedTtt = Gated<GateConfig{}, Ttt<TttConfig{.dim = 8, .num_heads = 2, .mini_batch_size = 4}, B>, B>;
}  // namespace

TEST_CASE("CUDA: TTT-Linear, video variant") { hold_to_agreement_in<TttLinearVideo, float, double>(); }
TEST_CASE("CUDA: gated TTT-Linear") { hold_to_agreement_in<GatedTtt, float, bf16>(); }
