#include "run.hpp"

nlohmann::json recalls::linear(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_linear>(variant, settings, seed)();
}
