// expect: weights in 8 or 4 bits are not trained
// Weights in 8 bits have no gradient, and say so.
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/backend/with_weights.hpp>
#include <mttt/nn/linear.hpp>

#if defined(RIGHT)
using B = mttt::Cpu<float>;
#else
using B = mttt::WithWeights<mttt::Int8, mttt::Cpu<float>>;
#endif
using Block = mttt::Linear<mttt::LinearConfig{.in = 32, .out = 8}, B>;

void train(B& be, const Block::Params& p, const Block::Saved& saved, mttt::Sequence<const float, 8> dy,
           mttt::Sequence<float, 32> dx, Block::Params& grad) {
  Block::backward(be, p, saved, dy, dx, grad);
}
