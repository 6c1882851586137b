#include "run.hpp"

nlohmann::json recalls::narrow(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_narrow>(variant, settings, seed)();
}
