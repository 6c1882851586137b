// A start that was drawn in the host's memory, into the weights of a trainer.
#pragma once

#include <algorithm>
#include <vector>

#include "mttt/train/trainer.hpp"

/// What trains is taken as it is; what does not is rounded to what the model stores.
template <class Start, class B, class Trainer>
void upload_start(B& be, Trainer& trainer, const Start& start) {
  using namespace mttt;
  using T = typename B::Scalar;
  trainer.edit_weights([&](auto& all) {
    for_each_tensor(
        [&](std::string_view, const auto& from, auto& trained, auto& read) {
          if (left_out(from)) return;
          if (!left_out(trained)) return be.to_device(from.data(), trained.data(), from.size());
          std::vector<T> rounded(static_cast<std::size_t>(from.size()));
          std::transform(from.data(), from.data() + from.size(), rounded.begin(),
                         [](float x) { return static_cast<T>(x); });
          be.to_device(rounded.data(), read.data(), read.size());
        },
        *start, *all, *trainer.params);
  });
}
