// expect: Sequential: each block must take as many channels as the block before it gives
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/sequential.hpp"

using B = mttt::Cpu<float>;
template <mttt::Index from, mttt::Index to>
using Map = mttt::Linear<mttt::LinearConfig{.in = from, .out = to}, B>;

#if defined(RIGHT)
using Chain = mttt::Sequential<Map<3, 5>, Map<5, 2>>;
#elif defined(WRONG)
using Chain = mttt::Sequential<Map<3, 5>, Map<4, 2>>;
#endif
static_assert(Chain::in == 3 && Chain::out == 2);
