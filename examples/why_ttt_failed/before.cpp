#include "run.hpp"

namespace why {
Result before(const Variant& v, const Settings& s) {
  return run<recaller({.placement = Placement::before_attention})>(v, s);
}
}  // namespace why
