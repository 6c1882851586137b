// Loader: the micro-batches of a training in their order, the next one of which is read while one is computed.
//
// Rule:    take(i) is micro-batch i of Batches; another thread then fills micro-batch i + 1. Whoever asks in
//          another order waits for what it asks.
// Shapes:  codes (B, K, T), before (B, K, reach), continues (B).
// Units:   seconds.
// Errors:  those of reading codes: thrown by the take() that asks for them.
// Not supported: several threads that take.
// Source:  none.
#pragma once

#include <chrono>
#include <future>
#include <optional>

#include "mttt/data/batches.hpp"

namespace mttt {

/// A micro-batch in the host's memory.
struct LoadedBatch {
  std::int64_t index = -1;
  Index frames = 0;
  std::vector<std::int32_t> codes, before;
  std::vector<std::uint8_t> continues;
};

class Loader {
 public:
  /// `reach`: how many frames before a segment are wanted; `initial(k)` stands there where a recording starts.
  Loader(const Batches& batches, Index reach, std::function<std::int32_t(Index k)> initial)
      : batches_(batches), reach_(reach), initial_(std::move(initial)) {}
  ~Loader() {
    if (next_.valid()) next_.wait();
  }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Valid until the next call.
  const LoadedBatch& take(std::int64_t index) {
    const auto start = std::chrono::steady_clock::now();
    if (next_.valid()) now_ = next_.get();
    if (now_.index != index) now_ = load(index);
    waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    next_ = std::async(std::launch::async, [this, index] { return load(index + 1); });
    return now_;
  }
  /// What take() has taken so far.
  double seconds_waited() const { return waited_; }

  /// (B, K, T) or (B, K, reach) in the backend's arena.
  template <class B>
  Tensor<std::int32_t, dyn, dyn, dyn> upload(B& be, const std::vector<std::int32_t>& codes) const {
    const Index batch = batches_.options().batch, streams = batches_.streams();
    const auto there = be.template make<std::int32_t, dyn, dyn, dyn>(
        batch, streams, static_cast<Index>(codes.size()) / (batch * streams));
    be.to_device(codes.data(), there.data(), there.size());
    return there;
  }
  template <class B>
  Mask upload(B& be, const std::vector<std::uint8_t>& mask) const {
    const auto there = be.template make<std::uint8_t, dyn>(static_cast<Index>(mask.size()));
    be.to_device(mask.data(), there.data(), there.size());
    return there;
  }

 private:
  LoadedBatch load(std::int64_t index) const {
    const Index batch = batches_.options().batch, streams = batches_.streams();
    LoadedBatch loaded{index, batches_.frames_at(index), {}, {}, {}};
    const auto filled = [&](std::vector<std::int32_t>& to, Index frames) {
      to.resize(static_cast<std::size_t>(batch * streams * frames));
      return Tensor<std::int32_t, dyn, dyn, dyn>(to.data(), {batch, streams, frames});
    };
    batches_.fill(index, filled(loaded.codes, loaded.frames));
    if (reach_ > 0) batches_.fill_before(index, filled(loaded.before, reach_), initial_);
    for (Index b = 0; b < batch; ++b) loaded.continues.push_back(batches_.segment(index, b).continues);
    return loaded;
  }

  const Batches& batches_;
  Index reach_;
  std::function<std::int32_t(Index)> initial_;
  LoadedBatch now_;
  std::future<LoadedBatch> next_;
  double waited_ = 0;
};

}  // namespace mttt
