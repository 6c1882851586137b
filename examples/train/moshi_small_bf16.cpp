#include "mttt/presets/moshi_small.hpp"
#include "passes_define.hpp"
#include "save_define.hpp"
#include "start_define.hpp"
#include "train.hpp"

int train_moshi_small_bf16(const Options& options) {
  return train<mttt::presets::moshi_small, mttt::bf16>(options);
}
