#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny_bf16(const Options& options) { return stream<mttt::presets::tiny, mttt::bf16>(options); }
