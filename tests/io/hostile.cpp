// Small files made to break the reader: what fuzzing (tests/fuzz) has found, and what it cannot reach.
#include "mttt/io/alignment.hpp"
#include "mttt/io/config.hpp"
#include "mttt/io/metrics.hpp"
#include "mttt/io/published.hpp"
#include "mttt/io/summary_table.hpp"
#include "scratch.hpp"

namespace {
using namespace mttt;

std::string repeated(std::size_t times, const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < times; ++i) out += text;
  return out;
}

/// Valid JSON whose walk calls itself 50,000 times; each of them would need its own piece of the stack.
const std::string arrays = repeated(50'000, "[") + repeated(50'000, "]");
const std::string objects = repeated(50'000, R"({"a":)") + "1" + repeated(50'000, "}");
}  // namespace

TEST_CASE("hostile JSON: nested beyond the stack") {
  const Scratch scratch;
  for (const auto& deep : {arrays, objects}) {
    check_refused([&] { expect_config("file", {{"config", deep}}, {{"dim", 4}}); }, "not JSON");
    check_refused([&] { read_alignment(scratch.put("a", deep)); }, "nested in over 100 levels");
    check_refused([&] { read_metrics(scratch.put("a", deep + "\n"), "run"); }, "one JSON object a line");
    check_refused([&] { read_summary(scratch.put("a", deep)); }, "nested in over 100 levels");
  }
  check_refused([&] { read_alignment(scratch.put("a", R"({"alignments": [)" + arrays + "]}")); },
                "nested in over 100 levels");
  // At the limit all of them go on.
  const std::string level = repeated(99, R"({"a":)") + "[1, 2]" + repeated(99, "}");
  CHECK_FALSE(summary_table(read_summary(scratch.put("a", level))).empty());
  CHECK(error_of([&] { expect_config("file", {{"config", level}}, nlohmann::json::parse(level)); }).empty());
  check_refused([&] { read_summary(scratch.put("a", R"({"a":)" + level + "}")); },
                "nested in over 100 levels");
}

TEST_CASE("hostile JSON: ever new fields") {
  const Scratch scratch;
  std::string lines, rows = R"({"rows": [)", keys = "{";
  for (int i = 0; i < 30'000; ++i) {
    const std::string field = "\"f" + std::to_string(i) + "\": 1";
    lines += "{\"step\": " + std::to_string(i) + ", " + field + "}\n";
    rows += (i > 0 ? ", {" : "{") + field + "}";
    keys += (i > 0 ? ", " : "") + field;
  }
  // Columns as long as the longest of them would take 7 GB.
  check_refused([&] { read_metrics(scratch.put("a", lines), "run"); }, "at most 1000 different fields");
  check_refused([&] { read_summary(scratch.put("a", keys + "}")); }, "over 5000 keys");
  check_refused([&] { read_summary(scratch.put("a", rows + "]}")); }, "over 5000 keys");
  rows.resize(rows.find(", {\"f4000\""));
  CHECK(summary_table(read_summary(scratch.put("a", rows + "]}"))).size() < 1'000'000);
}

TEST_CASE("hostile folders: names that lead elsewhere, numbers that are none") {
  const Scratch scratch;
  const float one = 1;
  SafetensorsWriter writer;
  writer.add("a", {1}, std::span(&one, 1));
  writer.write(scratch / "model.safetensors");
  writer.write(scratch / "lora.safetensors");
  const auto with = [&](const std::string& fields) {
    scratch.put("config.json", R"({"mimi_name": "model.safetensors", )" + fields + "}");
  };
  const auto find = [&] { return find_model(scratch.folder, scratch / "lora.safetensors"); };
  with(R"("lora_rank": null, "lora_scaling": 0.5)");
  CHECK(find().lora_rank == 0);
  CHECK(find().lora_scaling == 0.5);
  const std::string rank = R"("lora_rank": )";
  for (const char* wrong : {"\"4\"", "[4]", "-1", "1e30", "true"}) {
    with(rank + wrong);
    check_refused(find, "a number, 0 or more");
  }
  for (const std::string& name :
       {std::string("../lora.safetensors"), std::string("/etc/passwd"), std::string("a//b"), std::string("."),
        std::string(256, 'a'), std::string("lora\\u0000.safetensors"), repeated(600, "a/") + "a"}) {
    with(R"("moshi_name": ")" + name + "\"");
    check_refused(find, "a file of that folder");
    scratch.put("x.index.json", R"({"weight_map": {"a": ")" + name + "\"}}");
    check_refused([&] { TensorFiles{scratch / "x.index.json"}; }, "file beside the index");
  }
  with(R"("moshi_name": "hf://owner/name/..")");
  check_refused(find, "a file of that folder");
}
