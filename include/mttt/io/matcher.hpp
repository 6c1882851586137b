// Finds the tensors of a model in files of any form that is known (io/published_names.hpp) and reads them.
//
// Formula: int8 rows (NAME_scb beside NAME): w = q s / 127, s one number a row.
//          Packed groups (NAME without .weight, .scales and .biases): w = q s + b, q of 4 or 8 bits, lowest
//          bits first, s and b one number for each group of a row.
//          Blocks of GGUF: see io/gguf.hpp.
//          Our own 8 and 4 bits (NAME.scale beside NAME): see core/quantised.hpp. A model that holds its
//          weights so takes them, and int8 rows, as they are; what lies in another form it rounds.
//          LoRA (an adapter's X.lora_A.weight, X.lora_B.weight): W + scaling B A, in the wide type, rounded
//          once. Other tensors of an adapter stand in for those of the file, or add to them.
// Shapes:  equal up to leading extents of 1: (1, 1, C) is (C). lora_A (rank, in), lora_B (out, rank).
// Units:   none.
// Errors:  all missing, extra, misshapen, mistyped and non-finite tensors in one message, with names and
//          shapes.
// Not supported: none.
// Source:  kyutai-labs/moshi utils/quantize.py, modules/lora.py, scripts/quantize_mlx.py; bitsandbytes
//          functional.py `int8_vectorwise_dequant`; MLX `mlx.core.dequantize`; kyutai-labs/moshi-finetune
//          finetune/checkpointing.py.
#pragma once

#include <charconv>
#include <functional>
#include <mutex>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/permuted_tensor.hpp"
#include "mttt/core/quantise.hpp"
#include "mttt/io/config.hpp"
#include "mttt/io/published_names.hpp"
#include "mttt/io/workers.hpp"

namespace mttt {

struct LoadOptions {
  std::string prefix = {};                                    // of the names in the file
  nlohmann::json config = {};                                 // compared with the file's, where it has one
  bool check_finite = true;                                   // refuse NaN and infinity
  std::function<bool(std::string_view)> ignore_extra = {};    // names in the file: need no place in the model
  std::function<bool(std::string_view)> may_be_missing = {};  // names in the file: keep their value if absent
  Index head_dim = 0;                  // of attention with RoPE, if the file parts its halves
  std::filesystem::path adapter = {};  // LoRA and tensors that stand in for the file's
  double lora_scaling = 2;
  Index lora_rank = 0;                 // expected; 0: as the adapter has it
  std::optional<double> base_lr = {};  // of TTT layers from files that do not hold it
};

namespace detail {

using Shape = std::vector<std::int64_t>;

/// The shape under which a tensor is published, or in which it lies in memory.
template <class Tens>
Shape shape_of(const Tens& tensor, bool published = true) {
  if constexpr (is_quantised<Tens>) {
    return {Tens::out, Tens::in};
  } else {
    if constexpr (Permuted<Tens>) {
      constexpr auto shape = Tens::published_shape();
      if (published) return Shape(shape.begin(), shape.end());
    }
    return Shape(tensor.extents().begin(), tensor.extents().end());
  }
}

inline std::span<const std::int64_t> without_leading_ones(const Shape& shape) {
  std::span<const std::int64_t> rest = shape;
  while (!rest.empty() && rest.front() == 1) rest = rest.subspan(1);
  return rest;
}
inline bool same_shape(const Shape& a, const Shape& b) {
  const auto x = without_leading_ones(a), y = without_leading_ones(b);
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}
inline std::size_t count_of(const Shape& shape) {
  std::size_t count = 1;
  for (const auto extent : shape) count *= static_cast<std::size_t>(extent);
  return count;
}

/// Reads a tensor into what the model holds.
template <class T>
void read_into(const TensorFile& file, const TensorEntry& entry, T* out) {
  if constexpr (NarrowNumber<T>) {  // from floats of any width
    if (entry.dtype == dtype_of<T>())
      return file.read_bytes(entry, std::as_writable_bytes(std::span(out, entry.count())));
    const auto values = file.read<float>(entry);
    std::transform(values.begin(), values.end(), out, [](float x) { return T(x); });
  } else {
    file.read(entry, out, entry.count());
  }
}

/// A whole stored tensor or a block of its rows, and what turns it into numbers.
struct TensorPiece {
  enum class Coding { plain, int8_rows, packed_groups, blocks, int8, int4 };
  const TensorFile* file;
  const TensorEntry* whole;
  TensorEntry entry;  // the block's bytes and shape
  Shape shape;        // of the numbers
  bool rotary = false, fits = true;
  std::int64_t first_row = 0;
  Coding coding = Coding::plain;
  const TensorEntry *whole_scales = nullptr, *whole_biases = nullptr;
  TensorEntry scales{}, biases{};

