// GGUF, the files of ggml: named tensors after a binary header, in floats or blocks of 4 and 8 bits. Reader.
//
// Layout:  "GGUF" | u32 version | u64 tensors | u64 keys | keys and values | names, shapes, types, offsets |
//          padding | the tensors, each at a multiple of the alignment (the key general.alignment, else 32).
//          All little endian; a shape is stored with its fastest axis first.
// Formula: Q8_0, 32 numbers in 34 bytes: f16 d, i8 q[32]; w = d q.
//          Q4_0, 32 numbers in 18 bytes: f16 d, 16 bytes: low halves are numbers 0-15, high ones 16-31;
//          w = d (q - 8).
//          Q4_K, 256 numbers in 144 bytes: f16 d, f16 m, 12 bytes with 6 bits of scale s and of minimum t for
//          each 32, 128 bytes of q: low halves of 32 bytes, then high ones; w = d s q - m t.
// Shapes:  as stored, the slowest axis first, rank 1 to 4.   Units: bytes, elements.
// Errors:  the reader takes every file for hostile: lengths, counts, nesting, repeated names, types, shapes,
//          offsets and overlaps are checked on opening, so that a GgufFile that exists is sound.
// Not supported: writing; version 1; other block types, which are refused by name; big-endian files.
// Source:  ggml-org/ggml docs/gguf.md; ggml-quants.c `dequantize_row_q8_0`, `_q4_0`, `_q4_K`.
#pragma once

#include <unordered_set>

#include "mttt/io/tensor_file.hpp"

namespace mttt {

namespace detail {

struct BlockFact {
  std::size_t numbers, bytes;
};
inline BlockFact block_fact(Blocks blocks) {
  switch (blocks) {
    case Blocks::q8_0:
      return {32, 34};
    case Blocks::q4_0:
      return {32, 18};
    case Blocks::q4_k:
      return {256, 144};
    case Blocks::none:
      break;
  }
  return {1, 1};
}

inline float half_at(const std::uint8_t* bytes) {
  return half_to_float(static_cast<std::uint16_t>(bytes[0] | bytes[1] << 8));
}

/// The scales of a block are finite, and with them all of its numbers.
inline bool finite_block(Blocks blocks, const std::uint8_t* bytes) {
  return std::isfinite(half_at(bytes)) && (blocks != Blocks::q4_k || std::isfinite(half_at(bytes + 2)));
}

/// The numbers of one block.
inline void unpack_block(Blocks blocks, const std::uint8_t* bytes, float* out) {
  const float d = half_at(bytes);
  if (blocks == Blocks::q8_0) {
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<std::int8_t>(bytes[2 + i]));
  } else if (blocks == Blocks::q4_0) {
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((bytes[2 + i] & 15) - 8);
      out[i + 16] = d * static_cast<float>((bytes[2 + i] >> 4) - 8);
    }
  } else {
    const float m = half_at(bytes + 2);
    const std::uint8_t* packed = bytes + 4;
    for (int j = 0; j < 8; ++j) {  // 32 numbers each
      const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
      const int least = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
      const float step = d * static_cast<float>(scale), low = m * static_cast<float>(least);
      const std::uint8_t* q = bytes + 16 + j / 2 * 32;
      for (int i = 0; i < 32; ++i)
        out[32 * j + i] = step * static_cast<float>(j % 2 == 0 ? q[i] & 15 : q[i] >> 4) - low;
    }
  }
}

/// Reads a header from its start, with the file's end and a limit in sight.
class GgufCursor {
 public:
  static constexpr std::uint64_t limit = 256 << 20;

  GgufCursor(const FileReader& file, std::string path)
      : file_(file), path_(std::move(path)), end_(std::min(file.bytes(), limit)) {}

  std::uint64_t at() const { return at_; }
  std::uint64_t left() const { return end_ - at_; }

