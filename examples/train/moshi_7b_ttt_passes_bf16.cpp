#include "mttt/presets/moshi.hpp"
#include "passes_define.hpp"
#include "save_define.hpp"

template struct Passes<mttt::presets::moshi_7b_ttt, mttt::bf16>;
template struct Save<mttt::presets::moshi_7b_ttt, mttt::bf16>;