  std::int64_t rows() const { return entry.shape.empty() ? 1 : entry.shape[0]; }
};

/// Rows of an entry: block k of `blocks`.
inline TensorEntry rows_of(const TensorEntry& entry, std::size_t k, std::int64_t blocks) {
  TensorEntry part = entry;
  if (blocks <= 1) return part;
  part.shape[0] /= blocks;
  part.bytes /= static_cast<std::uint64_t>(blocks);
  part.begin += k * part.bytes;
  return part;
}

/// q of a word of packed numbers.
inline std::uint32_t packed_at(std::span<const std::uint32_t> words, std::size_t i, std::size_t bits) {
  const std::size_t per_word = 32 / bits;
  return words[i / per_word] >> (i % per_word * bits) & ((1u << bits) - 1);
}

/// Calls f(index, bytes) for the blocks of a piece until f is false.
template <class F>
void for_each_block(const TensorPiece& piece, F&& f) {
  const std::size_t bytes = block_fact(piece.entry.blocks).bytes;
  const std::size_t count = static_cast<std::size_t>(piece.entry.bytes) / bytes;
  std::vector<std::uint8_t> part(std::min<std::size_t>(count, 4096) * bytes);
  for (std::size_t first = 0; first < count; first += 4096) {
    const std::size_t n = std::min<std::size_t>(4096, count - first);
    TensorEntry entry{
        .name = {}, .dtype = DType::U8, .shape = {}, .begin = piece.entry.begin + first * bytes};
    entry.bytes = n * bytes;
    piece.file->read_bytes(entry, std::as_writable_bytes(std::span(part).first(n * bytes)));
    for (std::size_t i = 0; i < n; ++i) {
      if (!f(first + i, part.data() + i * bytes)) return;
    }
  }
}

/// What we store in 8 and 4 bits, as it lies.
template <class Format>
void read_quantised(const TensorPiece& piece, typename Format::Value* values,
                    typename Format::Scale* scales) {
  const auto bytes = static_cast<std::size_t>(piece.entry.bytes);
  piece.file->read_bytes(piece.entry, std::as_writable_bytes(std::span(values, bytes)));
  read_into(*piece.file, piece.scales, scales);
  if constexpr (std::same_as<Format, Int8>) {
    if (piece.coding != TensorPiece::Coding::int8_rows) return;
    std::transform(scales, scales + piece.scales.count(), scales, [](float s) { return s * (1.0f / 127); });
  }
}
template <class Format, class T>
void decode_quantised(const TensorPiece& piece, T* out) {
  const auto rows = static_cast<Index>(piece.rows()),
             columns = static_cast<Index>(count_of(piece.shape)) / std::max<Index>(1, rows);
  std::vector<typename Format::Value> values(static_cast<std::size_t>(rows * Format::values(columns)));
  std::vector<typename Format::Scale> scales(static_cast<std::size_t>(rows * Format::scales(columns)));
  read_quantised<Format>(piece, values.data(), scales.data());
  const QuantisedMatrix<Format> weights{values.data(), scales.data(), rows, columns};
  for (Index r = 0; r < rows; ++r) {
    for (Index i = 0; i < columns; ++i)
      out[r * columns + i] = static_cast<T>(Format::weight(weights.row(r), weights.row_scales(r), i));
  }
}

/// The numbers of a piece, at out[0, count).
template <class T>
void decode(const TensorPiece& piece, T* out) {
  const auto columns = static_cast<std::size_t>(piece.shape.empty() ? 1 : piece.shape.back());
  const std::size_t count = count_of(piece.shape);
  if (piece.coding == TensorPiece::Coding::plain) {
    read_into(*piece.file, piece.entry, out);
  } else if (piece.coding == TensorPiece::Coding::int8) {
    decode_quantised<Int8>(piece, out);
  } else if (piece.coding == TensorPiece::Coding::int4) {
    decode_quantised<Int4>(piece, out);
  } else if (piece.coding == TensorPiece::Coding::blocks) {
    const Blocks blocks = piece.entry.blocks;
    const std::size_t numbers = block_fact(blocks).numbers;
    std::array<float, 256> unpacked;
    for_each_block(piece, [&](std::size_t i, const std::uint8_t* block) {
      unpack_block(blocks, block, unpacked.data());
      for (std::size_t k = 0; k < numbers; ++k) out[i * numbers + k] = static_cast<T>(unpacked[k]);
      return true;
    });
  } else if (piece.coding == TensorPiece::Coding::int8_rows) {
    const auto q = piece.file->read<std::int8_t>(piece.entry);
    const auto scale = piece.file->read<float>(piece.scales);
    const std::size_t width = count / scale.size();
    for (std::size_t i = 0; i < count; ++i)
      out[i] = static_cast<T>(static_cast<float>(q[i]) * scale[i / width] * (1.0f / 127));
  } else {
    const auto words = piece.file->read<std::uint32_t>(piece.entry);
    const auto scale = piece.file->read<float>(piece.scales), bias = piece.file->read<float>(piece.biases);
    const auto bits = 32 * static_cast<std::size_t>(piece.entry.shape.back()) / columns;
    const std::size_t group = count / scale.size();
    for (std::size_t i = 0; i < count; ++i)
      out[i] =
          static_cast<T>(static_cast<float>(packed_at(words, i, bits)) * scale[i / group] + bias[i / group]);
  }
}

/// Rows from the order of rotary halves to pairs.
template <class T>
void pair_rotary_rows(T* rows, std::size_t count, std::size_t columns, std::size_t head_dim) {
  std::vector<T> head(head_dim * columns);
  for (std::size_t at = 0; at < count; at += head.size()) {
    std::copy_n(rows + at, head.size(), head.begin());
    for (std::size_t r = 0; r < head_dim; ++r) {
      const std::size_t from = r % 2 * (head_dim / 2) + r / 2;
      std::copy_n(head.begin() + static_cast<std::ptrdiff_t>(from * columns), columns,
                  rows + at + r * columns);
    }
  }
}

/// Finds the tensors of a model in files and remembers what was used and what is wrong.
class Matcher {
 public:
  Matcher(const TensorFiles& files, const LoadOptions& options, bool read_values = true)
      : files_(files), options_(options), form_(name_form(files, options.prefix)), read_values_(read_values) {
    if (!options.adapter.empty()) adapter_ = std::make_unique<TensorFiles>(options.adapter);
  }

