#include "run.hpp"

nlohmann::json recalls::full(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_full>(variant, settings, seed)();
}
