#include "run.hpp"

nlohmann::json recalls::before(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_before>(variant, settings, seed)();
}