  /// Looks at every tensor of `aggregate`, whose names in the file start with `prefix`.
  template <class P>
  void check(const P& aggregate, const std::string& prefix) {
    for_each_tensor([&](std::string_view name, const auto&) { note_adapter(name); }, aggregate);
    for_each_parameter(
        [&](std::string_view name, const auto& tensor) {
          using Tens = std::remove_cvref_t<decltype(tensor)>;
          if constexpr (is_quantised<Tens>) {
            check_one<float>(prefix, std::string(name), shape_of(tensor));
          } else {
            check_one<std::remove_const_t<typename Tens::value_type>>(prefix, std::string(name),
                                                                      shape_of(tensor));
          }
        },
        aggregate);
  }

  /// Raises one error with all problems; tensors under `prefix` that nobody asked for are problems too.
  void finish(const std::string& prefix) {
    look_at_values();
    files_.for_each([&](const TensorEntry& entry) {
      if (entry.name.starts_with(prefix)) finish_one(entry, prefix, "");
    });
    if (adapter_)
      adapter_->for_each([&](const TensorEntry& entry) {
        finish_one(entry, "", " in the adapter " + quote(adapter_->path()));
      });
    problems_.stop(files_.path(), "exactly the tensors of the model",
                   "compare the preset with the file, and its prefix");
  }

  /// Fills a backend's memory, several tensors at a time; call after finish(). What the host can reach is
  /// converted where it stays, anything else in memory of one tensor a thread.
  template <class B, class P>
  void load(B& be, P& aggregate, const std::string& prefix) const {
    std::vector<std::function<void()>> all;
    std::uint64_t bytes = 0;
    std::mutex device;  // a backend serves one thread at a time
    for_each_parameter(
        [&](std::string_view name, auto& tensor) {
          if constexpr (!is_quantised<std::remove_cvref_t<decltype(tensor)>>) {
            if (left_out(tensor)) return;
          }
          bytes += static_cast<std::uint64_t>(tensor.size()) * 4;
          all.push_back([this, &be, &device, &prefix, name = std::string(name), tensor] {
            load_one(be, device, prefix, name, tensor);
          });
        },
        aggregate);
    in_parallel(all.size(), bytes, [&](std::size_t i) { all[i](); });
  }

