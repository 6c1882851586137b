#include "run.hpp"

nlohmann::json recalls::local(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_local>(variant, settings, seed)();
}
