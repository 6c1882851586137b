#include "run.hpp"

namespace why {
Result video_parallel(const Variant& v, const Settings& s) {
  return run<recaller({.variant = TttVariant::video})>(v, s);
}
}  // namespace why
