#include "codec_define.hpp"

template struct Codec<mttt::presets::mimi_small>;
