#include "run.hpp"

namespace why {
Result narrow_window(const Variant& v, const Settings& s) { return run<recaller({.window = 4})>(v, s); }
Result wide_window(const Variant& v, const Settings& s) { return run<recaller({.window = 64})>(v, s); }
}  // namespace why
