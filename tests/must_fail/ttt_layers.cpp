// expect: TttConfig: layers must be 1
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/ttt/ttt.hpp>

#if defined(RIGHT)
constexpr mttt::TttConfig config{.dim = 12, .num_heads = 3, .layers = 5};
#else
constexpr mttt::TttConfig config{.dim = 12, .num_heads = 3, .layers = 6};
#endif
constexpr auto width = mttt::Ttt<config, mttt::Cpu<float>>::in;
