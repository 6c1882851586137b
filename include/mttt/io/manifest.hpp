// Manifests: the recordings of a data set, one JSON object a line, and where their codes are kept.
//
// Layout:  NAME.jsonl with lines {"path": "a.wav", "duration": 12.3}; paths are relative to the manifest.
//          The codes of a/b.wav are NAME.codes/a_b.safetensors, which the program encode makes.
//          Sources of data, as moshi-finetune writes them: "a.jsonl:0.7,folder:0.3". A folder stands for the
//          codes in it, or else for all manifests in it and below it, or else for all recordings (wav, flac,
//          ogg), whose codes are in FOLDER.codes; weights are 1 unless told.
// Shapes:  none.
// Units:   seconds.
// Errors:  sources that are not there, named twice or weigh nothing; manifests without a line, lines of another
//          form, two recordings with one file of codes. Codes that are missing or broken, or that the filter
//          does not take, are left out, and told; a source without any is an error.
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
  double duration;  // seconds, as the manifest says; 0 where there is none
};

struct ManifestSource {
  std::filesystem::path path;  // a manifest, or a folder
  double weight = 1;
  std::vector<ManifestEntry> entries;  // none: a folder of codes
};

/// Which recordings a training takes.
struct RecordingFilter {
  double min_duration_sec = 0;
  std::optional<double> max_duration_sec, max_silence, max_dominance;  // shares, see SpeechActivity

  /// What is wrong with a recording; nothing where it is taken.
  std::optional<std::string> objection(const CodedRecording& recording) const {
    const double seconds = static_cast<double>(recording.frames) / recording.frame_rate;
    const auto beyond = [](double found, const char* what, const char* unit, const char* key, double limit) {
      return detail::cat(found, unit, what, "; ", key, " is ", limit);
    };
    if (seconds < min_duration_sec) return beyond(seconds, "", " s", "min_duration_sec", min_duration_sec);
    if (max_duration_sec && seconds > *max_duration_sec)
      return beyond(seconds, "", " s", "max_duration_sec", *max_duration_sec);
    if (!max_silence && !max_dominance) return std::nullopt;
    if (!recording.activity)
      return "codes without shares of speech, which an earlier version made; encode it again";
    if (max_silence && recording.activity->silence > *max_silence)
      return beyond(recording.activity->silence, " of silence", "", "max_silence", *max_silence);
    if (max_dominance && recording.activity->dominance() > *max_dominance)
      return beyond(recording.activity->dominance(), " of the speech by one speaker", "", "max_dominance",
                    *max_dominance);
    return std::nullopt;
  }
};

namespace detail {

/// Of codes in a folder, each name once.
class CodeNames {
 public:
  explicit CodeNames(std::filesystem::path folder) : folder_(std::move(folder)) {}

  std::filesystem::path of(const std::filesystem::path& recording, std::string_view subject) {
    auto codes = folder_ / codes_name(recording);
    if (!given_.insert(codes).second)
      fail(subject,
           cat(quote(recording.string()), ", whose codes would be ", codes.string(), " as those of another"),
           "each recording once, by a name of its own", "leave one out, or rename it");
    return codes;
  }

 private:
  std::filesystem::path folder_;
  std::set<std::filesystem::path> given_;
};

}  // namespace detail

inline std::vector<ManifestEntry> read_manifest(const std::filesystem::path& path) {
  const WholeFile file(path);
  std::vector<ManifestEntry> entries;
  const auto folder = path.parent_path();
  detail::CodeNames names(std::filesystem::path(path).replace_extension(".codes"));
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
    entries.push_back({named.is_absolute() ? named : folder / named, names.of(named, subject),
                       json["duration"].get<double>()});
  }
  if (entries.empty()) fail(path.string(), "no lines", "a recording a line", "make the manifest again");
  return entries;
}

/// The recordings in a folder and below it, in the order of their names.
inline std::vector<ManifestEntry> recordings_below(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& file : std::filesystem::recursive_directory_iterator(folder)) {
    const auto kind = file.path().extension();
    if (file.is_regular_file() && (kind == ".wav" || kind == ".flac" || kind == ".ogg"))
      paths.push_back(file.path());
  }
  std::sort(paths.begin(), paths.end());
  auto beside = (folder / ".").lexically_normal().parent_path();  // without a slash at its end
  detail::CodeNames names(beside += ".codes");
  std::vector<ManifestEntry> entries;
  for (const auto& path : paths)
    entries.push_back({path, names.of(path.lexically_relative(folder), folder.string()), 0});
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
      manifests.emplace_back(item);
    }
    ManifestSource source{item, weight, {}};
    for (const auto& manifest : manifests) {
      const auto entries = read_manifest(manifest);
      source.entries.insert(source.entries.end(), entries.begin(), entries.end());
    }
    if (!codes && manifests.empty() && fs::is_directory(item)) source.entries = recordings_below(item);
    if (!codes && source.entries.empty())
      fail(detail::cat("data source ", detail::quote(item)),
           fs::exists(item) ? "neither codes, manifests nor recordings" : "no such file or folder",
           "a manifest (*.jsonl), or a folder of manifests, of codes, or of recordings", "correct the path");
    sources.push_back(std::move(source));
  }
  if (sources.empty())
    fail("data sources", "none", "paths, separated by commas", "name a manifest or a folder of codes");
  return sources;
}

/// The codes of all sources; `skipped` receives a line for each recording that is left out.
inline std::vector<DataSource> load_data_sources(const std::string& text, std::vector<std::string>& skipped,
                                                 const RecordingFilter& filter = {}) {
  std::vector<DataSource> sources;
  for (const ManifestSource& from : read_data_sources(text)) {
    std::vector<std::filesystem::path> files;
    if (from.entries.empty()) files = code_files(from.path);
    for (const ManifestEntry& entry : from.entries) files.push_back(entry.codes);
    DataSource source{{}, from.weight};
    for (const auto& file : files) {
      try {
        CodedRecording recording = open_codes(file);
        if (const auto objection = filter.objection(recording)) {
          skipped.push_back(detail::cat(file.string(), ": ", *objection));
        } else {
          source.recordings.push_back(std::move(recording));
        }
      } catch (const Error& error) {
        skipped.emplace_back(error.what());
      }
    }
    if (source.recordings.empty())
      fail(from.path.string(),
           detail::cat("none of the codes of its ", files.size(),
                       " recordings, of which the last: ", skipped.back()),
           "at least one",
           detail::cat("encode them first (encode --data ", from.path.string(),
                       "), or let the filters take more"));
    sources.push_back(std::move(source));
  }
  return sources;
}

}  // namespace mttt