 private:
  /// Where the values lie: one piece below the other. No pieces: nowhere.
  struct Found {
    std::vector<TensorPiece> pieces;
    Shape shape;
    std::string as;  // the name of what was found, for messages
  };
  struct Lora {
    TensorPiece a, b;
  };

  template <class B, class Tens>
  void load_one(B& be, std::mutex& device, const std::string& prefix, const std::string& name,
                const Tens& tensor) const {
    using T = typename Tens::value_type;
    constexpr bool reachable = std::same_as<typename B::Memory, CpuMemory>;
    const Shape shape = shape_of(tensor);
    const auto size = static_cast<std::size_t>(tensor.size());
    std::vector<T> published(reachable && !Permuted<Tens> ? 0 : size);
    if (!numbers(prefix, name, shape, published.empty() ? tensor.data() : published.data()))
      return;  // may be missing
    if constexpr (Permuted<Tens>) {
      if constexpr (reachable) return from_published(published.data(), tensor);
      std::vector<T> stored(size);
      from_published(published.data(), Tens(stored.data(), tensor.extents()));
      published.swap(stored);
    }
    if constexpr (!reachable) {
      const std::lock_guard guard(device);
      be.to_device(published.data(), tensor.data(), tensor.size());
    }
  }

  template <class B, class Format, Index rows, Index columns>
  void load_one(B& be, std::mutex& device, const std::string& prefix, const std::string& name,
                const QuantisedTensor<Format, rows, columns>& weight) const {
    constexpr bool reachable = std::same_as<typename B::Memory, CpuMemory>;
    std::vector<typename Format::Value> own_values(
        reachable ? 0 : static_cast<std::size_t>(weight.values.size()));
    std::vector<typename Format::Scale> own_scales(
        reachable ? 0 : static_cast<std::size_t>(weight.scales.size()));
    auto* values = reachable ? weight.values.data() : own_values.data();
    auto* scales = reachable ? weight.scales.data() : own_scales.data();
    const Shape shape = shape_of(weight);
    const Found found = find(prefix, name, shape);
    if (found.pieces.empty()) return;  // may be missing
    if (lies_in<Format>(found) && !find_lora(name, shape)) {
      for (Index at = 0; const auto& piece : found.pieces) {
        read_quantised<Format>(piece, values + at * Format::values(columns),
                               scales + at * Format::scales(columns));
        at += static_cast<Index>(piece.rows());
      }
    } else {
      std::vector<float> exact(static_cast<std::size_t>(weight.size()));
      numbers(prefix, name, shape, exact.data());
      quantise_rows<Format>(prefix + name, exact.data(), rows, columns, values, scales, false);
    }
    if constexpr (!reachable) {
      const std::lock_guard guard(device);
      be.to_device(values, weight.values.data(), weight.values.size());
      be.to_device(scales, weight.scales.data(), weight.scales.size());
    }
  }
  /// Whether the file holds the format itself, row by row as the model does.
  template <class Format>
  static bool lies_in(const Found& found) {
    using Coding = TensorPiece::Coding;
    return std::all_of(found.pieces.begin(), found.pieces.end(), [](const TensorPiece& piece) {
      const bool fits = std::same_as<Format, Int8>
                            ? piece.coding == Coding::int8 || piece.coding == Coding::int8_rows
                            : piece.coding == Coding::int4;
      return fits && !piece.rotary;
    });
  }

  /// Fills `out`; false, and nothing done, for what is in no file and may be missing.
  template <class T>
  bool numbers(const std::string& prefix, const std::string& name, const Shape& shape, T* out) const {
    const Found found = find(prefix, name, shape);
    if (found.pieces.empty()) {
      const bool known = options_.base_lr && is_base_lr(name);
      if (known) out[0] = static_cast<T>(*options_.base_lr);
      return known;
    }
    const auto lora = find_lora(name, shape);
    if constexpr (FloatNumber<T>) {
      if (lora) {
        using W = Wide<T>;
        std::vector<W> sum(count_of(found.shape));
        decoded(found, sum.data());
        add_lora(sum, shape, *lora);
        std::transform(sum.begin(), sum.end(), out, [](W x) { return static_cast<T>(x); });
        return true;
      }
    }
    decoded(found, out);
    return true;
  }

  template <class T>
  void decoded(const Found& found, T* out) const {
    for (const auto& piece : found.pieces) {
      const std::size_t count = count_of(piece.shape);
      decode(piece, out);
      if (piece.rotary)
        pair_rotary_rows(out, count, count / static_cast<std::size_t>(piece.rows()),
                         static_cast<std::size_t>(options_.head_dim));
      out += count;
    }
  }

