#include "run.hpp"

nlohmann::json recalls::instead(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_instead>(variant, settings, seed)();
}