  template <class T>
  T number(const char* what) {
    T value;
    read(std::as_writable_bytes(std::span(&value, 1)), what);
    return value;
  }
  std::string text(const char* what, std::uint64_t longest) {
    const auto length = number<std::uint64_t>(what);
    if (length > longest) refuse(cat(what, " of ", length, " bytes"), cat("at most ", longest));
    std::string out(static_cast<std::size_t>(std::min(length, left())), ' ');
    if (out.size() < length) refuse(cat("the end of the header in ", what), "a whole header");
    read(std::as_writable_bytes(std::span(out)), what);
    return out;
  }
  void skip(std::uint64_t bytes, const char* what) {
    if (bytes > left()) refuse(cat("the end of the header in ", what), "a whole header");
    at_ += bytes;
  }
  /// So many things follow, each of at least `least` bytes.
  std::uint64_t count(std::uint64_t least, const char* what) {
    const auto n = number<std::uint64_t>(what);
    if (n > left() / least) refuse(cat(n, " ", what), cat("what ", left(), " bytes of header can hold"));
    return n;
  }

  [[noreturn]] void refuse(std::string_view found, std::string_view expected) const {
    fail(path_, found, expected, "the file is damaged or is no GGUF file: fetch or export it again");
  }

 private:
  void read(std::span<std::byte> out, const char* what) {
    if (out.size() > left()) refuse(cat("the end of the header in ", what), "a whole header");
    if (at_ < begin_ || at_ + out.size() > begin_ + buffer_.size()) {
      begin_ = at_;
      buffer_.resize(static_cast<std::size_t>(
          std::min<std::uint64_t>(std::max<std::uint64_t>(out.size(), 1 << 16), end_ - at_)));
      file_.read(begin_, buffer_);
    }
    std::copy_n(buffer_.begin() + static_cast<std::ptrdiff_t>(at_ - begin_), out.size(), out.begin());
    at_ += out.size();
  }

  const FileReader& file_;
  std::string path_;
  std::uint64_t end_, at_ = 0, begin_ = 0;
  std::vector<std::byte> buffer_;
};

}  // namespace detail

/// A checked GGUF file, open as long as this object lives. May be read from several threads.
class GgufFile : public TensorFile {
 public:
  explicit GgufFile(const std::filesystem::path& name) : TensorFile(name) {
    detail::GgufCursor in(file(), path());
    if (in.number<std::uint32_t>("its first bytes") != 0x46554747)  // "GGUF"
      in.refuse("no 'GGUF' at its start", "a GGUF file");
    const auto version = in.number<std::uint32_t>("its version");
    if (version != 2 && version != 3) {
      fail(path(), detail::cat("GGUF of version ", version), "version 2 or 3",
           "convert it with the program that wrote it");
    }
    const auto tensors = in.count(25, "tensors"), keys = in.count(13, "keys");
    std::uint64_t alignment = 32;
    for (std::uint64_t i = 0; i < keys; ++i) {
      const auto key = in.text("a key", 65535);
      const auto type = in.number<std::uint32_t>("the type of a value");
      if (key == "general.alignment" && type == 4) {
        alignment = in.number<std::uint32_t>("general.alignment");
        if (alignment == 0 || alignment % 8 != 0)
          in.refuse(detail::cat("an alignment of ", alignment), "a multiple of 8");
      } else {
        skip_value(in, type, 0);
      }
    }
    std::vector<TensorEntry> entries;
    std::unordered_set<std::string> names;
    for (std::uint64_t i = 0; i < tensors; ++i) {
      entries.push_back(tensor(in));
      const auto& entry = entries.back();
      if (!names.insert(entry.name).second)
        in.refuse("the name " + detail::quote(entry.name) + " twice", "every name once");
      if (entry.begin % alignment != 0)
        in.refuse(detail::cat("tensor ", detail::quote(entry.name), " at byte ", entry.begin),
                  detail::cat("a multiple of ", alignment));
    }
    place(in, entries, (in.at() + alignment - 1) / alignment * alignment);
    hold(std::move(entries), {});
  }

 private:
  static void skip_value(detail::GgufCursor& in, std::uint32_t type, int depth) {
    constexpr std::uint64_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 8: text, 9: array
    if (type >= std::size(sizes)) in.refuse(detail::cat("a value of type ", type), "one of 0 to 12");
    if (sizes[type] > 0) return in.skip(sizes[type], "a value");
    if (type == 8) return in.skip(in.count(1, "bytes of text"), "a text");
    if (depth > 3) in.refuse("arrays in arrays in arrays in arrays", "three levels at most");
    const auto inner = in.number<std::uint32_t>("the type of an array");
    if (inner >= std::size(sizes)) in.refuse(detail::cat("an array of type ", inner), "one of 0 to 12");
    const std::uint64_t each = sizes[inner] > 0 ? sizes[inner] : inner == 8 ? 8 : 12;
    const auto n = in.count(each, "values of an array");
    if (sizes[inner] > 0) return in.skip(n * sizes[inner], "an array");
    for (std::uint64_t i = 0; i < n; ++i) skip_value(in, inner, depth + 1);
  }

