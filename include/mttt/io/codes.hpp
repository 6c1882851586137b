// Coded recordings as files, and names for the content of files.
//
// Layout:  safetensors: tensor "codes", uint8; metadata kind = "codes", streams, frames, bits, frame_rate,
//          text_card, card, codec, source, and, where it was measured, activity. Streams lie one after another, each from a whole byte on, each code
//          in the bits that its stream needs, the lowest bit first: 11 for 2048 codes. `bits` lists them,
//          "15,11,11,..."; "12+" stands for codes that are stored as code + 1, where -1 may occur.
//          Files of earlier versions, (streams, frames) in int16 or int32, are read as well.
// Formula: content_id: FNV-1a of 64 bits over words and remaining bytes, as 16 hexadecimal digits.
// Shapes:  see data/codes.hpp.
// Units:   frames a second.
// Errors:  what safetensors and check_codes refuse; other tensors; metadata missing or damaged; a folder
//          without such files.
// Not supported: protection against forged files: content_id is no cryptographic hash.
// Source:  the hash of Fowler, Noll and Vo.
#pragma once

#include <algorithm>
#include <bit>
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

/// The file of a recording's codes in their folder, by its path in the manifest: of a/b.wav a_b.safetensors.
inline std::string codes_name(const std::filesystem::path& recording) {
  std::string name = std::filesystem::path(recording).replace_extension().lexically_normal().string();
  std::replace(name.begin(), name.end(), '/', '_');
  return name + ".safetensors";
}

namespace detail {

/// How a stream is packed.
struct CodeBits {
  int bits;
  bool shifted;  // -1 occurs, and is stored as 0
  std::size_t bytes(Index frames) const { return (static_cast<std::size_t>(frames * bits) + 7) / 8; }
};

inline CodeBits code_bits(std::span<const std::int32_t> codes, Index card) {
  const bool shifted = std::find(codes.begin(), codes.end(), -1) != codes.end();
  const auto largest = static_cast<std::uint64_t>(card - 1 + shifted);
  return {std::max(1, static_cast<int>(std::bit_width(largest))), shifted};
}

inline void pack_codes(std::span<const std::int32_t> codes, CodeBits how, std::vector<std::uint8_t>& bytes) {
  std::uint64_t waiting = 0;
  int count = 0;
  for (const std::int32_t code : codes) {
    waiting |= static_cast<std::uint64_t>(code + how.shifted) << count;
    for (count += how.bits; count >= 8; count -= 8, waiting >>= 8)
      bytes.push_back(static_cast<std::uint8_t>(waiting));
  }
  if (count > 0) bytes.push_back(static_cast<std::uint8_t>(waiting));
}

/// The first code begins `skip` bits, less than 8, after the start of the bytes.
inline void unpack_codes(const std::uint8_t* bytes, CodeBits how, std::span<std::int32_t> codes,
                         int skip = 0) {
  std::uint64_t waiting = 0;
  int count = 0;
  const std::uint64_t mask = (std::uint64_t{1} << how.bits) - 1;
  if (skip > 0 && !codes.empty()) waiting = *bytes++ >> skip, count = 8 - skip;
  for (std::int32_t& code : codes) {
    for (; count < how.bits; count += 8) waiting |= std::uint64_t{*bytes++} << count;
    code = static_cast<std::int32_t>(static_cast<std::int64_t>(waiting & mask) - how.shifted);
    waiting >>= how.bits;
    count -= how.bits;
  }
}

/// "15,11+,..."; nothing where the text is not such a list.
inline std::vector<CodeBits> read_bits(std::string_view text) {
  std::vector<CodeBits> list;
  while (!text.empty()) {
    CodeBits one{0, false};
    const auto end = std::from_chars(text.data(), text.data() + text.size(), one.bits);
    if (end.ec != std::errc() || one.bits < 1 || one.bits > 31) return {};
    text.remove_prefix(static_cast<std::size_t>(end.ptr - text.data()));
    if (text.starts_with('+')) one.shifted = true, text.remove_prefix(1);
    if (!text.empty() && (!text.starts_with(',') || text.size() == 1)) return {};
    if (!text.empty()) text.remove_prefix(1);
    list.push_back(one);
  }
  return list;
}

}  // namespace detail

inline void save_codes(const std::filesystem::path& path, const CodedRecording& recording) {
  check_codes(recording, path.string());
  SafetensorsWriter writer;
  detail::set_kind(writer, "codes", {});
  char rate[32];
  const auto end = std::to_chars(rate, rate + sizeof rate, recording.frame_rate).ptr;  // shortest, exact
  writer.set_metadata("frame_rate", std::string(rate, end));
  writer.set_metadata("streams", std::to_string(recording.streams));
  writer.set_metadata("frames", std::to_string(recording.frames));
  writer.set_metadata("text_card", std::to_string(recording.text_card));
  writer.set_metadata("card", std::to_string(recording.card));
  writer.set_metadata("codec", recording.codec);
  writer.set_metadata("source", recording.source);
  if (const auto& a = recording.activity) {
    char shares[128];
    std::snprintf(shares, sizeof shares, "model %.6f user %.6f silence %.6f level %g", a->model, a->user,
                  a->silence, a->level);
    writer.set_metadata("activity", shares);
  }
  std::vector<std::uint8_t> bytes;
  std::string bits;
  for (Index k = 0; k < recording.streams; ++k) {
    const auto how = detail::code_bits(recording.stream(k), k == 0 ? recording.text_card : recording.card);
    bits += detail::cat(k == 0 ? "" : ",", how.bits, how.shifted ? "+" : "");
    detail::pack_codes(recording.stream(k), how, bytes);
  }
  writer.set_metadata("bits", bits);
  writer.add("codes", {static_cast<std::int64_t>(bytes.size())}, std::span<const std::uint8_t>(bytes));
  writer.write(path);
}

