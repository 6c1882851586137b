// Verdict: whether a TTT layer learns, judged by its three inner losses, in words that say what to change.
//
// Formula: improvement = mean of l(W_(t-1)) - l(W_t): what a step does for its own frame;
//          benefit = mean of l(W_0) - l(W_(t-1)): what earlier frames taught for this one;
//          worse_after, worse_before: how often a step made it worse, and how often memory did;
//          violations = (worse_after + worse_before) / 2;
//          trend = last quarter of l(W_(t-1)) over the first, less 1.
//          The first of these rules that holds is the verdict:
//
//            unstable        a loss that is not finite, or a mean above 10
//            rate_too_high   l(W_t) above l(W_(t-1)) on average
//            no_learning     improvement below 0.001
//            no_order        violations of 40 % or more; a coin would give 50 %
//            no_adaptation   memory makes it worse than the start, or l(W_(t-1)) rises, and more than l(W_0)
//            odd_size        l(W_(t-1)) not in 0.01 to 1
//            flat            in order, but l(W_(t-1)) does not fall
//            healthy         l(W_0) > l(W_(t-1)) > l(W_t), falling, in 0.01 to 1
// Shapes:  curves (frames).
// Units:   losses as ttt/probe.hpp has them.
// Errors:  curves of different lengths. Fewer than 32 frames get no verdict but too_short.
// Not supported: none.
// Source:  the signs that the earlier attempt's documents list.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "mttt/core/tensor.hpp"

