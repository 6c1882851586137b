// The safetensors file format: named tensors after a JSON header. Reader (tensor by tensor), writer (atomic).
//
// Layout:  uint64 header length N, little endian | N bytes of JSON | the tensors, row-major, without gaps.
//          {"__metadata__": {"key": "text"},
//           "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
// Shapes:  as stored, any rank up to 64; rank 0 is one element.   Units: bytes, elements.
// Errors:  the reader takes every file for hostile: lengths, nesting, repeated names, types, shapes, offsets,
//          overlaps and holes are checked on opening, so that a SafetensorsFile that exists is sound. Values
//          that the wanted type cannot hold are refused on reading, and so is a file that another program
//          shortens after the opening. The writer leaves an older file alone when anything fails.
// Not supported: big-endian machines; 8-bit floats. Shards: io/tensor_files.hpp.
// Source:  huggingface/safetensors, README "Format".
#pragma once

#include <nlohmann/json.hpp>
#include <unordered_set>

#include "mttt/io/tensor_file.hpp"

namespace mttt {

using SafetensorsMetadata = FileMetadata;

namespace detail {

inline constexpr std::uint64_t safetensors_header_limit = 100'000'000;
inline constexpr std::size_t safetensors_rank_limit = 64;
inline constexpr std::string_view safetensors_advice =
    "the file is damaged or was not written by a safetensors library: fetch or export it again";

/// Bytes of a tensor, or nothing where the product overflows.
inline std::optional<std::uint64_t> tensor_bytes(DType dtype, std::span<const std::int64_t> shape) {
  std::uint64_t bytes = dtype_size(dtype);
  for (const auto extent : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(extent), &bytes)) return std::nullopt;
  }
  return bytes;
}

/// Reads the header as a stream of events: no tree in memory, no recursion, only the known levels pass.
class SafetensorsHeader {
 public:
  struct Item {
    TensorEntry entry;
    std::uint64_t begin, end;
  };
  std::vector<Item> items;
  SafetensorsMetadata metadata;

  SafetensorsHeader(std::string file, std::string_view text) : file_(std::move(file)) {
    if (text.empty() || text.front() != '{') refuse("a header that does not start with '{'", "a JSON object");
    if (text.find('\0') != text.npos) refuse("a zero byte in the header", "JSON padded with spaces");
    nlohmann::json::sax_parse(text.begin(), text.end(), this);
  }

  // The events, under the names that nlohmann::json::sax_parse calls.
  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool number_float(double, const std::string& text) { return unexpected("the number " + quote(text)); }
  bool number_integer(std::int64_t value) { return unexpected(cat("the number ", value)); }
  bool binary(nlohmann::json::binary_t&) { return unexpected("binary data"); }

