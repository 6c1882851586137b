// In bf16, on the CPU too, where it halves the memory.
#include "mttt/presets/moshi.hpp"
#include "stream.hpp"

int stream_moshi_7b_half(const Options& options, const Model& model) {
  return stream<mttt::presets::moshi_7b, mttt::presets::mimi_24khz, Device<mttt::bf16>>(options, model);
}
