#include "mttt/presets/moshi.hpp"
#include "train.hpp"

int train_moshi_7b_lora_bf16(const Options& options) {
  return train<mttt::presets::moshi_7b_lora, mttt::bf16>(options);
}
