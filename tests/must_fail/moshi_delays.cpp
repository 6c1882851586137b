// expect: MoshiConfig: delays must not be negative, nor more than 1 \+ n_q
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/lm/moshi.hpp>

#if defined(RIGHT)
constexpr int last = 0;
#else
constexpr int last = 1;
#endif
constexpr mttt::MoshiConfig config{
    .n_q = 2,
    .dep_q = 2,
    .card = 8,
    .text_card = 8,
    .delays = {0, 0, 1, last},
    .temporal = {.dim = 8, .num_heads = 2, .num_layers = 1, .hidden = 8, .context = 8},
    .depformer = {.dim = 8, .num_heads = 2, .num_layers = 1, .hidden = 8}};
constexpr auto width = mttt::Moshi<config, mttt::Cpu<float>>::dim;
