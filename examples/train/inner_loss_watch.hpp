// InnerLossWatch: now and then, what the inner loops do to their losses, for metrics.jsonl and for their guard.
#pragma once

#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "mttt/lm/probes.hpp"

/// Now and then, what the inner loops do to their losses in the micro-batch that comes.
class InnerLossWatch {
 public:
  /// `every`: steps between two looks; 0: as many as the guard of the inner loops may wait, in steps that are
  /// logged. A look at one segment in 20 steps takes less than 3 % of the time even where that is the batch.
  InnerLossWatch(std::int64_t every, std::int64_t log_freq, bool has_ttt)
      : every_(!has_ttt    ? 0
               : every > 0 ? every
                           : (19 + log_freq) / log_freq * log_freq) {}

  bool due(std::int64_t step) const { return every_ > 0 && (step == 1 || step % every_ == 0); }
  /// `look` gives the inner losses of a micro-batch.
  template <class F>
  void look(const F& look) {
    const auto start = std::chrono::steady_clock::now();
    found_ = look();
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++looks_;
  }
  const std::vector<mttt::InnerLosses>& found() const { return found_; }
  /// What was found since the last time, for metrics.jsonl.
  void tell(nlohmann::json& line) {
    for (const auto& layer : std::exchange(found_, {})) {
      const std::string name = "_layer_" + std::to_string(layer.layer);
      line["inner_loss_0" + name] = layer.at_start;
      line["inner_loss_prev" + name] = layer.before;
      line["inner_loss_after" + name] = layer.after;
      line["inner_violations" + name] = layer.violations;
    }
  }
  void print(double seconds) const {
    if (looks_ > 0)
      std::printf("inner losses: %d looks, %.2f %% of the time\n", looks_, 100 * seconds_ / seconds);
  }

 private:
  std::int64_t every_;
  int looks_ = 0;
  double seconds_ = 0;
  std::vector<mttt::InnerLosses> found_;
};
