#include "run.hpp"

namespace why {
Result after(const Variant& v, const Settings& s) {
  return run<recaller({.placement = Placement::after_attention})>(v, s);
}
}  // namespace why
