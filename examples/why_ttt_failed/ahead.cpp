#include "run.hpp"

namespace why {
Result ahead_parallel(const Variant& v, const Settings& s) {
  return run<recaller({}), HearsAhead<Plain>, true>(v, s);
}
}  // namespace why