  bool number_unsigned(std::uint64_t value) {
    if (level_ != Level::array) return unexpected(cat("the number ", value));
    if (value > std::uint64_t(std::numeric_limits<std::int64_t>::max()))
      return unexpected(cat("the number ", value));
    if (numbers_.size() == safetensors_rank_limit)
      refuse(where() + " with more than 64 numbers", "at most 64");
    numbers_.push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool string(std::string& value) {
    if (level_ == Level::metadata) {
      metadata[key_] = std::move(value);
    } else if (level_ == Level::tensor && key_ == "dtype") {
      const auto dtype = dtype_from_name(value);
      if (!dtype)
        refuse(where() + " of " + quote(value), "one of " + dtype_names(),
               "convert the tensor to one of these");
      item_.entry.dtype = *dtype;
    } else {
      return unexpected("the text " + quote(value));
    }
    return true;
  }

  bool key(std::string& value) {
    key_ = std::move(value);
    if (level_ == Level::top) {
      name_ = key_;
      if (!names_.insert(name_).second) refuse("the name " + quote(name_) + " twice", "every name once");
    } else if (level_ == Level::metadata) {
      if (metadata.contains(key_)) refuse("the metadata key " + quote(key_) + " twice", "every key once");
    } else {
      const int bit = key_ == "dtype" ? 1 : key_ == "shape" ? 2 : key_ == "data_offsets" ? 4 : 0;
      if (bit == 0) refuse(where(), "only dtype, shape and data_offsets");
      if (fields_ & bit) refuse(where() + " twice", "it once");
      fields_ |= bit;
    }
    return true;
  }

  bool start_object(std::size_t) {
    if (level_ == Level::outside) {
      level_ = Level::top;
    } else if (level_ == Level::top) {
      level_ = name_ == "__metadata__" ? Level::metadata : Level::tensor;
      fields_ = 0;
      item_ = {};
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool end_object() {
    if (level_ == Level::tensor) {
      if (fields_ != 7)
        refuse("tensor " + quote(name_) + " with a field missing", "dtype, shape and data_offsets");
      item_.entry.name = name_;
      items.push_back(std::move(item_));
    }
    level_ = level_ == Level::top ? Level::outside : Level::top;
    return true;
  }

  bool start_array(std::size_t) {
    if (level_ != Level::tensor || key_ == "dtype") return unexpected("an array");
    level_ = Level::array;
    numbers_.clear();
    return true;
  }

  bool end_array() {
    level_ = Level::tensor;
    if (key_ == "shape") {
      item_.entry.shape = numbers_;
    } else if (numbers_.size() != 2) {
      refuse(cat(where(), " with ", numbers_.size(), " numbers"), "two: begin and end");
    } else {
      item_.begin = static_cast<std::uint64_t>(numbers_[0]);
      item_.end = static_cast<std::uint64_t>(numbers_[1]);
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) {
    const std::string_view what = error.what();  // "[json.exception...] parse error at ...: the reason"
    const auto reason = what.substr(std::min(what.size(), what.find("] ") + 2));
    refuse(cat("at byte ", position, " of the header: ", quote(reason)), "valid JSON");
  }

  [[noreturn]] void refuse(std::string_view found, std::string_view expected,
                           std::string_view advice = safetensors_advice) const {
    fail(file_, found, expected, advice);
  }

 private:
  enum class Level { outside, top, metadata, tensor, array };

  std::string where() const {
    if (level_ == Level::outside) return "the header";
    if (level_ == Level::top) return "the header entry " + quote(name_);
    if (level_ == Level::metadata) return "the metadata key " + quote(key_);
    return "field " + quote(key_) + " of tensor " + quote(name_);
  }
  bool unexpected(const std::string& what) const {
    const bool text = level_ == Level::metadata || key_ == "dtype";
    const bool object = level_ == Level::outside || level_ == Level::top;
    refuse(what + " as " + where(),
           object ? "an object" : (text ? "text" : "an array of non-negative whole numbers"));
  }

  std::string file_, name_, key_;
  Level level_ = Level::outside;
  std::unordered_set<std::string> names_;
  Item item_{};
  int fields_ = 0;
  std::vector<std::int64_t> numbers_;
};

}  // namespace detail

/// A checked safetensors file, open as long as this object lives. May be read from several threads.
class SafetensorsFile : public TensorFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& name) : TensorFile(name) {
    if (file().bytes() < 8) refuse(detail::cat("a file of ", file().bytes(), " bytes"), "at least 8");
    std::uint64_t length = 0;
    file().read(0, std::as_writable_bytes(std::span(&length, 1)));
    if (length > detail::safetensors_header_limit) {
      refuse_other_formats(length);
      refuse(detail::cat("a header of ", length, " bytes"),
             detail::cat("at most ", detail::safetensors_header_limit));
    }
    if (length > file().bytes() - 8) {
      refuse(detail::cat("a header of ", length, " bytes in a file of ", file().bytes()),
             "a header that ends inside the file");
    }
    std::string text(static_cast<std::size_t>(length), ' ');
    file().read(8, std::as_writable_bytes(std::span(text)));
    detail::SafetensorsHeader header(path(), text);
    place(header.items, 8 + length, file().bytes() - 8 - length);
    std::vector<TensorEntry> tensors;
    tensors.reserve(header.items.size());
    for (auto& item : header.items) tensors.push_back(std::move(item.entry));
    hold(std::move(tensors), std::move(header.metadata));
  }

 private:
  [[noreturn]] void refuse(std::string_view found, std::string_view expected) const {
    fail(path(), found, expected, detail::safetensors_advice);
  }
  /// Files that people take for safetensors, by their first eight bytes.
  void refuse_other_formats(std::uint64_t start) const {
    const std::string_view bytes(reinterpret_cast<const char*>(&start), sizeof start);
    const auto other = [&](std::string_view found, std::string_view advice) {
      fail(path(), found, "a safetensors file", advice);
    };
    if (bytes == "version ")
      other("a Git LFS pointer, not the file that it stands for",
            "fetch the file itself (git lfs pull, or download it again)");
    if (bytes.starts_with("GGUF")) other("a GGUF file", "give it a name that ends in .gguf");
    if (bytes.starts_with("PK\x03\x04"))
      other("a zip archive, as PyTorch saves", "save its state dict with safetensors");
    if (bytes == "<!DOCTYP" || bytes == "<!doctyp" || bytes.starts_with("<html"))
      other("a web page", "download the file itself: its address is that of the page about it");
  }
  /// Checks sizes, then that the tensors tile the `size` bytes of data from `start` on exactly; says in every
  /// entry where it lies.
  void place(std::vector<detail::SafetensorsHeader::Item>& items, std::uint64_t start,
             std::uint64_t size) const {
    std::vector<const detail::SafetensorsHeader::Item*> order;
    for (auto& [entry, begin, end] : items) {
      const std::string subject = "tensor " + detail::quote(entry.name);
      const std::string range = detail::cat("bytes ", begin, " to ", end);
      if (begin > end || end > size)
        refuse(subject + " at " + range, detail::cat("a range within the ", size, " bytes of data"));
      const auto bytes = detail::tensor_bytes(entry.dtype, entry.shape);
      if (bytes != end - begin) {
        refuse(subject + " at " + range,
               detail::cat(bytes ? std::to_string(*bytes) : "more than 2^64", " bytes for shape ",
                           detail::shape_text(entry.shape), " of ", dtype_name(entry.dtype)));
      }
      entry.begin = start + begin;
      entry.bytes = end - begin;
    }
    for (const auto& item : items) order.push_back(&item);
    std::sort(order.begin(), order.end(),
              [](auto* a, auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
    std::uint64_t covered = 0;
    for (const auto* item : order) {
      const std::string subject = "tensor " + detail::quote(item->entry.name);
      if (item->begin < covered) refuse(subject + " overlapping another", "tensors that share no bytes");
      if (item->begin > covered) {
        refuse(detail::cat(item->begin - covered, " unused bytes before ", subject), "data without holes");
      }
      covered = item->end;
    }
    if (covered != size)
      refuse(detail::cat(size - covered, " unused bytes at the end"), "data without holes");
  }
};

/// Collects tensors, then writes them in one pass. Holds views only: the data must live until write()
/// returns. Equal content added in equal order gives equal bytes. Data is laid out widest type first, so that
/// all of it is aligned.
class SafetensorsWriter {
 public:
  void add(std::string name, DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes) {
    add(std::move(name), dtype, dtype, std::move(shape), bytes);
  }
  template <class T>
  void add(std::string name, std::vector<std::int64_t> shape, std::span<const T> values) {
    add(std::move(name), dtype_of<T>(), dtype_of<T>(), std::move(shape), std::as_bytes(values));
  }
  /// Rounds to `dtype` (F32, F16 or BF16) while writing.
  void add_rounded(std::string name, DType dtype, std::vector<std::int64_t> shape,
                   std::span<const float> values) {
    if (!is_float(dtype) || dtype == DType::F64) {
      fail("SafetensorsWriter: tensor " + detail::quote(name), dtype_name(dtype), "F32, F16 or BF16",
           "choose one of these");
    }
    add(std::move(name), dtype, DType::F32, std::move(shape), std::as_bytes(values));
  }
  void set_metadata(std::string key, std::string value) {
    json_text(key), json_text(value);
    metadata_.insert_or_assign(std::move(key), std::move(value));
  }

  /// See write_file_atomically.
  void write(const std::filesystem::path& path) const {
    std::vector<std::size_t> order(items_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
      return dtype_size(items_[a].dtype) > dtype_size(items_[b].dtype);
    });
    const std::string header = make_header(order);
    if (header.size() > detail::safetensors_header_limit) {
      fail(path.string(), detail::cat("a header of ", header.size(), " bytes"),
           detail::cat("at most ", detail::safetensors_header_limit), "split the tensors over several files");
    }
    write_file_atomically(path, [&](FileSink& sink) {
      const std::uint64_t length = header.size();
      sink.write(std::as_bytes(std::span(&length, 1)));
      sink.write(header);
      for (const auto i : order) write_data(sink, items_[i]);
    });
  }

 private:
  struct Item {
    std::string name;
    DType dtype, source;  // as in the file, as in memory
    std::vector<std::int64_t> shape;
    std::span<const std::byte> bytes;
    std::uint64_t file_bytes() const { return bytes.size() / dtype_size(source) * dtype_size(dtype); }
  };

  void add(std::string name, DType dtype, DType source, std::vector<std::int64_t> shape,
           std::span<const std::byte> bytes) {
    const std::string subject = "SafetensorsWriter: tensor " + detail::quote(name);
    json_text(name);
    const bool positive = std::all_of(shape.begin(), shape.end(), [](auto extent) { return extent >= 0; });
    const auto wanted = positive ? detail::tensor_bytes(source, shape) : std::nullopt;
    if (wanted != bytes.size()) {
      fail(subject, detail::cat(bytes.size(), " bytes"),
           detail::cat(wanted ? std::to_string(*wanted) + " bytes" : "a possible size", " for shape ",
                       detail::shape_text(shape), " of ", dtype_name(source)),
           "pass the shape of the data");
    }
    if (name == "__metadata__" || !names_.insert(name).second) {
      fail(subject, "a name already taken", "every name once", "rename one of the tensors");
    }
    items_.push_back({std::move(name), dtype, source, std::move(shape), bytes});
  }

  /// As a JSON string; refuses what is not UTF-8.
  static std::string json_text(const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      fail("SafetensorsWriter", "the text " + detail::quote(text), "valid UTF-8",
           "convert names and metadata to UTF-8");
    }
  }

  /// Entries in the order of insertion; padded so that the data starts at a multiple of 8.
  std::string make_header(const std::vector<std::size_t>& order) const {
    std::vector<std::uint64_t> begin(items_.size());
    std::uint64_t offset = 0;
    for (const auto i : order) offset = (begin[i] = offset) + items_[i].file_bytes();
    std::string out = "{", separator;
    if (!metadata_.empty()) {
      for (const auto& [key, value] : metadata_) {
        out += separator.empty() ? "\"__metadata__\":{" : separator;
        out += json_text(key) + ":" + json_text(value);
        separator = ",";
      }
      out += "}";
    }
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const auto& item = items_[i];
      out += detail::cat(separator, json_text(item.name), ":{\"dtype\":\"", dtype_name(item.dtype),
                         "\",\"shape\":", detail::shape_text(item.shape), ",\"data_offsets\":[", begin[i],
                         ",", begin[i] + item.file_bytes(), "]}");
      separator = ",";
    }
    out += "}";
    out.resize((out.size() + 7) / 8 * 8, ' ');
    return out;
  }

  static void write_data(FileSink& sink, const Item& item) {
    if (item.dtype == item.source) return sink.write(item.bytes);
    std::array<std::uint16_t, 4096> block;
    const std::size_t count = item.bytes.size() / sizeof(float);
    for (std::size_t start = 0; start < count; start += block.size()) {
      const std::size_t n = std::min(block.size(), count - start);
      for (std::size_t i = 0; i < n; ++i) {
        float value;
        std::memcpy(&value, item.bytes.data() + (start + i) * sizeof value, sizeof value);
        block[i] = item.dtype == DType::F16 ? float_to_half(value) : float_to_bfloat16(value);
      }
      sink.write(std::as_bytes(std::span(block).first(n)));
    }
  }

  std::vector<Item> items_;
  std::unordered_set<std::string> names_;
  SafetensorsMetadata metadata_;
};

}  // namespace mttt
