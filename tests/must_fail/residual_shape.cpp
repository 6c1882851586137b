// expect: Residual: the inner block must give as many channels and steps as it takes
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/residual.hpp"

using B = mttt::Cpu<float>;
#if defined(RIGHT)
using Block = mttt::Residual<mttt::Linear<mttt::LinearConfig{.in = 4, .out = 4}, B>>;
#elif defined(WRONG)
using Block = mttt::Residual<mttt::Linear<mttt::LinearConfig{.in = 4, .out = 5}, B>>;
#endif
static_assert(Block::in == 4);
