#include "run.hpp"

namespace why {
Result ahead_video_after(const Variant& v, const Settings& s) {
  return run<recaller({.placement = Placement::after_attention, .variant = TttVariant::video}),
             HearsAhead<Plain>, true>(v, s);
}
}  // namespace why
