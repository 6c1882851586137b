#include "mttt/presets/moshi.hpp"
#include "start_define.hpp"

template struct Start<mttt::presets::moshi_7b_ttt, mttt::bf16>;
