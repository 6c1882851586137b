#include "mttt/presets/moshi.hpp"
#include "stream.hpp"

int stream_moshi_7b(const Options& options, const Model& model) {
  return stream<mttt::presets::moshi_7b, mttt::presets::mimi_24khz, Device<float>>(options, model);
}
