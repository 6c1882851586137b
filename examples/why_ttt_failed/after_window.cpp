#include "run.hpp"

namespace why {
Result after_wide_window(const Variant& v, const Settings& s) {
  return run<recaller({.placement = Placement::after_attention, .window = 64})>(v, s);
}
}  // namespace why
