#include "train_codec.hpp"

int train_mimi_small(const Options& options) {
  return train_codec<mttt::presets::mimi_small, mttt::DiscriminatorConfig{.filters = 16}>(options);
}
