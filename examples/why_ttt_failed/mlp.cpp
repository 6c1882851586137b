#include "run.hpp"

namespace why {
Result mlp(const Variant& v, const Settings& s) { return run<recaller({.inner_layers = 2})>(v, s); }
}  // namespace why
