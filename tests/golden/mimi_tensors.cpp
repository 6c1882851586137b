// The preset mimi_24khz has exactly the tensors of the published checkpoint, by name and by shape.
#include <fstream>
#include <map>

#include "golden.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/presets/mimi.hpp"

namespace {
using namespace mttt;
using Shapes = std::map<std::string, std::vector<std::int64_t>>;

/// The extents are static, so that no memory is needed.
template <class M>
Shapes shapes_of() {
  Shapes shapes;
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        INFO(name);
        REQUIRE(shapes.emplace(name, detail::shape_of(tensor)).second);
      },
      typename M::Params{});
  return shapes;
}
}  // namespace

TEST_CASE("mimi_24khz has the published tensors") {
  Shapes published;
  std::ifstream file(std::string(MTTT_TEST_DATA) + "/mimi_tensors.json");
  for (const auto& entry : nlohmann::json::parse(file)) {
    published[entry[0]] = entry[1].get<std::vector<std::int64_t>>();
  }
  REQUIRE(published.size() > 200);
  using M = Mimi<presets::mimi_24khz, Cpu<float>>;
  const Shapes ours = shapes_of<M>();
  for (const auto& [name, shape] : published) {
    INFO(name);
    REQUIRE(ours.contains(name));
    CHECK(ours.at(name) == shape);
  }
  for (const auto& [name, shape] : ours) {
    INFO(name);
    CHECK(published.contains(name));
  }
  STATIC_REQUIRE(M::frame_size == 1920);
  STATIC_REQUIRE(presets::mimi_24khz.frame_rate() == 12.5);
}

TEST_CASE("mimi_tiny makes the same frames") {
  STATIC_REQUIRE(presets::mimi_tiny.frame_size() == 1920);
  STATIC_REQUIRE(presets::mimi_tiny.frame_rate() == 12.5);
  STATIC_REQUIRE(presets::mimi_tiny.quantizer.n_q == 8);
}
