#include "run.hpp"

nlohmann::json recalls::mlp(const Variant& variant, const Settings& settings, std::uint64_t seed) {
  return Run<config_mlp>(variant, settings, seed)();
}
