#include "run.hpp"

namespace why {
Result one_layer(const Variant& v, const Settings& s) {
  return run<recaller({.layers = LayerSet::range(2, 2)})>(v, s);
}
Result last_layer(const Variant& v, const Settings& s) {
  return run<recaller({.layers = LayerSet::range(3, 3)})>(v, s);
}
}  // namespace why
