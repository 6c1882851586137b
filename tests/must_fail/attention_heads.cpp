// expect: Attention: num_heads must divide dim
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/nn/attention.hpp"

using B = mttt::Cpu<float>;
#if defined(RIGHT)
using Block = mttt::Attention<mttt::AttentionConfig{.dim = 12, .num_heads = 3}, B>;
#elif defined(WRONG)
using Block = mttt::Attention<mttt::AttentionConfig{.dim = 12, .num_heads = 5}, B>;
#endif
static_assert(Block::in == 12);
