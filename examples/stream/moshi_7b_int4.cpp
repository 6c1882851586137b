#include "mttt/presets/moshi.hpp"
#include "stream.hpp"

int stream_moshi_7b_int4(const Options& options, const Model& model) {
  return stream<mttt::presets::moshi_7b, mttt::presets::mimi_24khz, Quantised<mttt::Int4>>(options, model);
}
