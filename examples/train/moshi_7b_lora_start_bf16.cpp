#include "mttt/presets/moshi.hpp"
#include "start_define.hpp"

template struct Start<mttt::presets::moshi_7b_lora, mttt::bf16>;
