#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny_without_ttt(const Options& options) {
  return stream<mttt::presets::tiny_without_ttt, float>(options);
}
