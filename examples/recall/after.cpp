#include "run.hpp"

nlohmann::json recalls::after(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_after>(variant, settings, seed)();
}
