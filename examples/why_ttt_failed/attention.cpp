#include "run.hpp"

namespace why {
Result window_only(const Variant& v, const Settings& s) { return run<recaller({.layers = {}})>(v, s); }
Result full_attention(const Variant& v, const Settings& s) {
  return run<recaller({.layers = {}, .window = 1024})>(v, s);
}
}  // namespace why
