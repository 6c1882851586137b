#include "mttt/codec/mimi_transformer.hpp"

#include "agreement.cuh"

namespace {
using namespace mttt;
template <class B>
using Transformer =
    MimiTransformer<MimiTransformerConfig{
                        .d_model = 12, .num_heads = 3, .num_layers = 2, .dim_feedforward = 20, .context = 5},
                    B>;
// Heads of 64 as in the published codec, which one kernel takes, and a ring that wraps.
template <class B>
using LongHeads =
    MimiTransformer<MimiTransformerConfig{
                        .d_model = 128, .num_heads = 2, .num_layers = 1, .dim_feedforward = 64, .context = 7},
                    B>;
}  // namespace

TEST_CASE("CUDA: Mimi transformer") { mttt::testing::hold_to_agreement_in<Transformer, float, double>(); }
TEST_CASE("CUDA: Mimi transformer with long heads") {
  mttt::testing::hold_to_agreement_in<LongHeads, float>();
}