  /// W + scaling B A
  template <class W>
  void add_lora(std::vector<W>& weight, const Shape& shape, const Lora& lora) const {
    using Rows = Eigen::Matrix<W, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    std::vector<W> a(count_of(lora.a.shape)), b(count_of(lora.b.shape));
    decode(lora.a, a.data()), decode(lora.b, b.data());
    const Eigen::Index rank = lora.a.rows(), in = shape[1], out = shape[0];
    Eigen::Map<Rows>(weight.data(), out, in).noalias() += static_cast<W>(options_.lora_scaling) *
                                                          Eigen::Map<const Rows>(b.data(), out, rank) *
                                                          Eigen::Map<const Rows>(a.data(), rank, in);
  }

  static bool is_base_lr(std::string_view name) { return name.ends_with(".ttt.base_lr"); }

  // --- finding ---

  Found find(const std::string& prefix, const std::string& name, const Shape& shape) const {
    auto found = find_in_adapter(name, shape);
    return found.pieces.empty() ? find_in_files(prefix, name, shape) : found;
  }
  Found find_in_files(const std::string& prefix, const std::string& name, const Shape& shape) const {
    for (const auto& spelling : spellings(form_, name)) {
      if (auto found = assembled(files_, prefix, spelling, shape); !found.pieces.empty()) return found;
    }
    return {};
  }
  Found find_in_adapter(const std::string& name, const Shape& shape) const {
    if (!adapter_) return {};
    for (const auto& spelling : spellings(NameForm::kyutai, name)) {
      if (auto found = assembled(*adapter_, "", spelling, shape); !found.pieces.empty()) return found;
    }
    return {};
  }

  /// No pieces if one of them is missing.
  static Found assembled(const TensorFiles& files, const std::string& prefix, const Spelling& spelling,
                         const Shape& shape) {
    Found found;
    for (const auto& ref : spelling) {
      if (ref.list) {
        const auto name = [&](std::size_t k) { return cat(prefix, ref.name, k, ".weight"); };
        for (std::size_t k = 0; files.contains(name(k)); ++k)
          add_below(found, piece_of(files, files.find(name(k)), {}, shape));
      } else if (const auto place = files.find(prefix + ref.name)) {
        add_below(found, piece_of(files, place, ref, shape));
      } else {
        return {};
      }
    }
    return found;
  }

  static TensorPiece piece_of(const TensorFiles& files, TensorPlace place, const TensorRef& ref,
                              const Shape& shape) {
    const TensorEntry& entry = *place.entry;
    TensorPiece piece{.file = place.file, .whole = &entry, .entry = entry, .shape = {}, .rotary = ref.rotary};
    find_coding(files, piece);
    if (ref.block) {
      take_block(piece, *ref.block, shape);
    } else {
      if (piece.whole_scales) piece.scales = *piece.whole_scales;
      if (piece.whole_biases) piece.biases = *piece.whole_biases;
    }
    piece.shape = piece.entry.shape;
    if (piece.coding == TensorPiece::Coding::packed_groups && !piece.shape.empty() && !shape.empty()) {
      const auto words = piece.shape.back(), columns = shape.back();
      for (const std::int64_t bits : {4, 8})
        if (words * 32 == columns * bits) piece.shape.back() = columns;
    }
    if (piece.coding == TensorPiece::Coding::int4 && !piece.shape.empty() && !shape.empty() &&
        piece.shape.back() == Int4::values(shape.back()))
      piece.shape.back() = shape.back();
    return piece;
  }

  static void find_coding(const TensorFiles& files, TensorPiece& piece) {
    const std::string& name = piece.whole->name;
    const std::string stem = name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name;
    const auto beside = [&](const std::string& other) {
      const auto place = files.find(other);
      return place.file == piece.file ? place.entry : nullptr;
    };
    if (piece.entry.blocks != Blocks::none) {
      piece.coding = TensorPiece::Coding::blocks;
    } else if (piece.entry.dtype == DType::I8) {
      piece.whole_scales = beside(name + "_scb");
      if (piece.whole_scales) piece.coding = TensorPiece::Coding::int8_rows;
      if (!piece.whole_scales && (piece.whole_scales = beside(name + ".scale")) != nullptr)
        piece.coding = TensorPiece::Coding::int8;
    } else if (piece.entry.dtype == DType::U8) {
      piece.whole_scales = beside(name + ".scale");
      if (piece.whole_scales) piece.coding = TensorPiece::Coding::int4;
    } else if (piece.entry.dtype == DType::U32) {
      piece.whole_scales = beside(stem + ".scales"), piece.whole_biases = beside(stem + ".biases");
      if (piece.whole_scales && piece.whole_biases) piece.coding = TensorPiece::Coding::packed_groups;
    }
  }

