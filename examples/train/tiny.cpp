#include "mttt/presets/tiny.hpp"
#include "passes_define.hpp"
#include "save_define.hpp"
#include "start_define.hpp"
#include "train.hpp"

int train_tiny(const Options& options) { return train<mttt::presets::tiny, float>(options); }
