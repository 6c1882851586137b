#include "run.hpp"

namespace why {
Result video_after(const Variant& v, const Settings& s) {
  return run<recaller({.placement = Placement::after_attention, .variant = TttVariant::video}), Plain, true>(
      v, s);
}
}  // namespace why
