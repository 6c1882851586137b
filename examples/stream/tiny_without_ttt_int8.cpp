#include "mttt/presets/tiny.hpp"
#include "stream.hpp"

int stream_tiny_without_ttt_int8(const Options& options, const Model& model) {
  return stream<mttt::presets::tiny_without_ttt, mttt::presets::mimi_tiny, Quantised<mttt::Int8>>(options,
                                                                                                  model);
}
