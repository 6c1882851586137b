// Checkpoints: parameters, training and streaming state to and from safetensors files.
//
// A tensor is stored under the name that for_each_tensor gives it, in its published shape: a tensor type with
// a member `published_permutation` (std::array<int, rank>; stored axis i is published axis perm[i]) is
// permuted on the way in and out. What is read may also be named and cut in these ways:
//   P.in_projs.K.weight    the K-th block of rows of P.in_proj_weight or P.in_proj.weight
//   P.out_projs.K.weight   the K-th block of rows of P.out_proj.weight
//   P.in_proj_weight, P.in_proj.weight, P.out_proj.weight   P.in_projs.0.weight, 1, ... one below the other
// Shapes:  equal up to leading extents of 1: (1, 1, C) is (C).
// Units:   none.
// Errors:  all missing, extra, misshapen, mistyped and non-finite tensors of a file in one message. A
//          load that finds any leaves parameters and state as they were. Where the disk fails or another
//          program shortens the file after all was found good, the Error leaves parameters partly loaded,
//          the state of a stream as it was. Files are replaced whole or not at all.
// Not supported: sharded files; quantised weights.
// Source:  kyutai-labs/moshi, modules/transformer.py, StreamingMultiheadAttention._load_hook.
#pragma once

#include <algorithm>
#include <charconv>
#include <functional>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/permuted_tensor.hpp"
#include "mttt/core/store.hpp"
#include "mttt/io/config.hpp"
#include "mttt/train/trainer.hpp"

