#include "encode.hpp"

int encode_mimi_tiny(const Options& options) {
  return mttt::encoding::Encode<mttt::presets::mimi_tiny>::run(options);
}
