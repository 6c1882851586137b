// Coded recordings as files, and names for the content of files.
//
// Layout:  safetensors: tensor "codes" (streams, frames), int16 where every code fits, else int32; metadata
//          kind = "codes", frame_rate, text_card, card, codec, source.
// Formula: content_id: FNV-1a of 64 bits over words and remaining bytes, as 16 hexadecimal digits.
// Shapes:  see data/codes.hpp.
// Units:   frames a second.
// Errors:  what safetensors and check_codes refuse; other tensors; metadata missing or damaged; a folder
//          without such files.
// Not supported: protection against forged files: content_id is no cryptographic hash.
// Source:  the hash of Fowler, Noll and Vo.
#pragma once

#include <charconv>

#include "mttt/data/codes.hpp"
#include "mttt/io/config.hpp"

namespace mttt {

/// A name for the content of files, which changes when any byte of them does.
inline std::string content_id(std::span<const std::filesystem::path> paths) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 0x100000001b3u; };
  std::vector<std::byte> block(std::size_t{1} << 20);  // whole words
  for (const auto& path : paths) {
    const FileReader file(path);
    const std::uint64_t size = file.bytes();
    for (std::uint64_t first = 0; first < size; first += block.size()) {
      const auto bytes = std::span(block).first(std::min<std::uint64_t>(block.size(), size - first));
      file.read(first, bytes);
      std::size_t at = 0;
      for (std::uint64_t word; at + sizeof word <= bytes.size(); at += sizeof word) {
        std::memcpy(&word, bytes.data() + at, sizeof word);
        mix(word);
        hash ^= hash >> 32;  // a product moves bits up only: bring the high ones down
      }
      for (; at < bytes.size(); ++at) mix(static_cast<std::uint64_t>(bytes[at]));
    }
    mix(size);
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

inline void save_codes(const std::filesystem::path& path, const CodedRecording& recording) {
  check_codes(recording, path.string());
  SafetensorsWriter writer;
  detail::set_kind(writer, "codes", {});
  char rate[32];
  const auto end = std::to_chars(rate, rate + sizeof rate, recording.frame_rate).ptr;  // shortest, exact
  writer.set_metadata("frame_rate", std::string(rate, end));
  writer.set_metadata("text_card", std::to_string(recording.text_card));
  writer.set_metadata("card", std::to_string(recording.card));
  writer.set_metadata("codec", recording.codec);
  writer.set_metadata("source", recording.source);
  std::vector<std::int16_t> narrow;
  const std::vector<std::int64_t> shape{recording.streams, recording.frames};
  if (std::max(recording.text_card, recording.card) <= 32768) {
    narrow.assign(recording.codes.begin(), recording.codes.end());
    writer.add("codes", shape, std::span<const std::int16_t>(narrow));
  } else {
    writer.add("codes", shape, std::span<const std::int32_t>(recording.codes));
  }
  writer.write(path);
}

inline CodedRecording load_codes(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  detail::expect_kind(file, "codes");
  const auto text = [&](const char* key) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end())
      fail(file.path(), detail::cat("no metadata '", key, "'"), "all that save_codes writes",
           "encode it again");
    return found->second;
  };
  const auto number = [&]<class T>(const char* key, T value) {
    const std::string digits = text(key);
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (end.ec != std::errc() || end.ptr != digits.data() + digits.size())
      fail(file.path(), detail::cat("metadata '", key, "' = ", detail::quote(digits)), "a number",
           "encode it again");
    return value;
  };
  const TensorEntry& entry = file.at("codes");
  if (file.tensors().size() != 1 || entry.shape.size() != 2) {
    fail(file.path(),
         detail::cat(file.tensors().size(), " tensors, codes of shape ", detail::shape_text(entry.shape)),
         "codes (streams, frames) alone", "encode it again");
  }
  CodedRecording recording{entry.shape[0], entry.shape[1], std::vector<std::int32_t>(entry.count())};
  file.read(entry, recording.codes.data(), recording.codes.size());
  recording.frame_rate = number("frame_rate", 0.0);
  recording.text_card = number("text_card", Index{0});
  recording.card = number("card", Index{0});
  recording.codec = text("codec");
  recording.source = text("source");
  check_codes(recording, file.path());
  return recording;
}

/// All *.safetensors of a folder, in the order of their names: the same everywhere.
inline std::vector<CodedRecording> load_code_folder(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".safetensors") paths.push_back(it->path());
  }
  if (error || paths.empty()) {
    fail(folder.string(), error ? detail::quote(error.message()) : "no *.safetensors in it",
         "a folder of encoded recordings", "make one with the program encode");
  }
  std::sort(paths.begin(), paths.end());
  std::vector<CodedRecording> recordings;
  for (const auto& path : paths) recordings.push_back(load_codes(path));
  return recordings;
}

}  // namespace mttt
