// A guard for the inner loops of a training: it stops where a TTT layer makes its own loss worse and worse,
// before hours are spent on the loss that shows it last. That of the gates is check_gates (lm/gates.hpp),
// that of the loss and its gradient the trainer itself.
//
// Formula: of a layer, with the means over frames l_0 = l(W_0), before = l(W_(t-1)), after = l(W_t)
//          (lm/probes.hpp):
//            unstable    a mean that is not finite, or above 10
//            overshoots  after > 2 before and after > 2 l_0: steps are so long that memory is worse than none
// Shapes:  none.
// Units:   losses a channel of a head: 0.01 to 1 in a healthy layer.
// Errors:  such layers, all of them in one message.
// Not supported: layers that merely learn nothing: `report` and `diagnose` show these.
// Source:  the signs that the earlier attempt's documents list.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "mttt/lm/probes.hpp"

namespace mttt {

inline void check_inner_loops(const std::vector<InnerLosses>& layers) {
  std::string found;
  for (const InnerLosses& l : layers) {
    const double largest = std::max({l.at_start, l.before, l.after});
    const bool finite = std::isfinite(l.at_start + l.before + l.after);
    const bool overshoots = l.after > 2 * l.before && l.after > 2 * l.at_start;
    if (finite && largest <= 10 && !overshoots) continue;
    found += (found.empty() ? "" : "; ") + std::string("layer ") + std::to_string(l.layer) + ": " +
             (overshoots && largest <= 10 ? "steps overshoot" : "unstable") + ", l(W_0) " +
             std::to_string(l.at_start) + ", l(W_(t-1)) " + std::to_string(l.before) + ", l(W_t) " +
             std::to_string(l.after) + ", drift " + std::to_string(l.drift);
  }
  if (found.empty()) return;
  fail("the inner loops of TTT layers", found, "l(W_0) > l(W_(t-1)) > l(W_t), each between 0.01 and 1",
       "go on from an earlier checkpoint with a lower ttt.base_lr (a tenth) or ttt.weight_lr_multiplier, or "
       "compile the "
       "preset with an inner_clip");
}

}  // namespace mttt
