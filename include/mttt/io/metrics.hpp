// Reads the metrics.jsonl of a training run back: one column a field, one row a logged step.
//
// A run that was resumed, or started anew in the same folder, logs some steps twice: the later line counts,
// and what the run had logged beyond that step before is dropped.
//
// Shapes:  every column is as long as `steps`; NaN where a line lacks the field or says null.
// Units:   those of StepReport.
// Errors:  a line that is no JSON object, a step that is no number, a loss that is neither number nor null:
//          Error with the number of the line; over 1000 different fields. A half last line, as a killed
//          process leaves it, is passed over.
// Not supported: text, lists and objects inside a line; they are passed over.
// Source:  RunFolder::log in io/run_folder.hpp.
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "mttt/io/file.hpp"
#include "mttt/io/json.hpp"

namespace mttt {

struct Metrics {
  std::string name;
  std::vector<double> steps;  // increasing
  std::map<std::string, std::vector<double>> columns;

  /// The column of a field; null when no line has it.
  const std::vector<double>* column(const std::string& field) const {
    const auto found = columns.find(field);
    return found == columns.end() ? nullptr : &found->second;
  }

  /// Forgets the steps from `step` on, or those after it.
  void drop(double step, bool itself) {
    while (!steps.empty() && (itself ? steps.back() >= step : steps.back() > step)) steps.pop_back();
    for (auto& [field, values] : columns) values.resize(steps.size());
  }

  void add(const nlohmann::json& line) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    const double step = line.at("step").get<double>();
    drop(step, true);
    for (const auto& [field, value] : line.items()) {
      if (field == "step" || !(value.is_number() || value.is_null())) continue;
      auto& values = columns[field];
      values.resize(steps.size(), nan);
      values.push_back(value.is_null() ? nan : value.get<double>());
    }
    steps.push_back(step);
    for (auto& [field, values] : columns) values.resize(steps.size(), nan);
  }
};

inline Metrics read_metrics(const std::filesystem::path& path, std::string name) {
  const WholeFile file(path);
  Metrics run{std::move(name), {}, {}};
  std::string_view rest = file.text();
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    const bool last = end == std::string_view::npos;
    const std::string_view text = rest.substr(0, end);
    rest.remove_prefix(last ? rest.size() : end + 1);
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;

    const auto refuse = [&](std::string_view expected) {
      fail(path.string(), detail::cat("line ", number, ", ", detail::quote(text)), expected,
           "give the metrics.jsonl that a training run wrote");
    };
    const auto has_number = [](const nlohmann::json& object, const char* field) {
      return object.contains(field) && object[field].is_number() &&
             std::isfinite(object[field].get<double>());
    };
    const auto line = detail::parse_json(text);
    if (line.is_discarded() && last) break;
    if (!line.is_object()) refuse("one JSON object a line");
    if (line.contains("resumed_at")) {
      if (!has_number(line, "resumed_at")) refuse("a number as resumed_at");
      run.drop(line["resumed_at"].get<double>(), false);
    } else if (line.contains("step")) {
      if (!has_number(line, "step")) refuse("a number as step");
      if (line.contains("loss") && !line["loss"].is_number() && !line["loss"].is_null())
        refuse("a number, or null for NaN, as loss");
      run.add(line);
      // Every column is as long as the longest: lines of ever new fields would fill the memory.
      if (run.columns.size() > 1000) refuse("at most 1000 different fields");
    }
  }
  return run;
}

}  // namespace mttt
