#include "train_codec.hpp"

int train_mimi_tiny(const Options& options) {
  return train_codec<mttt::presets::mimi_tiny, mttt::DiscriminatorConfig{.filters = 8}>(options);
}
