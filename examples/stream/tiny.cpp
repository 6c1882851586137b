#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny(const Options& options, const Model& model) {
  return stream<mttt::presets::tiny, mttt::presets::mimi_tiny, Device<float>>(options, model);
}