  /// Its place counts from the start of the data.
  static TensorEntry tensor(detail::GgufCursor& in) {
    TensorEntry entry;
    entry.name = in.text("the name of a tensor", 1024);
    const std::string subject = "tensor " + detail::quote(entry.name);
    const auto rank = in.number<std::uint32_t>("the rank of a tensor");
    if (rank < 1 || rank > 4) in.refuse(detail::cat(subject, " of rank ", rank), "1 to 4");
    std::uint64_t elements = 1;
    for (std::uint32_t k = 0; k < rank; ++k) {
      const auto extent = in.number<std::uint64_t>("a shape");
      if (extent == 0 || __builtin_mul_overflow(elements, extent, &elements) || elements >> 56 != 0)
        in.refuse(detail::cat(subject, " with an extent of ", extent), "numbers that can be counted");
      entry.shape.insert(entry.shape.begin(), static_cast<std::int64_t>(extent));
    }
    set_type(in, entry, subject, elements);
    entry.begin = in.number<std::uint64_t>("the place of a tensor");
    return entry;
  }

  static void set_type(detail::GgufCursor& in, TensorEntry& entry, const std::string& subject,
                       std::uint64_t elements) {
    const auto type = in.number<std::uint32_t>("the type of a tensor");
    entry.dtype = DType::U8;
    if (const auto plain = plain_type(type)) {
      entry.dtype = *plain;
      entry.bytes = elements * dtype_size(*plain);
      return;
    }
    entry.blocks = type == 8    ? Blocks::q8_0
                   : type == 2  ? Blocks::q4_0
                   : type == 12 ? Blocks::q4_k
                                : Blocks::none;
    if (entry.blocks == Blocks::none) {
      fail(subject, "ggml's type " + type_text(type), "F32, F16, BF16, Q8_0, Q4_0 or Q4_K",
           "fetch or quantise the model in one of these");
    }
    const auto [numbers, bytes] = detail::block_fact(entry.blocks);
    if (static_cast<std::uint64_t>(entry.shape.back()) % numbers != 0)
      in.refuse(detail::cat(subject, " of shape ", detail::shape_text(entry.shape)),
                detail::cat("rows of blocks of ", numbers));
    entry.bytes = elements / numbers * bytes;
  }

  static std::optional<DType> plain_type(std::uint32_t type) {
    switch (type) {
      case 0:
        return DType::F32;
      case 1:
        return DType::F16;
      case 24:
        return DType::I8;
      case 25:
        return DType::I16;
      case 26:
        return DType::I32;
      case 27:
        return DType::I64;
      case 28:
        return DType::F64;
      case 30:
        return DType::BF16;
      default:
        return std::nullopt;
    }
  }
  static std::string type_text(std::uint32_t type) {
    constexpr std::string_view names[] = {"F32",  "F16",  "Q4_0", "Q4_1", "",     "",     "Q5_0", "Q5_1",
                                          "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"};
    const bool named = type < std::size(names) && !names[type].empty();
    return named ? std::string(names[type]) : "number " + std::to_string(type);
  }

  void place(const detail::GgufCursor& in, std::vector<TensorEntry>& entries, std::uint64_t start) const {
    std::vector<const TensorEntry*> order;
    for (auto& entry : entries) {
      std::uint64_t end = 0;
      if (__builtin_add_overflow(entry.begin, start, &entry.begin) ||
          __builtin_add_overflow(entry.begin, entry.bytes, &end) || end > file().bytes()) {
        in.refuse(detail::cat("tensor ", detail::quote(entry.name), " of ", entry.bytes, " bytes at byte ",
                              entry.begin),
                  detail::cat("a range within the ", file().bytes(), " bytes of the file"));
      }
      order.push_back(&entry);
    }
    std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->begin < b->begin; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i]->begin < order[i - 1]->begin + order[i - 1]->bytes)
        in.refuse("tensor " + detail::quote(order[i]->name) + " overlapping another",
                  "tensors that share no bytes");
    }
  }
};

}  // namespace mttt
