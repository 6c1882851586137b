#include "encode.hpp"

int encode_mimi_small(const Options& options) {
  return mttt::encoding::Encode<mttt::presets::mimi_small>::run(options);
}
