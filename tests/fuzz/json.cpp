// Hostile JSON: the configuration that a file carries, sidecars of recordings, metrics of a run.
#include "fuzz.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/config.hpp"
#include "mttt/io/json_lines.hpp"
#include "mttt/io/metrics.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/summary_table.hpp"
#include "mttt/presets/tiny.hpp"

namespace {
using namespace mttt;

const nlohmann::json& config() {
  static const nlohmann::json json = config_json<presets::tiny>("tiny");
  return json;
}
}  // namespace

void seeds(const std::filesystem::path& folder) {
  fuzz::put(folder / "config", config().dump());
  fuzz::put(folder / "nested",
            R"({"dim": {"a": [[1, {"b": null}], true]}, "layers": [0, 1.5, -2e3, "\u00e9\ud834\udd1e"]})");
  fuzz::put(folder / "alignment",
            R"({"alignments": [["a", [0, 0.5], "SPEAKER_MAIN"], ["b", [1, 1], "OTHER"]], "x": 1})");
  fuzz::put(folder / "metrics",
            "{\"step\": 1, \"loss\": 2.5, \"lr\": 1e-3}\n{\"resumed_at\": 1}\n"
            "{\"step\": 2, \"loss\": null}\n\n{\"step\": 3, \"half\": ");
  fuzz::put(folder / "summary", R"({"stream": {"ms": {"p50": 2.5, "p99": 3}, "peak_memory_bytes": 5000000},
    "ttt_layers": [{"layer": 0, "share": 0.25}, {"layer": 1}], "bars": [1, -2.5], "ok": true})");
}

void try_file(const std::filesystem::path& path, std::span<const std::byte> content) {
  const std::string text(reinterpret_cast<const char*>(content.data()), content.size());
  fuzz::accepted([&] { expect_config("fuzz", {{"config", text}}, config()); });
  fuzz::accepted([&] { expect_config("fuzz", {{"config", text}}, 5); });
  fuzz::accepted([&] { read_alignment(path); });
  fuzz::accepted([&] {
    const Metrics run = read_metrics(path, "run");
    for (const auto& [field, values] : run.columns)
      if (values.size() != run.steps.size()) std::abort();
  });
  fuzz::accepted([&] {
    const auto summary = read_summary(path);
    if (summary_table(summary).empty()) std::abort();
    find_number(summary, "p50");
  });
  if (fuzz::accepted([&] { JsonLines(path).append({{"step", 4}}); })) {
    // What opening has repaired needs no repair again.
    if (JsonLines(path).repaired() != 0) std::abort();
  }
}
