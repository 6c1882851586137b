// Any JSON object as an HTML table that a person reads: groups, units, small bars, comparisons side by side.
//
// An object is a group of rows. Drawn apart are:
//   a list of numbers                                          bars
//   an object of numbers, its name of contributions or layers  bars
//   a list of flat objects                                     a table
//   two or more flat objects with the same fields              a table with a column for each
//
// Shapes:  any depth of groups.
// Units:   read from the names: ..._ms, ms_per_..., ..._seconds, ..._s, ..._bytes, ..._kib, ..._mib, ..._gib,
//          ..._mb, ..._hz; p50, p99, mean, min, max and the like have the unit of their group.
// Errors:  read_summary: a file that is no JSON object. null is shown as a dash.
// Not supported: bars of more than 64 numbers, which are shown as smallest, mean and largest.
// Source:  none.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/io/file.hpp"
#include "mttt/io/html.hpp"
#include "mttt/io/json.hpp"

namespace mttt {
namespace detail {

using Json = nlohmann::ordered_json;  // rows in the order of the file

inline std::vector<std::string> words_of(std::string_view name) {
  std::vector<std::string> words(1);
  for (const char c : name) {
    if (c == '_' || c == ' ') {
      if (!words.back().empty()) words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

/// The unit that a name ends with or speaks of; "" when none.
inline std::string unit_of(std::string_view name) {
  const auto words = words_of(name);
  if (words.empty()) return {};
  if (words.front() == "ms") return "ms";
  const std::string& last = words.back();
  if (last == "ms" || last == "milliseconds") return "ms";
  if (last == "bytes" || last == "kib" || last == "mib" || last == "gib" || last == "mb") return last;
  if (words.size() > 1 && last == "s") return "s";
  if (last == "seconds") return "s";
  return last == "hz" ? "Hz" : "";
}

/// "peak_memory_bytes" is labelled "peak memory": the unit stands with the number.
inline std::string label_of(std::string_view name) {
  auto words = words_of(name);
  if (words.size() > 1 && !unit_of(words.back()).empty()) words.pop_back();
  std::string label;
  for (const auto& word : words) label += (label.empty() ? "" : " ") + (word == "ttt" ? "TTT" : word);
  return label.empty() ? std::string(name) : label;
}

inline std::string value_text(const Json& value, const std::string& unit) {
  if (value.is_null()) return "\u2013";
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_string()) return value.get_ref<const std::string&>();
  if (!value.is_number())
    return value.empty() ? "none" : value.dump(-1, ' ', false, Json::error_handler_t::replace);
  double number = value.get<double>();
  static constexpr std::array<std::pair<std::string_view, double>, 4> memory = {
      {{"bytes", 1}, {"kib", 1024}, {"mib", 1024. * 1024}, {"gib", 1024. * 1024 * 1024}}};
  for (const auto& [name, bytes] : memory) {
    if (unit != name) continue;
    number *= bytes;
    const char* shown = "bytes";
    for (const char* next : {"KiB", "MiB", "GiB"})
      if (std::abs(number) >= 1024) number /= 1024, shown = next;
    return number_text(number, 4) + " " + shown;
  }
  const std::string text = number_text(number, value.is_number_integer() ? 15 : 4);
  return unit.empty() ? text : text + " " + (unit == "mb" ? "MB" : unit);
}

/// The unit of a field in a group: its own or, for a statistic, that of the group.
inline std::string unit_in(const std::string& group_unit, std::string_view name) {
  std::string own = unit_of(name);
  if (!own.empty() || group_unit.empty()) return own;
  static constexpr std::array<std::string_view, 10> statistics = {"mean", "median", "min",  "max",   "first",
                                                                  "last", "total",  "peak", "stdev", "std"};
  const auto words = words_of(name);
  if (words.size() != 1) return {};
  const std::string& word = words.front();
  const bool percentile =
      word.size() > 1 && word[0] == 'p' &&
      std::all_of(word.begin() + 1, word.end(), [](unsigned char c) { return std::isdigit(c); });
  return percentile || std::find(statistics.begin(), statistics.end(), word) != statistics.end() ? group_unit
                                                                                                 : "";
}

inline bool is_flat(const Json& value) {
  return value.is_object() && !value.empty() &&
         std::none_of(value.begin(), value.end(), [](const Json& v) { return v.is_structured(); });
}

inline bool all_numbers(const Json& value) {
  return value.is_structured() && !value.empty() &&
         std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_number() || v.is_null(); });
}

inline std::string bar(const Json& value, double largest) {
  const double part = value.is_number() && largest > 0 ? std::abs(value.get<double>()) / largest : 0;
  char text[96];
  std::snprintf(text, sizeof text, "<span class=\"bar\"><i style=\"width:%.1f%%\"></i></span>",
                100 * std::min(part, 1.0));
  return text;
}

inline std::string bars(const Json& values, const std::string& unit) {
  double largest = 0, low = INFINITY, high = -INFINITY, sum = 0;
  for (const Json& value : values) {
    const double number = value.is_number() ? value.get<double>() : NAN;
    largest = std::fmax(largest, std::abs(number));
    low = std::fmin(low, number), high = std::fmax(high, number);
    sum += number;
  }
  if (values.size() > 64) {
    return "<p>" + number_text(static_cast<double>(values.size()), 15) + " values from " +
           value_text(low, unit) + " to " + value_text(high, unit) + ", mean " +
           value_text(sum / static_cast<double>(values.size()), unit) + "</p>";
  }
  std::string out = "<table class=\"bars\">";
  for (const auto& [key, value] : values.items()) {
    out += "<tr><th>" + escape_html(values.is_array() ? key : label_of(key)) + "</th><td>" +
           bar(value, largest) + "</td><td class=\"number\">" + escape_html(value_text(value, unit)) +
           "</td></tr>";
  }
  return out + "</table>";
}

/// Rows of flat objects, a column for each field; nothing where they have too many.
inline std::optional<std::string> grid(const Json& rows) {
  constexpr std::size_t most_fields = 100;
  std::vector<std::string> fields;
  for (const Json& row : rows)
    for (const auto& [field, value] : row.items())
      if (std::find(fields.begin(), fields.end(), field) == fields.end()) {
        if (fields.size() == most_fields) return std::nullopt;
        fields.push_back(field);
      }
  std::string out = "<div class=\"wide\"><table><tr>";
  if (rows.is_object()) out += "<th></th>";
  for (const auto& field : fields) out += "<th class=\"number\">" + escape_html(label_of(field)) + "</th>";
  out += "</tr>";
  for (const auto& [name, row] : rows.items()) {
    out += "<tr>";
    if (rows.is_object()) out += "<th>" + escape_html(label_of(name)) + "</th>";
    for (const auto& field : fields) {
      const Json value = row.contains(field) ? row[field] : Json();
      out += "<td class=\"number\">" + escape_html(value_text(value, unit_of(field))) + "</td>";
    }
    out += "</tr>";
  }
  return out + "</table></div>";
}

/// What is drawn apart from the plain rows; nothing for plain rows. `path` holds the labels of all groups
/// around.
inline std::optional<std::string> special(const std::string& path, const std::string& unit,
                                          const Json& value) {
  const bool layers =
      path.find("contribution") != std::string::npos || path.find("layer") != std::string::npos;
  if (all_numbers(value) && (value.is_array() || layers)) return bars(value, unit);
  if (!std::all_of(value.begin(), value.end(), is_flat)) return std::nullopt;
  if (value.is_array()) return grid(value);
  const auto like_the_first = [&](const Json& other) {
    return other.size() == value.front().size() &&
           std::all_of(other.items().begin(), other.items().end(),
                       [&](const auto& item) { return value.front().contains(item.key()); });
  };
  const bool table = !layers && value.size() > 1 && std::all_of(value.begin(), value.end(), like_the_first);
  return table ? grid(value) : std::nullopt;
}

inline void add_rows(std::string& out, const std::string& title, const std::string& unit,
                     const Json& object) {
  const auto head = [&](const std::string& text) {
    if (!text.empty()) out += "<tr class=\"group\"><th colspan=\"2\">" + escape_html(text) + "</th></tr>";
  };
  bool first = true;
  for (const auto& [name, value] : object.items()) {
    if (value.is_structured() && !value.empty()) continue;
    if (std::exchange(first, false)) head(title);
    out += "<tr><th>" + escape_html(label_of(name)) + "</th><td class=\"number\">" +
           escape_html(value_text(value, unit_in(unit, name))) + "</td></tr>";
  }
  for (const auto& [name, value] : object.items()) {
    if (!value.is_structured() || value.empty()) continue;
    const std::string path = (title.empty() ? "" : title + " \u00b7 ") + label_of(name);
    if (const auto drawn = special(path, unit_of(name), value)) {
      head(path);
      out += "<tr><td colspan=\"2\">" + *drawn + "</td></tr>";
    } else {
      add_rows(out, path, unit_of(name), value);
    }
  }
}

}  // namespace detail

inline constexpr std::string_view summary_style = R"css(
table{border-collapse:collapse;width:100%}
th,td{text-align:left;font-weight:400;padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);
vertical-align:top;
overflow-wrap:anywhere}
.number{text-align:right;font-variant-numeric:tabular-nums}
th{color:var(--muted)}tr>:last-child{padding-right:0}
tr.group th{color:var(--ink);font-weight:600;padding-top:16px}
.bars td,.bars th{border:0;padding-top:2px;padding-bottom:2px}.bars th{width:5em}.bars .number{width:7em}
.bar{display:block;height:10px;margin-top:5px;border-radius:3px;background:var(--grid)}
.bar i{display:block;height:100%;border-radius:3px;background:var(--s0);min-width:1px}
.wide{overflow-x:auto}.wide tr:last-child>*{border:0}.wide th,.wide td{overflow-wrap:normal}
)css";