namespace mttt {

enum class InnerVerdict {
  healthy,
  flat,
  odd_size,
  no_adaptation,
  no_order,
  no_learning,
  rate_too_high,
  unstable,
  too_short
};

struct CurveStatistics {
  double mean = 0, deviation = 0, least = 0, largest = 0;
};

struct InnerReport {
  std::size_t frames = 0;
  CurveStatistics at_start, before, after;
  double improvement = 0, benefit = 0;
  double worse_after = 0, worse_before = 0, violations = 0;
  double trend = 0, start_trend = 0;  // of l(W_(t-1)), of l(W_0)
  InnerVerdict verdict = InnerVerdict::too_short;
};

namespace detail {

inline double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

inline CurveStatistics statistics_of(std::span<const double> values) {
  if (values.empty()) return {};
  const double mean = mean_of(values);
  double square = 0, least = values[0], largest = values[0];
  for (const double v : values) {
    square += (v - mean) * (v - mean);
    least = std::min(least, v), largest = std::max(largest, v);
  }
  return {mean, std::sqrt(square / static_cast<double>(values.size())), least, largest};
}

/// Last quarter over the first, less 1.
inline double trend_of(std::span<const double> values) {
  const std::size_t quarter = values.size() / 4;
  const double first = mean_of(values.first(quarter)), last = mean_of(values.last(quarter));
  return first > 0 ? last / first - 1 : 0;
}

inline InnerVerdict judge(const InnerReport& r) {
  const double means[] = {r.at_start.mean, r.before.mean, r.after.mean};
  for (const double mean : means)
    if (!std::isfinite(mean) || mean > 10) return InnerVerdict::unstable;
  if (r.frames < 32) return InnerVerdict::too_short;
  if (r.improvement < -0.001) return InnerVerdict::rate_too_high;
  if (r.improvement < 0.001) return InnerVerdict::no_learning;
  if (r.violations >= 0.4) return InnerVerdict::no_order;
  const bool rises = r.trend > 0.05 && r.trend > r.start_trend + 0.01;
  if (r.benefit < 0 || rises) return InnerVerdict::no_adaptation;
  if (r.before.mean < 0.01 || r.before.mean > 1) return InnerVerdict::odd_size;
  const bool falls = r.trend < -0.01 || r.trend < r.start_trend - 0.01;
  return falls ? InnerVerdict::healthy : InnerVerdict::flat;
}

}  // namespace detail

/// The three curves of a layer over one recording.
struct InnerLossCurves {
  std::span<const double> at_start, before, after;
};

/// Of all recordings together; trends are those of each by itself, weighted with its frames.
inline InnerReport inner_report(std::span<const InnerLossCurves> recordings) {
  InnerReport r;
  std::vector<double> all[3];
  for (const InnerLossCurves& c : recordings) {
    const std::size_t frames = c.before.size();
    if (c.at_start.size() != frames || c.after.size() != frames)
      fail("inner_report",
           std::to_string(c.at_start.size()) + ", " + std::to_string(frames) + " and " +
               std::to_string(c.after.size()) + " frames",
           "three curves of one length", "pass the curves of one layer and recording");
    const std::span<const double> curves[] = {c.at_start, c.before, c.after};
    for (std::size_t i = 0; i < 3; ++i) all[i].insert(all[i].end(), curves[i].begin(), curves[i].end());
    r.trend += static_cast<double>(frames) * detail::trend_of(c.before);
    r.start_trend += static_cast<double>(frames) * detail::trend_of(c.at_start);
  }
  r.frames = all[1].size();
  if (r.frames == 0) return r;
  const auto n = static_cast<double>(r.frames);
  r.trend /= n, r.start_trend /= n;
  r.at_start = detail::statistics_of(all[0]);
  r.before = detail::statistics_of(all[1]);
  r.after = detail::statistics_of(all[2]);
  r.improvement = r.before.mean - r.after.mean;
  r.benefit = r.at_start.mean - r.before.mean;
  for (std::size_t i = 0; i < r.frames; ++i) {
    r.worse_after += (all[2][i] > all[1][i]) / n;
    r.worse_before += (all[1][i] > all[0][i]) / n;
  }
  r.violations = (r.worse_after + r.worse_before) / 2;
  r.verdict = detail::judge(r);
  return r;
}

inline const char* name_of(InnerVerdict verdict) {
  switch (verdict) {
    case InnerVerdict::healthy:
      return "healthy";
    case InnerVerdict::flat:
      return "learns, but not more and more";
    case InnerVerdict::odd_size:
      return "learns, at an unusual size of loss";
    case InnerVerdict::no_adaptation:
      return "does not adapt";
    case InnerVerdict::no_order:
      return "curves without order";
    case InnerVerdict::no_learning:
      return "does not learn";
    case InnerVerdict::rate_too_high:
      return "inner learning rate too high";
    case InnerVerdict::unstable:
      return "unstable";
    case InnerVerdict::too_short:
      return "too few frames to tell";
  }
  return "";
}

/// Whether somebody should do something.
inline bool is_sick(InnerVerdict verdict) {
  return verdict != InnerVerdict::healthy && verdict != InnerVerdict::flat &&
         verdict != InnerVerdict::odd_size && verdict != InnerVerdict::too_short;
}

inline const char* advice_for(InnerVerdict verdict) {
  switch (verdict) {
    case InnerVerdict::healthy:
      return "Nothing to change. Whether the memory is worth anything to the model, the command context "
             "tells.";
    case InnerVerdict::flat:
      return "Steps help their own frame, yet later frames do not profit: train on longer segments that "
             "carry "
             "the fast weights on (ttt.persistent_states), or look at a longer recording.";
    case InnerVerdict::odd_size:
      return "Look at the norms of keys and targets: below 0.01 there is little left to learn, above 1 the "
             "inner model is far from its target. A higher or lower base_lr moves it.";
    case InnerVerdict::no_adaptation:
      return "What is remembered does not help, or wears out: lower base_lr, train the inner rate and the "
             "learned start longer, or check that the data are of one speaker and not shuffled.";
    case InnerVerdict::no_order:
      return "Whether a step helps is a toss of a coin: the keys do not tell the targets. Train the TTT "
             "projections longer or with a higher weight_lr_multiplier, and see that their gate is open.";
    case InnerVerdict::no_learning:
      return "The weights hardly move: raise base_lr, see that it is not 0 and that the learned token scale "
             "has not become 0, and that the gate is open so that the layer gets a gradient at all.";
    case InnerVerdict::rate_too_high:
      return "Steps overshoot: lower base_lr by a factor of 3 to 10, and check again.";
    case InnerVerdict::unstable:
      return "Lower base_lr by a factor of 10 or more; if the loss at W_0 is large as well, the learned "
             "start "
             "or the inner norm has diverged: go back to an earlier checkpoint.";
    case InnerVerdict::too_short:
      return "Take a recording of at least 32 frames (2.6 s).";
  }
  return "";
}

}  // namespace mttt
