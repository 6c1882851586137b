// expect: TttConfig: dim must be a multiple of num_heads
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/ttt/ttt.hpp>

#if defined(RIGHT)
constexpr mttt::TttConfig config{.dim = 12, .num_heads = 3};
#else
constexpr mttt::TttConfig config{.dim = 12, .num_heads = 5};
#endif
constexpr auto width = mttt::Ttt<config, mttt::Cpu<float>>::in;
