#include "run.hpp"

namespace why {
Result parallel_64(const Variant& v, const Settings& s) { return run<recaller({.mini_batch = 64})>(v, s); }
}  // namespace why
