#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny_bf16(const Options& options, const Model& model) {
  return stream<mttt::presets::tiny, mttt::presets::mimi_tiny, Device<mttt::bf16>>(options, model);
}
