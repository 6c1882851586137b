#include "mttt/presets/moshi_small.hpp"
#include "stream.hpp"

int stream_moshi_small_int8(const Options& options, const Model& model) {
  return stream<mttt::presets::moshi_small, mttt::presets::mimi_small, Quantised<mttt::Int8>>(options, model);
}
