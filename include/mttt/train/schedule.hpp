// Learning-rate schedules: pure functions of the step.
//
// Formula: one-cycle over steps s = 0 ... n - 1: from max / div_factor up to max at s = pct_start n - 1, then
//          along half a cosine down to max / div_factor / final_div_factor at s = n - 1.
// Shapes:  none.
// Units:   steps, learning rate.
// Errors:  no steps, pct_start outside [0, 1], factors that are not positive.
// Not supported: three phases; momentum cycles.
// Source:  torch.optim.lr_scheduler.OneCycleLR ("cos", three_phase false); Smith and Topin 2017.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "mttt/core/error.hpp"

namespace mttt {

enum class Warmup { cosine, linear };

class OneCycle {
 public:
  struct Options {
    std::int64_t total_steps;
    double max_lr;
    double pct_start = 0.05;
    double div_factor = 25, final_div_factor = 1e4;
    Warmup warmup = Warmup::cosine;
  };

  explicit OneCycle(const Options& o) : o_(o) {
    if (o.total_steps < 1 || !(o.pct_start >= 0 && o.pct_start <= 1) || !(o.div_factor > 0) ||
        !(o.final_div_factor > 0) || !std::isfinite(o.max_lr)) {
      fail("one-cycle schedule",
           std::to_string(o.total_steps) + " steps, pct_start " + std::to_string(o.pct_start) +
               ", highest rate " + std::to_string(o.max_lr),
           "at least 1 step, pct_start from 0 to 1, positive factors, a finite rate",
           "correct the training options");
    }
  }

  /// Steps past the last keep its rate.
  double operator()(std::int64_t step) const {
    const double low = o_.max_lr / o_.div_factor;
    const double peak = o_.pct_start * static_cast<double>(o_.total_steps) - 1;  // need not be whole
    const double last = static_cast<double>(o_.total_steps - 1);
    const double s = std::clamp(static_cast<double>(step), 0.0, last);
    if (s <= peak) {
      const double part = peak > 0 ? s / peak : 1;
      return o_.warmup == Warmup::cosine ? along_cosine(low, o_.max_lr, part)
                                         : low + (o_.max_lr - low) * part;
    }
    return along_cosine(o_.max_lr, low / o_.final_div_factor, last > peak ? (s - peak) / (last - peak) : 1);
  }

 private:
  static double along_cosine(double from, double to, double part) {
    return to + (from - to) / 2 * (1 + std::cos(3.14159265358979324 * part));
  }
  Options o_;
};

struct ConstantRate {
  double lr;
  double operator()(std::int64_t) const { return lr; }
};

}  // namespace mttt
