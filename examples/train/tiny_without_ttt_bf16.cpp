#include "mttt/presets/tiny.hpp"
#include "passes_define.hpp"
#include "save_define.hpp"
#include "start_define.hpp"
#include "train.hpp"

int train_tiny_without_ttt_bf16(const Options& options) {
  return train<mttt::presets::tiny_without_ttt, mttt::bf16>(options);
}
