#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny_without_ttt(const Options& options, const Model& model) {
  return stream<mttt::presets::tiny_without_ttt, mttt::presets::mimi_tiny, Device<float>>(options, model);
}
