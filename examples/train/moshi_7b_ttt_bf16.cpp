#include "mttt/presets/moshi.hpp"
#include "train.hpp"

int train_moshi_7b_ttt_bf16(const Options& options) {
  return train<mttt::presets::moshi_7b_ttt, mttt::bf16>(options);
}