namespace mttt {

struct LoadOptions {
  std::string prefix = {};                                    // of the names in the file
  nlohmann::json config = {};                                 // compared with the file's, where it has one
  bool check_finite = true;                                   // refuse NaN and infinity
  std::function<bool(std::string_view)> ignore_extra = {};    // names in the file: need no place in the model
  std::function<bool(std::string_view)> may_be_missing = {};  // names in the file: keep their value if absent
};

struct SaveOptions {
  std::optional<DType> dtype = {};  // F32, F16 or BF16; nothing: as in memory
  nlohmann::json config = {};
  SafetensorsMetadata metadata = {};
};

namespace detail {

using Shape = std::vector<std::int64_t>;

/// The shape under which a tensor is published, or in which it lies in memory.
template <class Tens>
Shape shape_of(const Tens& tensor, bool published = true) {
  if constexpr (Permuted<Tens>) {
    constexpr auto shape = Tens::published_shape();
    if (published) return Shape(shape.begin(), shape.end());
  }
  return Shape(tensor.extents().begin(), tensor.extents().end());
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

/// Reads a tensor into what the model holds.
template <class T>
void read_into(const SafetensorsFile& file, const TensorEntry& entry, T* out) {
  if constexpr (std::same_as<T, bf16>) {  // from floats of any width
    const auto values = file.read<float>(entry);
    std::transform(values.begin(), values.end(), out, [](float x) { return bf16(x); });
  } else {
    file.read(entry, out, entry.count());
  }
}

/// Finds the tensors of a model in a file and remembers what was used and what is wrong.
class Matcher {
 public:
  Matcher(const SafetensorsFile& file, const LoadOptions& options) : file_(file), options_(options) {}

  /// Looks at every tensor of `aggregate`, whose names in the file start with `prefix`.
  template <class P>
  void check(const P& aggregate, const std::string& prefix) {
    for_each_tensor(
        [&](std::string_view name, const auto& tensor) {
          using T = std::remove_const_t<typename std::remove_cvref_t<decltype(tensor)>::value_type>;
          check_one<T>(prefix + std::string(name), shape_of(tensor));
        },
        aggregate);
  }

  /// Raises one error with all problems; tensors under `prefix` that nobody asked for are problems too.
  void finish(const std::string& prefix) {
    for (const auto& entry : file_.tensors()) {
      if (!entry.name.starts_with(prefix)) continue;
      const auto used = used_.find(entry.name);
      if (used != used_.end()) {
        if (used->second < entry.count())
          problems_.add("tensor ", quote(entry.name), " of shape ", shape_text(entry.shape), ": only ",
                        used->second, " of ", entry.count(), " elements have a place in the model");
      } else if (!options_.ignore_extra || !options_.ignore_extra(entry.name)) {
        problems_.add("extra tensor ", quote(entry.name), " of shape ", shape_text(entry.shape));
      }
    }
    problems_.stop(file_.path(), "exactly the tensors of the model",
                   "compare the preset with the file, and its prefix");
  }

  /// Copies into a backend's memory; call after finish().
  template <class B, class P>
  void load(B& be, P& aggregate, const std::string& prefix) const {
    for_each_tensor(
        [&](std::string_view name, auto& tensor) {
          using Tens = std::remove_cvref_t<decltype(tensor)>;
          using T = typename Tens::value_type;
          const auto pieces = find(prefix + std::string(name), shape_of(tensor)).pieces;
          if (pieces.empty()) return;  // may be missing
          std::vector<T> values(static_cast<std::size_t>(tensor.size()));
          std::size_t at = 0;
          for (const auto& piece : pieces) {
            read_into(file_, piece, values.data() + at);
            at += piece.count();
          }
          if constexpr (Permuted<Tens>) {
            std::vector<T> stored(values.size());
            from_published(values.data(), Tens(stored.data(), tensor.extents()));
            values = std::move(stored);
          }
          be.to_device(values.data(), tensor.data(), tensor.size());
        },
        aggregate);
  }

 private:
  /// Where the values lie: whole tensors or blocks of rows, one after the other. No pieces: nowhere.
  struct Found {
    std::vector<TensorEntry> pieces;
    Shape shape;
    std::string as;              // the name of what was found, for messages
    std::int64_t first_row = 0;  // of a block of rows
    bool fits = true;            // false: the block lies outside
  };

  Found find(const std::string& name, const Shape& shape) const {
    if (const auto* entry = file_.find(name)) return {{*entry}, entry->shape, name};
    for (const auto& [list, fused] : {std::pair<std::string_view, std::array<std::string_view, 2>>{
                                          "in_projs.", {"in_proj_weight", "in_proj.weight"}},
                                      {"out_projs.", {"out_proj.weight", ""}}}) {
      if (const auto at = name.rfind(list); at != name.npos && (at == 0 || name[at - 1] == '.')) {
        const std::string_view rest = std::string_view(name).substr(at + list.size());
        std::size_t k = 0;
        const auto end = std::from_chars(rest.data(), rest.data() + rest.size(), k).ptr;
        if (std::string_view(end, rest.data() + rest.size()) != ".weight") continue;
        for (const auto alias : fused) {
          const auto* entry = alias.empty() ? nullptr : file_.find(name.substr(0, at).append(alias));
          if (entry != nullptr) return block_of(*entry, k, shape);
        }
      }
      for (const auto alias : fused) {
        if (alias.empty() || !name.ends_with(alias)) continue;
        const std::string parent = name.substr(0, name.size() - alias.size());
        if (!parent.empty() && !parent.ends_with('.')) continue;
        Found found;
        const auto part = [&, list = list](std::size_t k) {
          return file_.find(cat(parent, list, k, ".weight"));
        };
        for (std::size_t k = 0; part(k) != nullptr; ++k) add_below(found, *part(k));
        return found;
      }
    }
    return {};
  }

  static Found block_of(const TensorEntry& entry, std::size_t k, const Shape& shape) {
    Found found{{entry}, entry.shape, entry.name};
    if (entry.shape.size() != shape.size() || shape.empty() || shape[0] == 0) return found;
    const auto blocks = entry.shape[0] / shape[0];
    found.first_row = static_cast<std::int64_t>(k) * shape[0];
    found.fits = entry.shape[0] % shape[0] == 0 && found.first_row < entry.shape[0];
    if (!found.fits) return found;
    const std::uint64_t bytes = entry.bytes / static_cast<std::uint64_t>(blocks);
    found.shape[0] = found.pieces[0].shape[0] = shape[0];
    found.pieces[0].begin = entry.begin + k * bytes;
    found.pieces[0].bytes = bytes;
    return found;
  }

  static void add_below(Found& found, const TensorEntry& entry) {
    const bool first = found.pieces.empty();
    found.as += (first ? "" : " + ") + entry.name;
    found.pieces.push_back(entry);
    if (first) {
      found.shape = entry.shape;
    } else if (found.shape.size() == entry.shape.size() && !found.shape.empty() &&
               std::equal(found.shape.begin() + 1, found.shape.end(), entry.shape.begin() + 1)) {
      found.shape[0] += entry.shape[0];
    } else {
      found.shape.clear();  // parts of different widths fit nowhere
    }
  }

  template <class T>
  void check_one(const std::string& name, const Shape& shape) {
    const Found found = find(name, shape);
    if (found.pieces.empty()) {
      if (!options_.may_be_missing || !options_.may_be_missing(name))
        problems_.add("missing tensor ", quote(name), " of shape ", shape_text(shape));
      return;
    }
    std::size_t count = 0;
    for (const auto& piece : found.pieces) {
      used_[piece.name] += piece.count();
      count += piece.count();
    }
    std::size_t wanted = 1;
    for (const auto extent : shape) wanted *= static_cast<std::size_t>(extent);
    if (!found.fits || !same_shape(found.shape, shape) || count != wanted) {
      problems_.add("misshapen tensor ", quote(name), ": found ", shape_text(found.shape),
                    found.as == name ? "" : " in " + quote(found.as), ", expected ", shape_text(shape),
                    found.first_row > 0 ? cat(" from row ", found.first_row, " on") : "");
      return;
    }
    for (const auto& piece : found.pieces) check_values<T>(piece);
  }

  template <class T>
  void check_values(const TensorEntry& piece) {
    if (is_float(piece.dtype) != StorageType<T>) {
      problems_.add("mistyped tensor ", quote(piece.name), ": found ", dtype_name(piece.dtype), ", expected ",
                    dtype_name(dtype_of<T>()), " or a type that converts to it");
      return;
    }
    with_storage_type(piece.dtype, [&](auto zero) {
      using Stored = decltype(zero);
      file_.template for_each_stored<Stored>(piece, [&](std::size_t i, auto value) {
        bool good = representable<T>(value);
        if constexpr (std::is_floating_point_v<decltype(value)>)
          good = good && (std::isfinite(value) || !options_.check_finite);
        if (!good) {
          problems_.add("tensor ", quote(piece.name), ": found ", +value, " at index ",
                        index_text(piece.shape, i), ", expected ", dtype_name(dtype_of<T>()), " and finite");
        }
        return good;
      });
    });
  }

  static std::string index_text(const Shape& shape, std::size_t i) {
    Shape index(shape.size());
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      index[axis] = static_cast<std::int64_t>(i % static_cast<std::size_t>(shape[axis]));
      i /= static_cast<std::size_t>(shape[axis]);
    }
    return shape_text(index);
  }

  const SafetensorsFile& file_;
  const LoadOptions& options_;
  std::unordered_map<std::string, std::size_t> used_;  // elements, by name in the file
  Problems problems_;
};

/// Refuses finite values that `dtype` would round to infinity, which no load would take.
template <class T>
void check_rounded(const std::string& name, DType dtype, std::span<const T> values) {
  const double least = dtype == DType::F16 ? 65520 : dtype == DType::BF16 ? 0x1.ffp127 : 0x1.ffffffp127;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double value = static_cast<double>(values[i]);
    if (!std::isfinite(value) || std::abs(value) < least) continue;
    fail(cat("tensor ", quote(name)), cat(value, " at element ", i),
         cat("a value that ", dtype_name(dtype), " holds"), "save in a wider type");
  }
}

/// Adds the tensors of an aggregate to a writer; `kept` holds copies until the file is written.
template <class B, class P>
void add_tensors(B& be, SafetensorsWriter& writer, const P& aggregate, const std::string& prefix,
                 std::optional<DType> dtype, bool published, std::vector<std::vector<std::byte>>& kept) {
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        using Tens = std::remove_cvref_t<decltype(tensor)>;
        using T = std::remove_const_t<typename Tens::value_type>;
        const auto n = static_cast<std::size_t>(tensor.size());
        const auto room = [&]<class U>(U) {
          kept.emplace_back(n * sizeof(U));
          return std::span<U>(reinterpret_cast<U*>(kept.back().data()), n);
        };
        std::span<const T> values(tensor.data(), n);
        if constexpr (!std::same_as<typename B::Memory, CpuMemory>) {
          const auto host = room(T{});
          be.to_host(tensor.data(), host.data(), tensor.size());
          values = host;
        }
        if constexpr (Permuted<Tens>) {
          if (published) {
            const auto permuted = room(T{});
            to_published(Tens(const_cast<T*>(values.data()), tensor.extents()), permuted.data());
            values = permuted;
          }
        }
        const Shape shape = shape_of(tensor, published);
        const std::string full = prefix + std::string(name);
        if (!dtype || *dtype == dtype_of<T>() || !StorageType<T>) return writer.add(full, shape, values);
        check_rounded(full, *dtype, values);
        if constexpr (std::same_as<T, float>) {
          writer.add_rounded(full, *dtype, shape, values);
        } else {
          const auto narrow = room(float{});
          std::copy(values.begin(), values.end(), narrow.begin());
          writer.add_rounded(full, *dtype, shape, std::span<const float>(narrow));
        }
      },
      aggregate);
}

