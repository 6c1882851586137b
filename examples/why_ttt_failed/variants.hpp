// What is compared: models (compiled, a file each) and with what they start (numbers).
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "task.hpp"

namespace why {

struct Settings {
  Index batch = 128, length = 256;
  std::int64_t steps = 800;
  double seconds = 0;  // 0: as long as it takes; else fewer steps, if they would take longer
  double lr = 2e-3;
  Index evaluated = 512;  // streams of `length`; a quarter as many of four times the length
};

/// l(W_0), l(W_(t-1)), l(W_t) of a layer: means, and by token.
struct InnerLoss {
  Index layer;
  double at_start, before, after, violations;
  std::vector<double> curve_at_start, curve_before, curve_after;
};

struct Result {
  std::string device, says;  // says: why a training ended early
  std::int64_t steps = 0;
  double seconds = 0, loss = NAN;  // loss: mean of the last 20 steps
  std::vector<double> losses;
  Accuracy offline, longer, streamed, padded;
  std::vector<double> openings, shares;        // a gate
  std::vector<InnerLoss> inner, inner_stream;  // of the model as it was trained, and of its stream
};

struct Variant {
  const char *name, *says;
  Result (*run)(const Variant&, const Settings&);
  double base_lr = 1, gate = 0.1;
  std::uint64_t seed = 1;
};

// Each is compiled in a file of its own.
Result window_only(const Variant&, const Settings&);
Result full_attention(const Variant&, const Settings&);
Result parallel(const Variant&, const Settings&);
Result parallel_64(const Variant&, const Settings&);
Result instead(const Variant&, const Settings&);
Result after(const Variant&, const Settings&);
Result before(const Variant&, const Settings&);
Result one_layer(const Variant&, const Settings&);
Result last_layer(const Variant&, const Settings&);
Result wide_window(const Variant&, const Settings&);
Result narrow_window(const Variant&, const Settings&);
Result after_wide_window(const Variant&, const Settings&);
Result video_parallel(const Variant&, const Settings&);
Result video_after(const Variant&, const Settings&);
Result mlp(const Variant&, const Settings&);
Result ahead_parallel(const Variant&, const Settings&);
Result ahead_video_after(const Variant&, const Settings&);

inline constexpr Variant variants[] = {
    {"window", "window only", window_only},
    {"full", "full attention", full_attention},
    {"parallel", "parallel, LM variant, gate 0.1", parallel},
    {"parallel-2", "the same, another seed", parallel, 1, 0.1, 2},
    {"parallel-c64", "the same, C = 64", parallel_64},
    {"instead", "instead of attention in layers 1-3", instead},
    {"after", "after attention", after},
    {"before", "before attention", before},
    {"layer-2", "parallel, layer 2 only", one_layer},
    {"layer-3", "parallel, last layer only", last_layer},
    {"gate-0.001", "parallel, gate 0.001", parallel, 1, 0.001},
    {"after-gate-0.001", "after attention, gate 0.001", after, 1, 0.001},
    {"gate-0.3", "parallel, gate 0.3", parallel, 1, 0.3},
    {"window-4", "parallel, window 4", narrow_window},
    {"window-64", "parallel, window 64", wide_window},
    {"after-window-64", "after attention, window 64", after_wide_window},
    {"video", "parallel, video variant", video_parallel},
    {"video-after", "after attention, video variant", video_after},
    {"video-after-lr-16", "after attention, video variant, base_lr 16", video_after, 16},
    {"ahead", "parallel, hears ahead", ahead_parallel},
    {"ahead-video-after", "after attention, video variant, hears ahead", ahead_video_after},
    {"lr-0.001", "parallel, base_lr 0.001", parallel, 1e-3},
    {"lr-0.01", "parallel, base_lr 0.01", parallel, 1e-2},
    {"lr-0.1", "parallel, base_lr 0.1", parallel, 0.1},
    {"lr-10", "parallel, base_lr 10", parallel, 10},
    {"lr-100", "parallel, base_lr 100", parallel, 100},
    {"lr-1e4", "parallel, base_lr 1e4", parallel, 1e4},
    {"lr-1e6", "parallel, base_lr 1e6", parallel, 1e6},
    {"mlp-lr-0.01", "parallel, TTT-MLP, base_lr 0.01", mlp, 0.01},
    {"mlp-lr-0.03", "parallel, TTT-MLP, base_lr 0.03", mlp, 0.03},
    {"mlp-lr-0.1", "parallel, TTT-MLP, base_lr 0.1", mlp, 0.1},
    {"mlp-lr-0.3", "parallel, TTT-MLP, base_lr 0.3", mlp, 0.3},
    {"mlp-lr-1", "parallel, TTT-MLP, base_lr 1", mlp, 1},
};

}  // namespace why
