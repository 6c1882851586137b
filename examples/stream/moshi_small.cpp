#include "mttt/presets/moshi_small.hpp"
#include "stream.hpp"

int stream_moshi_small(const Options& options, const Model& model) {
  return stream<mttt::presets::moshi_small, mttt::presets::mimi_small, Device<float>>(options, model);
}