  /// Block k: of a leading axis, where the tensor has one more than the model's; else as many rows.
  static void take_block(TensorPiece& piece, std::size_t k, const Shape& shape) {
    auto& entry = piece.entry;
    const bool axis = entry.shape.size() == shape.size() + 1;
    if ((!axis && entry.shape.size() != shape.size()) || shape.empty() || shape[0] == 0) return;
    const std::int64_t total = entry.shape[0], blocks = axis ? total : total / shape[0];
    piece.first_row = axis ? 0 : static_cast<std::int64_t>(k) * shape[0];
    piece.fits =
        axis ? static_cast<std::int64_t>(k) < total : total % shape[0] == 0 && piece.first_row < total;
    if (!piece.fits) return;
    entry = rows_of(entry, k, blocks);
    if (axis) {
      if (blocks == 1) piece.fits = true;
      entry.shape.erase(entry.shape.begin());
    }
    for (auto [whole, part] :
         {std::pair{piece.whole_scales, &piece.scales}, {piece.whole_biases, &piece.biases}}) {
      if (whole == nullptr) continue;
      piece.fits = piece.fits && !whole->shape.empty() && whole->shape[0] % blocks == 0;
      if (piece.fits) *part = rows_of(*whole, k, blocks);
    }
  }

  static void add_below(Found& found, TensorPiece piece) {
    const bool first = found.pieces.empty();
    found.as += (first ? "" : " + ") + piece.whole->name;
    if (first) {
      found.shape = piece.shape;
    } else if (found.shape.size() == piece.shape.size() && !found.shape.empty() &&
               std::equal(found.shape.begin() + 1, found.shape.end(), piece.shape.begin() + 1)) {
      found.shape[0] += piece.shape[0];
    } else {
      found.shape.clear();  // parts of different widths fit nowhere
    }
    found.pieces.push_back(std::move(piece));
  }

  /// Where the model holds an adapter itself (nn/lora.hpp), its matrix takes none.
  void note_adapter(std::string_view name) {
    constexpr std::string_view end = "lora_A.weight";
    if (name.ends_with(end))
      kept_apart_.insert(std::string(name.substr(0, name.size() - end.size())) + "weight");
  }

  /// The adapter of a matrix, if it has one to be fused with. Stacked adapters are cut as the matrices are.
  std::optional<Lora> find_lora(const std::string& name, const Shape& shape) const {
    if (!adapter_ || shape.size() != 2 || kept_apart_.contains(name)) return {};
    for (const auto& spelling : spellings(NameForm::kyutai, name)) {
      const auto& ref = spelling.front();
      if (spelling.size() != 1 || ref.list || !ref.name.ends_with(".weight")) continue;
      const std::string stem = ref.name.substr(0, ref.name.size() - 7);
      const auto a = adapter_->find(stem + ".lora_A.weight"), b = adapter_->find(stem + ".lora_B.weight");
      if (!a && !b) continue;
      return Lora{half_of_lora(a, ref.block, b, shape), half_of_lora(b, ref.block, b, shape)};
    }
    return {};
  }
  static TensorPiece half_of_lora(TensorPlace half, std::optional<std::size_t> block, TensorPlace b,
                                  const Shape& shape) {
    TensorPiece piece{.file = half.file, .whole = half.entry, .entry = {}, .shape = {}};
    if (!half || !b) {
      piece.fits = false;
      return piece;
    }
    piece.entry = *half.entry;
    const std::int64_t rows = piece.rows(), stacked = b.entry->shape.empty() ? 0 : b.entry->shape[0];
    if (block && stacked != 0) {
      const std::int64_t blocks = stacked / shape[0];
      piece.fits =
          blocks > static_cast<std::int64_t>(*block) && stacked % shape[0] == 0 && rows % blocks == 0;
      if (piece.fits) piece.entry = rows_of(*half.entry, *block, blocks);
    }
    piece.shape = piece.entry.shape;
    return piece;
  }

  // --- checking ---

