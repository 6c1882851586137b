// The configuration in a checkpoint's metadata, and its comparison with the one that was compiled.
//
// Layout:  metadata "config": a JSON object as text; "kind": "params", "training" or "state";
//          "format_version": "1".
// Shapes:  none.   Units: none.
// Errors:  every field that differs, by its dotted name, with the value found and the value expected.
// Not supported: defaults for absent fields; a file says all of its configuration or none of it.
// Source:  none.
#pragma once

#include "mttt/io/json.hpp"
#include "mttt/io/safetensors.hpp"

namespace mttt {

inline constexpr std::string_view checkpoint_version = "1";

namespace detail {

/// Problems of one file, told together: "found 2 problems: ...". The first dozen are told, all are counted.
class Problems {
 public:
  static constexpr int told = 12;
  template <class... Args>
  void add(const Args&... args) {
    if (++count_ <= told) text_ += cat("\n  - ", args...);
  }
  int count() const { return count_; }
  void stop(std::string_view subject, std::string_view expected, std::string_view advice) const {
    if (count_ == 0) return;
    const std::string more = count_ > told ? cat("\n  - and ", count_ - told, " more") : "";
    fail(subject, cat(count_, count_ == 1 ? " problem:" : " problems:", text_, more, "\n"), expected, advice);
  }

 private:
  std::string text_;
  int count_ = 0;
};

/// The dotted names of all leaves: {"lm": {"dim": [4]}} becomes {"lm.dim.0": 4}.
inline std::map<std::string, nlohmann::json> config_fields(const nlohmann::json& config) {
  std::map<std::string, nlohmann::json> fields;
  if (!config.is_structured()) return {{"(all)", config}};
  const nlohmann::json flat = config.flatten();  // lives as long as the loop
  for (const auto& [pointer, value] : flat.items()) {
    std::string name = pointer.substr(std::min<std::size_t>(1, pointer.size()));
    std::replace(name.begin(), name.end(), '/', '.');
    fields[name] = value;
  }
  return fields;
}

}  // namespace detail

namespace detail {

/// Every field that differs between a configuration and the expected one.
inline Problems config_problems(const nlohmann::json& config, const nlohmann::json& expected) {
  Problems problems;
  const auto found = config_fields(config), wanted = config_fields(expected);
  for (const auto& [name, value] : wanted) {
    const auto it = found.find(name);
    if (it == found.end()) {
      problems.add("config field '", name, "': found nothing, expected ", value.dump());
    } else if (it->second != value) {
      problems.add("config field '", name, "': found ", it->second.dump(), ", expected ", value.dump());
    }
  }
  for (const auto& [name, value] : found) {
    if (!wanted.contains(name))
      problems.add("config field '", name, "': found ", value.dump(), ", expected no such field");
  }
  return problems;
}

}  // namespace detail

/// Refuses a config that contradicts the expected one. `subject` is the file's name.
inline void expect_config(std::string_view subject, const SafetensorsMetadata& metadata,
                          const nlohmann::json& expected) {
  const auto stored = metadata.find("config");
  if (stored == metadata.end())
    fail(subject, "no 'config' in the metadata", "the configuration of the model",
         "save it with this library");
  const auto config = detail::parse_json(stored->second);
  if (config.is_discarded())
    fail(subject, "a 'config' that is not JSON: " + detail::quote(stored->second), "a JSON object");
  detail::config_problems(config, expected)
      .stop(subject, "the configuration that this program was compiled for",
            "compile the program with the preset of the file, or choose another file");
}

namespace detail {

/// Foreign files carry no version and are taken; ours must be of this version.
inline void expect_version(const TensorFile& file) {
  const auto version = file.metadata().find("format_version");
  if (version == file.metadata().end() || version->second == checkpoint_version) return;
  fail(file.path(), "format_version " + quote(version->second), quote(checkpoint_version),
       "read it with the version of mttt that wrote it");
}

inline void set_kind(SafetensorsWriter& writer, std::string_view kind, const nlohmann::json& config) {
  writer.set_metadata("format_version", std::string(checkpoint_version));
  writer.set_metadata("kind", std::string(kind));
  if (!config.is_null()) writer.set_metadata("config", config.dump());
}

inline std::string kind_of(const TensorFile& file) {
  const auto kind = file.metadata().find("kind");
  return kind == file.metadata().end() ? "" : kind->second;
}

inline void expect_kind(const TensorFile& file, std::string_view kind) {
  expect_version(file);
  if (kind_of(file) == kind) return;
  fail(file.path(), kind_of(file).empty() ? "a file of no kind" : "a file of kind " + quote(kind_of(file)),
       "kind " + quote(kind), "choose a file that was saved as that");
}

}  // namespace detail
}  // namespace mttt
