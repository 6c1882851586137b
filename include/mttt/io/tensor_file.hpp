// TensorFile: the named tensors of one open file, whatever its format, read one by one and converted.
//
// What derives from it reads a format's header and says where the tensors lie: SafetensorsFile, GgufFile.
// Formula: none.
// Shapes:  as stored, row-major, the slowest axis first; rank 0 is one element.   Units: bytes, elements.
// Errors:  values that the wanted type cannot hold, a name that is not there, a file that another program
//          shortens after the opening.
// Not supported: big-endian machines.
// Source:  none.
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "mttt/io/dtype.hpp"
#include "mttt/io/file.hpp"

namespace mttt {

static_assert(std::endian::native == std::endian::little, "mttt: files need a little-endian machine");

/// Numbers that share scales, block by block along a row: how ggml packs them. none: they stand alone.
enum class Blocks : std::uint8_t { none, q8_0, q4_0, q4_k };

/// One stored tensor: `bytes` bytes of the file from byte `begin` on. Those of a tensor in blocks are of type
/// U8; its shape is that of the numbers.
struct TensorEntry {
  std::string name;
  DType dtype{};
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, bytes = 0;
  Blocks blocks = Blocks::none;

  /// Of the type `dtype`.
  std::size_t count() const { return static_cast<std::size_t>(bytes) / dtype_size(dtype); }
};

/// As messages call what a tensor is stored in.
inline std::string_view stored_type(const TensorEntry& entry) {
  constexpr std::string_view names[] = {"", "Q8_0", "Q4_0", "Q4_K"};
  return entry.blocks == Blocks::none ? dtype_name(entry.dtype) : names[static_cast<int>(entry.blocks)];
}

using FileMetadata = std::map<std::string, std::string>;

namespace detail {

/// "[2, 3]"
inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string out = "[";
  for (const auto extent : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(extent);
  return out + "]";
}

/// Edit distance, for "did you mean".
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t best = std::min({row[j] + 1, row[j + 1] + 1, diagonal + (a[i] != b[j])});
      diagonal = std::exchange(row[j + 1], best);
    }
  }
  return row.back();
}

struct HalfBits {
  std::uint16_t bits;
};
struct BFloat16Bits {
  std::uint16_t bits;
};
inline float widen(HalfBits value) { return half_to_float(value.bits); }
inline float widen(BFloat16Bits value) { return bfloat16_to_float(value.bits); }
template <class T>
T widen(T value) {
  return value;
}

/// Calls `f` with a zero of the type that stores `dtype`; BOOL is stored as one byte.
template <class F>
void with_storage_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::F64:
      return f(double{});
    case DType::F32:
      return f(float{});
    case DType::F16:
      return f(HalfBits{});
    case DType::BF16:
      return f(BFloat16Bits{});
    case DType::I64:
      return f(std::int64_t{});
    case DType::I32:
      return f(std::int32_t{});
    case DType::I16:
      return f(std::int16_t{});
    case DType::I8:
      return f(std::int8_t{});
    case DType::U64:
      return f(std::uint64_t{});
    case DType::U32:
      return f(std::uint32_t{});
    case DType::U16:
      return f(std::uint16_t{});
    case DType::U8:
    case DType::BOOL:
      return f(std::uint8_t{});
  }
}

/// Whether `to` can stand for `from`: any rounding among floats, but no finite value becomes infinite;
/// integers exactly.
template <class To, class From>
bool representable(From from) {
  if constexpr (std::is_integral_v<To>) return std::in_range<To>(from);
  if constexpr (std::is_same_v<From, double> && std::is_same_v<To, float>) {
    // The largest double that still rounds to the largest float.
    return !(std::isfinite(from) && std::abs(from) >= 0x1.ffffffp127);
  }
  if constexpr (std::is_same_v<To, bf16> && std::is_floating_point_v<From>) {
    return !(std::isfinite(from) && std::abs(from) >= From{0x1.ffp127f});
  }
  if constexpr (std::is_same_v<To, f16> && std::is_floating_point_v<From>) {
    return !(std::isfinite(from) && std::abs(from) >= From{65520});
  }
  return true;
}

}  // namespace detail

/// An open file of tensors, as long as this object lives. May be read from several threads.
class TensorFile {
 public:
  TensorFile(TensorFile&&) = default;
  TensorFile& operator=(TensorFile&&) = default;
  virtual ~TensorFile() = default;

  /// In the order of the header.
  std::span<const TensorEntry> tensors() const { return tensors_; }
  const FileMetadata& metadata() const { return metadata_; }
  const std::string& path() const { return path_; }

