// expect: Gated: the inner block must keep the width
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/nn/linear.hpp>
#include <mttt/ttt/gate.hpp>

#if defined(RIGHT)
using Inner = mttt::Linear<mttt::LinearConfig{.in = 4, .out = 4}, mttt::Cpu<float>>;
#else
using Inner = mttt::Linear<mttt::LinearConfig{.in = 4, .out = 5}, mttt::Cpu<float>>;
#endif
constexpr auto width = mttt::Gated<mttt::GateConfig{}, Inner, mttt::Cpu<float>>::in;
