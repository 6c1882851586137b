#include "run.hpp"

namespace why {
Result instead(const Variant& v, const Settings& s) {
  return run<recaller({.placement = Placement::instead_of_attention})>(v, s);
}
}  // namespace why
