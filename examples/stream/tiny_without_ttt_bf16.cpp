#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny_without_ttt_bf16(const Options& options, const Model& model) {
  return stream<mttt::presets::tiny_without_ttt, mttt::presets::mimi_tiny, Device<mttt::bf16>>(options,
                                                                                               model);
}
