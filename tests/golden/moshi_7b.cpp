// The preset of the published 7B model: names and shapes of all its tensors, without memory for them.
#include <algorithm>
#include <fstream>
#include <map>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/io/safetensors.hpp"
#include "mttt/presets/moshi.hpp"

namespace {
using namespace mttt;
using Tensors = std::map<std::string, std::vector<Index>>;
}  // namespace

TEST_CASE("moshi_7b has the tensors of the published checkpoint") {
  std::ifstream file(MTTT_TEST_DATA "/moshi_7b_tensors.json");
  REQUIRE(file);
  const auto list = nlohmann::json::parse(file);
  Tensors expected, ours;
  for (const auto& entry : list) expected[entry[0]] = entry[1].get<std::vector<Index>>();
  REQUIRE(expected.size() == list.size());

  const auto params = std::make_unique<Moshi<presets::moshi_7b, Cpu<float>>::Params>();
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        REQUIRE(tensor.data() == nullptr);
        const bool fresh =
            ours.emplace(name, std::vector<Index>(tensor.extents().begin(), tensor.extents().end())).second;
        INFO(name);
        CHECK(fresh);
      },
      *params);
  for (const auto& [name, shape] : expected) {
    INFO(name);
    CHECK((ours.contains(name) && ours[name] == shape));
  }
  CHECK(ours.size() == expected.size());
  CHECK(count_elements(*params) == 7'687'729'152);
}
