// expect: ttt_layers names a layer that does not exist
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/lm/temporal.hpp>

#if defined(RIGHT)
constexpr mttt::Index last = 3;
#else
constexpr mttt::Index last = 4;
#endif
constexpr mttt::TemporalConfig config{.dim = 8,
                                      .num_heads = 2,
                                      .num_layers = 4,
                                      .hidden = 8,
                                      .context = 8,
                                      .ttt_layers = mttt::LayerSet::range(1, last)};
constexpr auto width = mttt::Temporal<config, mttt::Cpu<float>>::in;