inline std::uint64_t number_in(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  std::uint64_t value = 0;
  const std::string text = found == file.metadata().end() ? "" : found->second;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end.ec != std::errc() || end.ptr != text.data() + text.size())
    fail(file.path(), cat("metadata '", key, "' = ", quote(text)), "a whole number",
         "choose a file that save_training wrote");
  return value;
}

}  // namespace detail

/// Fills `params` from a file of parameters (published or ours) or from a training checkpoint.
template <class P, class B>
void load_params(const std::filesystem::path& path, B& be, Store<P, B>& params,
                 const LoadOptions& options = {}) {
  const SafetensorsFile file(path);
  detail::expect_version(file);
  if (!options.config.is_null() && file.metadata().contains("config"))
    expect_config(file.path(), file.metadata(), options.config);
  const std::string prefix = detail::kind_of(file) == "training" ? "model." + options.prefix : options.prefix;
  detail::Matcher matcher(file, options);
  matcher.check(*params, prefix);
  matcher.finish(prefix);
  matcher.load(be, *params, prefix);
}

template <class P, class B>
void save_params(const std::filesystem::path& path, B& be, const Store<P, B>& params,
                 const SaveOptions& options = {}) {
  SafetensorsWriter writer;
  std::vector<std::vector<std::byte>> kept;
  for (const auto& [key, value] : options.metadata) writer.set_metadata(key, value);
  detail::set_kind(writer, "params", options.config);
  detail::add_tensors(be, writer, *params, "", options.dtype, true, kept);
  writer.write(path);
}

