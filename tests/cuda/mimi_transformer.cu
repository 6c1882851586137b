#include "mttt/codec/mimi_transformer.hpp"

#include "agreement_in.cuh"

namespace {
using namespace mttt;
template <class B>
using Transformer =
    MimiTransformer<MimiTransformerConfig{
                        .d_model = 12, .num_heads = 3, .num_layers = 2, .dim_feedforward = 20, .context = 5},
                    B>;
}  // namespace

TEST_CASE("CUDA: Mimi transformer") { mttt::testing::hold_to_agreement_in<Transformer, float, double>(); }
