#include "train_codec.hpp"

int train_mimi_24khz(const Options& options) {
  return train_codec<mttt::presets::mimi_24khz, mttt::DiscriminatorConfig{.filters = 32}>(options);
}