namespace detail {

/// Where the packed codes of a file lie: what reads some of them.
struct PackedCodes {
  std::string path;
  std::uint64_t file_bytes, begin;  // of the file; where the codes begin in it
  std::vector<CodeBits> bits;       // a stream each
  CodedRecording about;             // without codes

  void operator()(Index k, Index first, std::span<std::int32_t> out) const {
    const FileReader file(path);
    if (file.bytes() != file_bytes) {
      fail(path, cat(file.bytes(), " bytes"), cat(file_bytes, ", as when it was opened"),
           "do not encode recordings again that a training reads; start it again");
    }
    std::uint64_t at = begin;
    for (Index i = 0; i < k; ++i) at += bits[static_cast<std::size_t>(i)].bytes(about.frames);
    const CodeBits how = bits[static_cast<std::size_t>(k)];
    const Index from = first * how.bits, to = from + static_cast<Index>(out.size()) * how.bits;
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>((to + 7) / 8 - from / 8));
    file.read(at + static_cast<std::uint64_t>(from / 8), std::as_writable_bytes(std::span(bytes)));
    unpack_codes(bytes.data(), how, out, static_cast<int>(from % 8));
    check_codes(about, k, first, out, path);
  }
};

}  // namespace detail

/// What a file says of its codes, which are read when they are asked for: a data set need not fit into memory.
/// Files of earlier versions are read whole.
inline CodedRecording open_codes(const std::filesystem::path& path) {
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
  CodedRecording recording;
  recording.frame_rate = number("frame_rate", 0.0);
  recording.text_card = number("text_card", Index{0});
  recording.card = number("card", Index{0});
  recording.codec = text("codec");
  recording.source = text("source");
  if (file.metadata().contains("activity")) {
    SpeechActivity a;
    if (std::sscanf(text("activity").c_str(), "model %lf user %lf silence %lf level %lf", &a.model, &a.user,
                    &a.silence, &a.level) != 4)
      fail(file.path(), detail::cat("metadata 'activity' = ", detail::quote(text("activity"))),
           "'model 0.4 user 0.3 silence 0.3 level -50'", "encode it again");
    recording.activity = a;
  }
  if (file.metadata().contains("bits")) {
    const auto bits = detail::read_bits(text("bits"));
    recording.streams = number("streams", Index{0});
    recording.frames = number("frames", Index{0});
    // Frames are bounded by the bytes that the file has before anything is multiplied.
    const bool possible = static_cast<Index>(bits.size()) == recording.streams && recording.frames >= 0 &&
                          static_cast<std::size_t>(recording.frames) <= 8 * entry.count();
    std::size_t bytes = 0;
    if (possible) {
      for (const auto& how : bits) bytes += how.bytes(recording.frames);
    }
    if (!possible || file.tensors().size() != 1 || entry.dtype != DType::U8 || bytes != entry.count()) {
      fail(file.path(),
           detail::cat(file.tensors().size(), " tensors, ", entry.count(), " ", dtype_name(entry.dtype),
                       " for ", recording.streams, " streams of ", recording.frames, " frames in ",
                       detail::quote(text("bits")), " bits"),
           "codes alone, as many bytes as that takes", "encode it again");
    }
    recording.fetch =
        detail::PackedCodes{file.path(), FileReader(path).bytes(), entry.begin, bits, recording};
  } else {
    if (file.tensors().size() != 1 || entry.shape.size() != 2) {
      fail(file.path(),
           detail::cat(file.tensors().size(), " tensors, codes of shape ", detail::shape_text(entry.shape)),
           "codes (streams, frames) alone", "encode it again");
    }
    recording.streams = entry.shape[0], recording.frames = entry.shape[1];
    recording.codes.resize(entry.count());
    file.read(entry, recording.codes.data(), recording.codes.size());
  }
  check_codes(recording, file.path());
  return recording;
}

/// With all codes in memory.
inline CodedRecording load_codes(const std::filesystem::path& path) {
  CodedRecording recording = open_codes(path);
  if (const auto fetch = std::exchange(recording.fetch, {})) {
    recording.codes.resize(static_cast<std::size_t>(recording.streams * recording.frames));
    for (Index k = 0; k < recording.streams; ++k) fetch(k, 0, recording.stream(k));
  }
  return recording;
}

/// All *.safetensors of a folder, in the order of their names: the same everywhere.
inline std::vector<std::filesystem::path> code_files(const std::filesystem::path& folder) {
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
  return paths;
}

}  // namespace mttt