  template <class T>
  void check_one(const std::string& prefix, const std::string& name, const Shape& shape) {
    const std::string full = prefix + name;
    const Found found = find(prefix, name, shape);
    if (found.pieces.empty()) {
      const bool known = options_.base_lr && is_base_lr(name);
      if (!known && (!options_.may_be_missing || !options_.may_be_missing(full)))
        problems_.add("missing tensor ", quote(full), other_name(prefix, name), " of shape ",
                      shape_text(shape));
      return;
    }
    bool fits = true;
    std::size_t count = 0;
    for (const auto& piece : found.pieces) {
      use(piece);
      count += count_of(piece.shape);
      fits = fits && piece.fits;
    }
    if (!find_in_adapter(name, shape).pieces.empty()) {  // what it stands in for has a place too
      for (const auto& piece : find_in_files(prefix, name, shape).pieces) use(piece);
    }
    if (!fits || !same_shape(found.shape, shape) || count != count_of(shape)) {
      const auto first_row = found.pieces[0].first_row;
      problems_.add("misshapen tensor ", quote(full), ": found ", shape_text(found.shape),
                    found.as == full ? "" : " in " + quote(found.as), ", expected ", shape_text(shape),
                    first_row > 0 ? cat(" from row ", first_row, " on") : "");
      return;
    }
    for (const auto& piece : found.pieces) check_piece<T>(piece);
    if (const auto lora = find_lora(name, shape)) check_lora<T>(full, shape, *lora);
  }

  void use(const TensorPiece& piece) {
    used_[piece.whole] += piece.entry.count();
    if (piece.whole_scales) used_[piece.whole_scales] += piece.scales.count();
    if (piece.whole_biases) used_[piece.whole_biases] += piece.biases.count();
  }

  /// How the file's form would call it.
  std::string other_name(const std::string& prefix, const std::string& name) const {
    const auto all = spellings(form_, name);
    const std::string other = prefix + all.front().front().name;
    return other == prefix + name ? "" : cat(" (", quote(other), ")");
  }

  template <class T>
  void check_piece(const TensorPiece& piece) {
    const std::string where = "tensor " + quote(piece.whole->name);
    if (piece.rotary &&
        (options_.head_dim < 2 || options_.head_dim % 2 != 0 || piece.rows() % options_.head_dim != 0)) {
      problems_.add(where, ": found ", piece.rows(), " rows in rotary halves, expected heads of ",
                    options_.head_dim, " rows (LoadOptions::head_dim)");
    }
    if (piece.coding == TensorPiece::Coding::plain) return check_values<T>(*piece.file, piece.entry);
    if (!FloatNumber<T>)
      return problems_.add(where, ": found numbers in 8 bits, expected ", dtype_name(dtype_of<T>()));
    if (piece.coding == TensorPiece::Coding::blocks) {
      if (!read_values_ || !options_.check_finite) return;
      value_bytes_ += piece.entry.bytes;
      values_.push_back([piece] { return bad_block(piece); });
      return;
    }
    using Coding = TensorPiece::Coding;
    const bool rows = piece.coding == Coding::int8_rows || piece.coding == Coding::int8;
    const bool biased = piece.coding == Coding::packed_groups;
    const auto width =
        piece.shape.size() < 2 ? 1 : static_cast<std::int64_t>(count_of(piece.shape)) / piece.rows();
    const auto per_row =
        rows     ? 1
        : biased ? static_cast<std::int64_t>(piece.scales.count()) / std::max<std::int64_t>(1, piece.rows())
                 : static_cast<std::int64_t>(Int4::scales(width));
    const bool good = per_row > 0 && (!biased || width % per_row == 0) &&
                      static_cast<std::int64_t>(piece.scales.count()) == per_row * piece.rows() &&
                      (!biased || piece.scales.shape == piece.biases.shape);
    if (!good) {
      problems_.add(where, ": found scales of shape ", shape_text(piece.whole_scales->shape), ", expected ",
                    rows     ? "one a row"
                    : biased ? "one for each group of a row, and as many biases"
                             : "one for every 32 of a row");
      return;
    }
    check_values<float>(*piece.file, piece.scales);
    if (biased) check_values<float>(*piece.file, piece.biases);
  }

