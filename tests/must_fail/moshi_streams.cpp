// expect: MoshiConfig: dep_q must be 1 to n_q
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/lm/moshi.hpp>

#if defined(RIGHT)
constexpr mttt::Index spoken = 2;
#else
constexpr mttt::Index spoken = 3;
#endif
constexpr mttt::MoshiConfig config{
    .n_q = 2,
    .dep_q = spoken,
    .card = 8,
    .text_card = 8,
    .delays = {0, 0, 1},
    .temporal = {.dim = 8, .num_heads = 2, .num_layers = 1, .hidden = 8, .context = 8},
    .depformer = {.dim = 8, .num_heads = 2, .num_layers = 1, .hidden = 8}};
constexpr auto width = mttt::Moshi<config, mttt::Cpu<float>>::dim;