  const TensorEntry* find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
  }

  const TensorEntry& at(std::string_view name) const {
    if (const auto* entry = find(name)) return *entry;
    std::vector<std::pair<std::size_t, const TensorEntry*>> near;
    for (const auto& entry : tensors_)
      near.emplace_back(detail::edit_distance(name.substr(0, 256), entry.name.substr(0, 256)), &entry);
    const auto shown = std::min<std::size_t>(3, near.size());
    std::partial_sort(near.begin(), near.begin() + static_cast<std::ptrdiff_t>(shown), near.end());
    std::string closest;
    for (std::size_t i = 0; i < shown; ++i)
      closest += (i > 0 ? ", " : "") + detail::quote(near[i].second->name);
    fail(path_, detail::cat("no tensor ", detail::quote(name), " among ", tensors_.size()),
         "a tensor of that name",
         closest.empty() ? "the file holds no tensors at all" : "the closest names are " + closest);
  }

  /// Copies a tensor out, converted: floats of any width to float or double, whole numbers to whole numbers.
  template <class T>
  void read(const TensorEntry& entry, T* out, std::size_t n) const {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>,
                  "mttt: TensorFile::read fills built-in numbers; read BOOL into uint8_t");
    if (n != entry.count()) {
      fail(where(entry), detail::cat(entry.count(), " elements, shape ", detail::shape_text(entry.shape)),
           detail::cat(n, " elements"), "compare the configuration of the model with that of the file");
    }
    detail::with_storage_type(entry.dtype, [&](auto zero) {
      using Stored = decltype(zero);
      using Wide = decltype(detail::widen(zero));
      if constexpr (std::is_same_v<Stored, T>) {
        file_.read(entry.begin, std::as_writable_bytes(std::span(out, n)));
      } else if constexpr (std::is_floating_point_v<Wide> != std::is_floating_point_v<T>) {
        fail(where(entry), dtype_name(entry.dtype), dtype_name(dtype_of<T>()),
             "read it into a type of its own kind");
      } else {
        for_each_stored<Stored>(entry, [&](std::size_t i, Wide value) {
          if (!detail::representable<T>(value)) {
            fail(where(entry), detail::cat(+value, " at element ", i),
                 detail::cat("a value that ", dtype_name(dtype_of<T>()), " holds"),
                 "read it into a wider type");
          }
          out[i] = static_cast<T>(value);
          return true;
        });
      }
    });
  }
  template <class T>
  std::vector<T> read(const TensorEntry& entry) const {
    std::vector<T> values(entry.count());
    read(entry, values.data(), values.size());
    return values;
  }

  /// Copies a tensor's bytes as they are.
  void read_bytes(const TensorEntry& entry, std::span<std::byte> out) const { file_.read(entry.begin, out); }

  /// Calls tell(index, value) for the first element, stored as `Stored`, for which is_it(value), if there is
  /// one.
  template <class Stored, class Is, class Tell>
  void find_stored(const TensorEntry& entry, Is&& is_it, Tell&& tell) const {
    std::vector<Stored> block(std::min<std::size_t>(entry.count(), 1 << 16));
    for (std::size_t first = 0; first < entry.count(); first += block.size()) {
      const std::span<Stored> part(block.data(), std::min(block.size(), entry.count() - first));
      file_.read(entry.begin + first * sizeof(Stored), std::as_writable_bytes(part));
      unsigned any = 0;  // without a branch, so that the loop becomes vector code
      for (const Stored& stored : part) any |= static_cast<unsigned>(is_it(detail::widen(stored)));
      for (std::size_t i = 0; any != 0 && i < part.size(); ++i) {
        if (is_it(detail::widen(part[i]))) return tell(first + i, detail::widen(part[i]));
      }
    }
  }

  /// Calls f(index, value) for the elements of a tensor, which are stored as `Stored`, until f is false.
  template <class Stored, class F>
  void for_each_stored(const TensorEntry& entry, F&& f) const {
    std::vector<Stored> block(std::min<std::size_t>(entry.count(), 1 << 16));
    for (std::size_t first = 0; first < entry.count(); first += block.size()) {
      const std::span<Stored> part(block.data(), std::min(block.size(), entry.count() - first));
      file_.read(entry.begin + first * sizeof(Stored), std::as_writable_bytes(part));
      for (std::size_t i = 0; i < part.size(); ++i) {
        if (!f(first + i, detail::widen(part[i]))) return;
      }
    }
  }

 protected:
  explicit TensorFile(const std::filesystem::path& path) : path_(path.string()), file_(path) {}

  /// Once, when the header was read.
  void hold(std::vector<TensorEntry> tensors, FileMetadata metadata) {
    tensors_ = std::move(tensors), metadata_ = std::move(metadata);
    for (std::size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
  }
  const FileReader& file() const { return file_; }

 private:
  std::string where(const TensorEntry& entry) const {
    return path_ + ", tensor " + detail::quote(entry.name);
  }

  std::string path_;
  FileReader file_;
  FileMetadata metadata_;
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string_view, std::size_t> index_;  // keys point into tensors_, which never changes
};

}  // namespace mttt
