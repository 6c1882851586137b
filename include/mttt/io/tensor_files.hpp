// The tensors of a model that lies in one file, safetensors or GGUF, or in several (shards).
//
// Layout:  a file; or NAME.safetensors.index.json, {"weight_map": {"tensor": "file beside the index"}}; or a
//          folder with model.safetensors or its index.
// Shapes:  as stored.   Units: bytes, elements.
// Errors:  what SafetensorsFile and GgufFile find; an index that is not JSON of that form, or that leads
//          outside its folder; a tensor that the index puts where it is not, or that lies in two shards.
// Not supported: fetching files.
// Source:  huggingface/transformers, "Sharded checkpoints".
#pragma once

#include <set>

#include "mttt/io/gguf.hpp"
#include "mttt/io/json.hpp"
#include "mttt/io/safetensors.hpp"

namespace mttt {

/// A tensor and the file that holds it.
struct TensorPlace {
  const TensorFile* file = nullptr;
  const TensorEntry* entry = nullptr;
  explicit operator bool() const { return entry != nullptr; }
};

/// Opens a file of either format, which its name tells.
inline std::unique_ptr<TensorFile> open_tensors(const std::filesystem::path& path) {
  if (path.extension() == ".gguf") return std::make_unique<GgufFile>(path);
  return std::make_unique<SafetensorsFile>(path);
}

class TensorFiles {
 public:
  explicit TensorFiles(const std::filesystem::path& path) : path_(path.string()) {
    std::filesystem::path file = path;
    std::error_code ignored;  // what cannot be looked at cannot be opened either, which says why
    if (std::filesystem::is_directory(path, ignored)) {
      file = path / "model.safetensors";
      if (!std::filesystem::exists(file, ignored)) file += ".index.json";
      if (!std::filesystem::exists(file, ignored)) {
        fail(path_, "neither model.safetensors nor model.safetensors.index.json", "one of them",
             "name the file itself, if it has another name");
      }
    }
    file.extension() == ".json" ? open_shards(file) : open(file);
  }

  /// Nothing where no file has such a tensor.
  TensorPlace find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? TensorPlace{} : found->second;
  }
  bool contains(std::string_view name) const { return index_.contains(name); }

  /// f(entry) for every tensor, in the order of the files and of their headers.
  template <class F>
  void for_each(F&& f) const {
    for (const auto& file : files_) {
      for (const auto& entry : file->tensors()) f(entry);
    }
  }

  /// The only file, or the first shard: what metadata say, they say there.
  const TensorFile& first() const { return *files_.front(); }
  /// As it was named.
  const std::string& path() const { return path_; }

 private:
  void open(const std::filesystem::path& path) {
    const auto& file = *files_.emplace_back(open_tensors(path));
    for (const auto& entry : file.tensors()) {
      const bool fresh = index_.emplace(entry.name, TensorPlace{&file, &entry}).second;
      if (!fresh)
        fail(file.path(), "tensor " + detail::quote(entry.name) + ", which an earlier shard holds too",
             "every tensor in one shard", std::string(detail::safetensors_advice));
    }
  }

  void open_shards(const std::filesystem::path& index) {
    const auto json = detail::parse_json(WholeFile(index).text());
    const auto refuse = [&](const std::string& found) {
      fail(index.string(), found, R"(an index {"weight_map": {"tensor": "file beside the index"}})",
           "fetch the index again, with all files that it names");
    };
    if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object() ||
        json["weight_map"].empty())
      refuse("no 'weight_map'");
    std::set<std::string> names;
    for (const auto& [tensor, file] : json["weight_map"].items()) {
      const std::string name = file.is_string() ? file.get<std::string>() : "";
      if (!detail::leads_below(name) || name != std::filesystem::path(name).filename().string())
        refuse("tensor " + detail::quote(tensor) + " in " + detail::quote(file.dump()));
      names.insert(name);
    }
    for (const auto& name : names) open(index.parent_path() / name);
    for (const auto& [tensor, file] : json["weight_map"].items()) {
      const auto place = find(tensor);
      if (!place || std::filesystem::path(place.file->path()).filename() != file.get<std::string>())
        refuse("tensor " + detail::quote(tensor) + ", which is not in " +
               detail::quote(file.get<std::string>()));
    }
  }

  std::string path_;
  std::vector<std::unique_ptr<TensorFile>> files_;
  std::unordered_map<std::string_view, TensorPlace> index_;  // keys point into files_, which do not change
};

}  // namespace mttt