/// All that an exact resume needs. The options, the groups and the data are the program's to give again. In
/// mixed precision the weights are the float32 originals: a model in float32 can load them too.
template <class P, class B, class M>
void save_training(const std::filesystem::path& path, B& be, const Trainer<P, B, M>& trainer,
                   const nlohmann::json& config = {}) {
  SafetensorsWriter writer;
  std::vector<std::vector<std::byte>> kept;
  detail::set_kind(writer, "training", config);
  writer.set_metadata("step", std::to_string(trainer.adam.step));
  writer.set_metadata("rng_seed", std::to_string(trainer.rng.seed()));
  writer.set_metadata("rng_counter", std::to_string(trainer.rng.counter()));
  writer.set_metadata("micro_batches", std::to_string(trainer.micro_batches));
  detail::add_tensors(be, writer, *trainer.weights(), "model.", {}, true, kept);
  detail::add_tensors(be, writer, *trainer.adam.m, "adam.m.", {}, true, kept);
  detail::add_tensors(be, writer, *trainer.adam.v, "adam.v.", {}, true, kept);
  writer.write(path);
}

template <class P, class B, class M>
void load_training(const std::filesystem::path& path, B& be, Trainer<P, B, M>& trainer,
                   const nlohmann::json& config = {}) {
  const SafetensorsFile file(path);
  detail::expect_kind(file, "training");
  if (!config.is_null()) expect_config(file.path(), file.metadata(), config);
  const auto step = detail::number_in(file, "step"), seed = detail::number_in(file, "rng_seed"),
             counter = detail::number_in(file, "rng_counter"),
             micro_batches = detail::number_in(file, "micro_batches");
  const LoadOptions options;
  detail::Matcher matcher(file, options);
  matcher.check(*trainer.weights(), "model.");
  matcher.check(*trainer.adam.m, "adam.m.");
  matcher.check(*trainer.adam.v, "adam.v.");
  matcher.finish("");
  matcher.load(be, *trainer.weights(), "model.");
  trainer.weights_changed();
  matcher.load(be, *trainer.adam.m, "adam.m.");
  matcher.load(be, *trainer.adam.v, "adam.v.");
  trainer.adam.step = static_cast<std::int64_t>(step);
  trainer.rng = Rng(seed, counter);
  trainer.micro_batches = static_cast<std::int64_t>(micro_batches);
}