/// Reads a file that holds one JSON object.
inline nlohmann::ordered_json read_summary(const std::filesystem::path& path) {
  const WholeFile file(path);
  std::string problem;
  auto summary = detail::parse_json<nlohmann::ordered_json>(file.text(), &problem);
  if (!summary.is_object()) {
    fail(path.string(),
         summary.is_discarded() ? detail::quote(file.text()) + ", " + problem : "JSON that is no object",
         "a file that holds one JSON object", "check that it is the summary and was written to its end");
  }
  return summary;
}

/// A <table> of a JSON object.
inline std::string summary_table(const nlohmann::ordered_json& summary) {
  std::string out = "<table>";
  detail::add_rows(out, "", "", summary);
  return out + "</table>";
}

/// The first number whose path ("stream.frame_ms.p50") holds `words`: its label and its text with unit.
inline std::optional<std::pair<std::string, std::string>> find_number(const nlohmann::ordered_json& value,
                                                                      std::string_view words,
                                                                      const std::string& path = {},
                                                                      const std::string& label = {},
                                                                      const std::string& unit = {}) {
  if (!value.is_object()) return std::nullopt;
  for (const auto& [name, child] : value.items()) {
    const std::string here = path.empty() ? name : path + "." + name;
    const std::string shown = (label.empty() ? "" : label + ", ") + detail::label_of(name);
    if (child.is_number() && here.find(words) != std::string::npos)
      return std::pair(shown, detail::value_text(child, detail::unit_in(unit, name)));
    if (auto found = find_number(child, words, here, shown, detail::unit_of(name))) return found;
  }
  return std::nullopt;
}

}  // namespace mttt
