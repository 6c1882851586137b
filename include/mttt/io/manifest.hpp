// Manifests: the recordings of a data set, one JSON object a line, and where their codes are kept.
//
// Layout:  NAME.jsonl with lines {"path": "a.wav", "duration": 12.3}; paths are relative to the manifest.
//          The codes of a/b.wav are NAME.codes/a_b.safetensors, which the program encode makes.
//          Sources of data, as moshi-finetune writes them: "a.jsonl:0.7,folder:0.3". A folder stands for all
//          manifests in it and below it, or, where it has codes, for these; weights are 1 unless told.
// Shapes:  none.
// Units:   seconds.
// Errors:  sources that are not there, named twice or weigh nothing; manifests without a line, lines of another
//          form, two recordings with one file of codes. Codes that are missing or broken are left out, and
//          told; a source without any is an error.
// Not supported: manifests on the network.
// Source:  kyutai-labs/moshi-finetune finetune/data/dataset.py `parse_data_sources`.
#pragma once

#include <cmath>
#include <cstdlib>
#include <set>

#include "mttt/data/batches.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/json.hpp"

namespace mttt {

struct ManifestEntry {
  std::filesystem::path recording, codes;
  double duration;  // seconds, as the manifest says
};

struct ManifestSource {
  std::filesystem::path path;  // a manifest, or a folder of codes
  double weight = 1;
  std::vector<ManifestEntry> entries;  // none: a folder of codes
};

inline std::vector<ManifestEntry> read_manifest(const std::filesystem::path& path) {
  const WholeFile file(path);
  std::vector<ManifestEntry> entries;
  std::set<std::filesystem::path> names;
  const auto folder = path.parent_path(), codes = std::filesystem::path(path).replace_extension(".codes");
  std::string_view rest = file.text();
  for (int number = 1; !rest.empty(); ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string subject = detail::cat(path.string(), ", line ", number);
    const auto json = detail::parse_json(line);
    const bool good = json.is_object() && json.contains("path") && json["path"].is_string() &&
                      !json["path"].get_ref<const std::string&>().empty() && json.contains("duration") &&
                      json["duration"].is_number() && json["duration"].get<double>() >= 0;
    if (!good)
      fail(subject, detail::quote(line), R"({"path": "a.wav", "duration": 12.3})", "make the manifest again");
    const std::filesystem::path named = json["path"].get<std::string>();
    std::string name = std::filesystem::path(named).replace_extension().lexically_normal().string();
    std::replace(name.begin(), name.end(), '/', '_');
    const ManifestEntry entry{named.is_absolute() ? named : folder / named, codes / (name + ".safetensors"),
                              json["duration"].get<double>()};
    if (!names.insert(entry.codes).second)
      fail(subject,
           detail::cat(detail::quote(named.string()), ", whose codes would be ", entry.codes.string(),
                       " as those of a line before"),
           "each recording once, by a name of its own", "leave one out, or rename it");
    entries.push_back(entry);
  }
  if (entries.empty()) fail(path.string(), "no lines", "a recording a line", "make the manifest again");
  return entries;
}

inline std::vector<ManifestSource> read_data_sources(const std::string& text) {
  namespace fs = std::filesystem;
  std::vector<ManifestSource> sources;
  std::set<fs::path> seen;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    std::string item = text.substr(at, end - at);
    at = end + 1;
    item.erase(0, item.find_first_not_of(' '));
    item.erase(item.find_last_not_of(' ') + 1);
    if (item.empty()) continue;
    double weight = 1;
    const std::size_t colon = item.rfind(':');
    if (colon != item.npos && !fs::exists(item)) {
      const char* digits = item.c_str() + colon + 1;
      char* stop = nullptr;
      weight = std::strtod(digits, &stop);
      if (stop == digits || *stop != 0 || !(weight > 0) || !std::isfinite(weight))
        fail(detail::cat("data source ", detail::quote(item)),
             detail::cat("the weight ", detail::quote(digits)), "a number above 0",
             "write PATH:WEIGHT or PATH");
      item.resize(colon);
    }
    if (!seen.insert(fs::path(item).lexically_normal()).second)
      fail(detail::cat("data source ", detail::quote(item)), "it a second time", "each source once",
           "give it the sum of its weights");
    std::vector<fs::path> manifests;
    bool codes = false;
    if (fs::is_directory(item)) {
      for (const auto& file : fs::directory_iterator(item))
        codes |= file.path().extension() == ".safetensors";
      if (!codes) {
        for (const auto& file : fs::recursive_directory_iterator(item))
          if (file.path().extension() == ".jsonl") manifests.push_back(file.path());
        std::sort(manifests.begin(), manifests.end());
      }
    } else if (fs::exists(item)) {
      manifests.push_back(item);
    }
    if (codes) {
      sources.push_back({item, weight, {}});
    } else if (manifests.empty()) {
      fail(detail::cat("data source ", detail::quote(item)),
           fs::exists(item) ? "neither codes nor manifests" : "no such file or folder",
           "a manifest (*.jsonl), a folder of manifests, or a folder of codes", "correct the path");
    }
    ManifestSource source{item, weight, {}};
    for (const auto& manifest : manifests) {
      const auto entries = read_manifest(manifest);
      source.entries.insert(source.entries.end(), entries.begin(), entries.end());
    }
    if (!codes) sources.push_back(std::move(source));
  }
  if (sources.empty())
    fail("data sources", "none", "paths, separated by commas", "name a manifest or a folder of codes");
  return sources;
}

/// The codes of all sources; `skipped` receives a line for each recording that is left out.
inline std::vector<DataSource> load_data_sources(const std::string& text, std::vector<std::string>& skipped) {
  std::vector<DataSource> sources;
  for (const ManifestSource& from : read_data_sources(text)) {
    DataSource source{{}, from.weight};
    if (from.entries.empty()) source.recordings = load_code_folder(from.path);
    for (const ManifestEntry& entry : from.entries) {
      try {
        source.recordings.push_back(load_codes(entry.codes));
      } catch (const Error& error) {
        skipped.push_back(error.what());
      }
    }
    if (source.recordings.empty())
      fail(from.path.string(), detail::cat("none of the codes of its ", from.entries.size(), " recordings"),
           "at least one", detail::cat("encode them first: encode --data ", from.path.string()));
    sources.push_back(std::move(source));
  }
  return sources;
}

}  // namespace mttt