  template <class T>
  void check_lora(const std::string& name, const Shape& shape, const Lora& lora) {
    for (const auto* half : {&lora.a, &lora.b}) {
      if (half->whole) used_[half->whole] += half->entry.count();
    }
    const Shape &a = lora.a.shape, &b = lora.b.shape;
    const auto text = [](const TensorPiece& half) {
      return half.whole ? shape_text(half.shape.empty() ? half.whole->shape : half.shape)
                        : std::string("nothing");
    };
    const bool fits = lora.a.fits && lora.b.fits && a.size() == 2 && b.size() == 2 && a[0] == b[1] &&
                      a[1] == shape[1] && b[0] == shape[0];
    const std::string rank = options_.lora_rank > 0 ? std::to_string(options_.lora_rank) : "rank";
    if (!fits || (options_.lora_rank > 0 && a[0] != options_.lora_rank)) {
      problems_.add("adapter of ", quote(name), ": found lora_A ", text(lora.a), " and lora_B ", text(lora.b),
                    ", expected [", rank, ", ", shape[1], "] and [", shape[0], ", ", rank, "]");
      return;
    }
    check_values<T>(*lora.a.file, lora.a.entry);
    check_values<T>(*lora.b.file, lora.b.entry);
  }

  void finish_one(const TensorEntry& entry, const std::string& prefix, const std::string& where) {
    const auto used = used_.find(&entry);
    if (used != used_.end()) {
      if (used->second < entry.count())
        problems_.add("tensor ", quote(entry.name), " of shape ", shape_text(entry.shape), where, ": only ",
                      used->second, " of ", entry.count(), " elements have a place in the model");
    } else if (!is_repeated_name(std::string_view(entry.name).substr(prefix.size())) &&
               (!options_.ignore_extra || !options_.ignore_extra(entry.name))) {
      problems_.add("extra tensor ", quote(entry.name), " of shape ", shape_text(entry.shape), where);
    }
  }

  template <class T>
  void check_values(const TensorFile& file, const TensorEntry& piece) {
    if (is_float(piece.dtype) != FloatNumber<T>) {
      problems_.add("mistyped tensor ", quote(piece.name), ": found ", dtype_name(piece.dtype), ", expected ",
                    dtype_name(dtype_of<T>()), " or a type that converts to it");
      return;
    }
    if (!read_values_) return;
    value_bytes_ += piece.bytes;
    values_.push_back([this, &file, piece] { return bad_value<T>(file, piece); });
  }

  static std::string bad_block(const TensorPiece& piece) {
    std::string problem;
    for_each_block(piece, [&](std::size_t i, const std::uint8_t* block) {
      if (finite_block(piece.entry.blocks, block)) return true;
      problem = cat("tensor ", quote(piece.entry.name), ": found a scale of ", half_at(block), " at block ",
                    i, ", expected finite numbers");
      return false;
    });
    return problem;
  }
  /// What is wrong with the numbers of a piece; empty if nothing is.
  template <class T>
  std::string bad_value(const TensorFile& file, const TensorEntry& piece) const {
    std::string problem;
    with_storage_type(piece.dtype, [&](auto zero) {
      using Stored = decltype(zero);
      using Value = decltype(widen(zero));
      file.template find_stored<Stored>(
          piece,
          [&](Value value) {
            bool good = representable<T>(value);
            if constexpr (std::is_floating_point_v<Value>)
              good = good && (std::isfinite(value) || !options_.check_finite);
            return !good;
          },
          [&](std::size_t i, Value value) {
            problem =
                cat("tensor ", quote(piece.name), ": found ", +value, " at index ",
                    index_text(piece.shape, i), ", expected ", dtype_name(dtype_of<T>()), " and finite");
          });
    });
    return problem;
  }
  void look_at_values() {
    std::vector<std::string> problems(values_.size());
    in_parallel(values_.size(), value_bytes_, [&](std::size_t i) { problems[i] = values_[i](); });
    for (const auto& problem : problems) {
      if (!problem.empty()) problems_.add(problem);
    }
    values_.clear(), value_bytes_ = 0;
  }

  static std::string index_text(const Shape& shape, std::size_t i) {
    Shape index(shape.size());
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      index[axis] = static_cast<std::int64_t>(i % static_cast<std::size_t>(shape[axis]));
      i /= static_cast<std::size_t>(shape[axis]);
    }
    return shape_text(index);
  }

  const TensorFiles& files_;
  const LoadOptions& options_;
  std::unique_ptr<TensorFiles> adapter_;
  NameForm form_;
  bool read_values_;
  std::set<std::string> kept_apart_;                          // matrices whose adapters are the model's own
  std::unordered_map<const TensorEntry*, std::size_t> used_;  // elements
  std::vector<std::function<std::string()>> values_;          // each looks at the numbers of one piece
  std::uint64_t value_bytes_ = 0;
  Problems problems_;
};

}  // namespace detail
}  // namespace mttt