/// The State of a stream, to the bit. `config` should say which model it belongs to.
template <class S, class B>
void save_state(const std::filesystem::path& path, B& be, const Store<S, B>& state,
                const nlohmann::json& config = {}) {
  SafetensorsWriter writer;
  std::vector<std::vector<std::byte>> kept;
  detail::set_kind(writer, "state", config);
  detail::add_tensors(be, writer, *state, "", {}, false, kept);
  writer.write(path);
}

/// Refuses the state of another model, of another number of sessions or of another element type; and NaN and
/// infinity, with which a conversation would go on without a word that it is lost.
template <class S, class B>
void load_state(const std::filesystem::path& path, B& be, Store<S, B>& state,
                const nlohmann::json& config = {}, bool check_finite = true) {
  const SafetensorsFile file(path);
  detail::expect_kind(file, "state");
  if (!config.is_null()) expect_config(file.path(), file.metadata(), config);
  detail::Problems problems;
  std::size_t known = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        using T = typename std::remove_cvref_t<decltype(tensor)>::value_type;
        const detail::Shape shape = detail::shape_of(tensor, false);
        const auto* entry = file.find(name);
        known += entry != nullptr;
        if (entry == nullptr) {
          problems.add("missing tensor ", detail::quote(name), " of shape ", detail::shape_text(shape));
        } else if (entry->shape != shape || entry->dtype != dtype_of<T>()) {
          problems.add("tensor ", detail::quote(name), ": found ", dtype_name(entry->dtype), " ",
                       detail::shape_text(entry->shape), ", expected ", dtype_name(dtype_of<T>()), " ",
                       detail::shape_text(shape));
        }
      },
      *state);
  if (known < file.tensors().size()) problems.add(file.tensors().size() - known, " tensors of another model");
  problems.stop(file.path(), "the state of this model, for " + std::to_string(state.batch()) + " sessions",
                "load the state into the model and the batch that saved it");
  // All of it is read before any of it counts: conversations that go on must not see half a state.
  std::vector<std::vector<std::byte>> read;
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        using T = typename std::remove_cvref_t<decltype(tensor)>::value_type;
        read.emplace_back(static_cast<std::size_t>(tensor.size()) * sizeof(T));
        T* const values = reinterpret_cast<T*>(read.back().data());
        detail::read_into(file, file.at(name), values);
        if constexpr (StorageType<T>) {
          const T* const end = values + tensor.size();
          const T* const bad =
              std::find_if<const T*>(values, end, [](T x) { return !std::isfinite(wide(x)); });
          if (check_finite && bad != end) {
            fail(file.path(),
                 detail::cat("tensor ", detail::quote(name), ": ", wide(*bad), " at element ", bad - values),
                 "finite numbers", "start the conversation anew, or load an earlier state of it");
          }
        }
      },
      *state);
  auto next = read.begin();
  for_each_tensor(
      [&](std::string_view, auto& tensor) {
        using T = typename std::remove_cvref_t<decltype(tensor)>::value_type;
        be.to_device(reinterpret_cast<const T*>((next++)->data()), tensor.data(), tensor.size());
      },
      *state);
}

}  // namespace mttt
