#include "run.hpp"

namespace why {
Result parallel(const Variant& v, const Settings& s) { return run<recaller({}), Plain, true>(v, s); }
}  // namespace why
