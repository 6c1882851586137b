// expect: BoundedContext
// Without a context there is no bound on what a step would have to remember.
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/nn/attention.hpp"

using B = mttt::Cpu<float>;
#if defined(RIGHT)
using Block = mttt::Attention<mttt::AttentionConfig{.dim = 12, .num_heads = 3, .context = 250}, B>;
#elif defined(WRONG)
using Block = mttt::Attention<mttt::AttentionConfig{.dim = 12, .num_heads = 3, .context = 0}, B>;
#endif

void stream(B& be, Block::Params& p, Block::State& state, mttt::Sequence<float, 12> x,
            mttt::Sequence<float, 12> y) {
  Block::step(be, p, state, x, y, {});
}
