#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny(const Options& options) { return stream<mttt::presets::tiny, float>(options); }
