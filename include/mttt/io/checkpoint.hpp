// Checkpoints: parameters, training and streaming state to and from safetensors files.
//
// A tensor is stored under the name that for_each_tensor gives it, in its published shape: a tensor type with
// a member `published_permutation` (std::array<int, rank>; stored axis i is published axis perm[i]) is
// permuted on the way in and out. Weights in 8 and 4 bits (core/quantised.hpp) are two tensors, NAME and
// NAME.scale. What is read may also be named and cut as other programs do (io/published_names.hpp),
// quantised, in shards, or completed by an adapter (io/matcher.hpp). It is read
// tensor by tensor: beside the model itself, memory holds one tensor at a time.
// A training's files may leave out what it has not changed (adapters, save_weights): the base that it started
// from.
// Shapes:  equal up to leading extents of 1: (1, 1, C) is (C).
// Units:   none.
// Errors:  all missing, extra, misshapen, mistyped and non-finite tensors of a file in one message. A
//          load that finds any leaves parameters and state as they were. Where the disk fails or another
//          program shortens the file after all was found good, the Error leaves parameters partly loaded,
//          the state of a stream as it was. Files are replaced whole or not at all.
// Not supported: writing shards, and files of other programs' quantised weights.
// Source:  see io/matcher.hpp and io/published_names.hpp.
#pragma once

#include <algorithm>
#include <charconv>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/store.hpp"
#include "mttt/io/matcher.hpp"
#include "mttt/io/state_check.hpp"
#include "mttt/train/trainer.hpp"

namespace mttt {

/// The tensors, by name, that a file shall not have.
using LeaveOut = std::function<bool(std::string_view name)>;

struct SaveOptions {
  std::optional<DType> dtype = {};  // F32, F16 or BF16; nothing: as in memory
  nlohmann::json config = {};
  SafetensorsMetadata metadata = {};
};

namespace detail {

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

/// Adds a tensor to a writer; `kept` holds copies until the file is written.
template <class B, class Tens>
void add_tensor(B& be, SafetensorsWriter& writer, const Tens& tensor, const std::string& name,
                std::optional<DType> dtype, bool published, std::vector<std::vector<std::byte>>& kept) {
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
  if (!dtype || *dtype == dtype_of<T>() || !StorageType<T>) return writer.add(name, shape, values);
  check_rounded(name, *dtype, values);
  if constexpr (std::same_as<T, float>) {
    writer.add_rounded(name, *dtype, shape, values);
  } else {
    const auto narrow = room(float{});
    std::copy(values.begin(), values.end(), narrow.begin());
    writer.add_rounded(name, *dtype, shape, std::span<const float>(narrow));
  }
}

/// Adds the tensors of an aggregate; those of quantised weights as they are, whatever `dtype`.
template <class B, class P>
void add_tensors(B& be, SafetensorsWriter& writer, const P& aggregate, const std::string& prefix,
                 std::optional<DType> dtype, bool published, std::vector<std::vector<std::byte>>& kept) {
  for_each_parameter(
      [&](std::string_view name, const auto& parameter) {
        const std::string full = prefix + std::string(name);
        if constexpr (is_quantised<std::remove_cvref_t<decltype(parameter)>>) {
          add_tensor(be, writer, parameter.values, full, {}, published, kept);
          add_tensor(be, writer, parameter.scales, full + ".scale", {}, published, kept);
        } else if (!left_out(parameter)) {
          add_tensor(be, writer, parameter, full, dtype, published, kept);
        }
      },
      aggregate);
}

inline std::uint64_t number_in(const TensorFile& file, const char* key) {
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
  const TensorFiles files(path);
  const TensorFile& file = files.first();
  detail::expect_version(file);
  if (!options.config.is_null() && file.metadata().contains("config"))
    expect_config(file.path(), file.metadata(), options.config);
  const std::string prefix = detail::kind_of(file) == "training" ? "model." + options.prefix : options.prefix;
  detail::Matcher matcher(files, options);
  matcher.check(*params, prefix);
  matcher.finish(prefix);
  matcher.load(be, *params, prefix);
}

/// Says what load_params would say, from the names, shapes and types alone: no weight is read, no memory
/// taken. Params are those of a model whose shapes are all static, like Moshi<presets::moshi_7b, B>::Params.
template <class Params>
void check_params(const std::filesystem::path& path, const LoadOptions& options = {}) {
  const TensorFiles files(path);
  detail::expect_version(files.first());
  if (!options.config.is_null() && files.first().metadata().contains("config"))
    expect_config(files.path(), files.first().metadata(), options.config);
  const bool training = detail::kind_of(files.first()) == "training";
  const std::string prefix = training ? "model." + options.prefix : options.prefix;
  detail::Matcher matcher(files, options, false);
  matcher.check(*std::make_unique<Params>(), prefix);  // on the heap: thousands of tensors
  matcher.finish(prefix);
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

namespace detail {
/// All of a store that ranks share out, in elements of such a size, in the host's memory of the first.
template <class M, class B, class R>
std::optional<Store<M, Cpu<float>>> gathered(B& be, const Store<M, B>& own, const R& ranks, RankParts shares,
                                             std::size_t element) {
  std::vector<std::byte> mine(static_cast<std::size_t>(own.last() - own.first()));
  be.to_host(own.data() + own.first(), mine.data(), own.last() - own.first());
  Cpu<float> host;
  std::optional<Store<M, Cpu<float>>> all;
  if (ranks.rank() == 0) all.emplace(host, 1, own.held());
  const auto each = static_cast<Index>(element);
  for (RankPart& part : shares) part.from *= each, part.count *= each;
  ranks.gather(mine.data(), all ? all->data() : nullptr, shares);
  return all;
}

/// The weights of a training, as far as ranks share them out, in the host's memory of the first.
template <class P, class M>
struct GatheredWeights {
  std::optional<Store<M, Cpu<float>>> trained;
  std::optional<Store<P, Cpu<float>>> read;
};
/// weights() or a moment.
template <class B, class P, class M, class R>
std::optional<Store<M, Cpu<float>>> gathered(B& be, const Trainer<P, B, M, R>& trainer,
                                             const Store<M, B>& own, const RankParts& shares) {
  if (trainer.has_whole(own)) return {};
  return gathered(be, own, trainer.ranks(), shares, sizeof(typename B::Accum));
}
/// What the model reads, if something does not train, which in mixed precision is there alone.
template <class B, class P, class M, class R>
std::optional<Store<P, Cpu<float>>> gathered_frozen(B& be, const Trainer<P, B, M, R>& trainer) {
  const auto& held = trainer.grad.held();
  const bool frozen = std::find(held.begin(), held.end(), false) != held.end();
  if (!Trainer<P, B, M, R>::mixed || !frozen || trainer.params.whole()) return {};
  return gathered(be, trainer.params, trainer.ranks(), trainer.param_shares(), sizeof(typename B::Scalar));
}
template <class B, class P, class M, class R>
GatheredWeights<P, M> gathered_weights(B& be, const Trainer<P, B, M, R>& trainer) {
  return {gathered(be, trainer, trainer.weights(), trainer.weight_shares()), gathered_frozen(be, trainer)};
}

/// Adds the weights of a training as they are trained, those that do not train as the model reads them.
/// Returns how many were left out.
template <class B, class P, class M, class R>
std::size_t add_weights(B& be, SafetensorsWriter& writer, const Trainer<P, B, M, R>& trainer,
                        const GatheredWeights<P, M>& whole, const std::string& prefix,
                        std::optional<DType> dtype, const LeaveOut& leave_out,
                        std::vector<std::vector<std::byte>>& kept) {
  std::size_t absent = 0;
  Cpu<float> host;
  for_each_tensor(
      [&](std::string_view name, const auto& read, const auto& trained) {
        const std::string full = prefix + std::string(name);
        if (leave_out && leave_out(name)) {
          ++absent;
        } else if (left_out(trained)) {
          whole.read ? add_tensor(host, writer, read, full, dtype, true, kept)
                     : add_tensor(be, writer, read, full, dtype, true, kept);
        } else {
          whole.trained ? add_tensor(host, writer, trained, full, dtype, true, kept)
                        : add_tensor(be, writer, trained, full, dtype, true, kept);
        }
      },
      whole.read ? **whole.read : *trainer.params, whole.trained ? **whole.trained : *trainer.weights());
  return absent;
}
}  // namespace detail

/// For files that hold what a training has made alone: of the base, those tensors that do not train.
template <class P, class B, class M, class R>
LeaveOut frozen_base(const Trainer<P, B, M, R>& trainer, const LeaveOut& is_base) {
  std::set<std::string, std::less<>> frozen;
  std::size_t number = 0;
  for_each_tensor(
      [&](std::string_view name, const auto&) {
        if (trainer.groups[number++].frozen && is_base(name)) frozen.emplace(name);
      },
      *trainer.params);
  return [frozen](std::string_view name) { return frozen.contains(name); };
}

/// The weights of a training, in mixed precision the float32 originals where there are such. Without the
/// frozen_base they are adapters, which LoadOptions::adapter puts onto that base again. All ranks call it;
/// the first one writes.
template <class P, class B, class M, class R>
void save_weights(const std::filesystem::path& path, B& be, const Trainer<P, B, M, R>& trainer,
                  const SaveOptions& options = {}, const LeaveOut& leave_out = {}) {
  const auto weights = detail::gathered_weights(be, trainer);
  if (trainer.ranks().rank() != 0) return;
  SafetensorsWriter writer;
  std::vector<std::vector<std::byte>> kept;
  for (const auto& [key, value] : options.metadata) writer.set_metadata(key, value);
  detail::set_kind(writer, "params", options.config);
  detail::add_weights(be, writer, trainer, weights, "", options.dtype, leave_out, kept);
  writer.write(path);
}

/// Fills all weights of a training: those that the model reads and, in mixed precision, their originals.
template <class P, class B, class M, class R>
void load_weights(const std::filesystem::path& path, B& be, Trainer<P, B, M, R>& trainer,
                  const LoadOptions& options = {}) {
  load_params(path, be, trainer.whole_params(), options);
  if constexpr (Trainer<P, B, M, R>::mixed) {
    auto& all = trainer.room_for(trainer.weights());
    load_params(path, be, all, options);
    trainer.take(all, trainer.weights());
  }
  trainer.weights_changed();
}

/// All that an exact resume needs. The options, the groups and the data are the program's to give again, and
/// the frozen_base too, if that is what the file leaves out. In mixed precision the weights are the float32
/// originals: a model in float32 can load them too. All ranks call it; the first one writes one file, from
/// which any number of ranks goes on.
template <class P, class B, class M, class R>
void save_training(const std::filesystem::path& path, B& be, const Trainer<P, B, M, R>& trainer,
                   const nlohmann::json& config = {}, const LeaveOut& leave_out = {}) {
  const auto weights = detail::gathered_weights(be, trainer);
  const auto m = detail::gathered(be, trainer, trainer.adam.m, trainer.moment_shares()),
             v = detail::gathered(be, trainer, trainer.adam.v, trainer.moment_shares());
  if (trainer.ranks().rank() != 0) return;
  SafetensorsWriter writer;
  std::vector<std::vector<std::byte>> kept;
  detail::set_kind(writer, "training", config);
  writer.set_metadata("step", std::to_string(trainer.adam.step));
  writer.set_metadata("rng_seed", std::to_string(trainer.rng.seed()));
  writer.set_metadata("rng_counter", std::to_string(trainer.rng.counter()));
  writer.set_metadata("micro_batches", std::to_string(trainer.micro_batches));
  const auto base = detail::add_weights(be, writer, trainer, weights, "model.", {}, leave_out, kept);
  if (base > 0) writer.set_metadata("base", std::to_string(base) + " tensors elsewhere");
  const auto add = [&](const auto& whole, const auto& own, const char* prefix) {
    Cpu<float> host;
    whole ? detail::add_tensors(host, writer, **whole, prefix, {}, true, kept)
          : detail::add_tensors(be, writer, *own, prefix, {}, true, kept);
  };
  add(m, trainer.adam.m, "adam.m.");
  add(v, trainer.adam.v, "adam.v.");
  writer.write(path);
}

/// What does not train need not be there: its moments, and its weights where the file says so.
template <class P, class B, class M, class R>
void load_training(const std::filesystem::path& path, B& be, Trainer<P, B, M, R>& trainer,
                   const nlohmann::json& config = {}) {
  const TensorFiles files(path);
  const TensorFile& file = files.first();
  detail::expect_kind(file, "training");
  if (!config.is_null()) expect_config(file.path(), file.metadata(), config);
  const auto step = detail::number_in(file, "step"), seed = detail::number_in(file, "rng_seed"),
             counter = detail::number_in(file, "rng_counter"),
             micro_batches = detail::number_in(file, "micro_batches");
  LoadOptions options;
  options.may_be_missing = [frozen = frozen_base(trainer, [](std::string_view) { return true; }),
                            whole = !file.metadata().contains("base")](std::string_view name) {
    const bool weight = name.starts_with("model.");
    return !(weight && whole) && frozen(name.substr(weight ? 6 : 7));
  };
  detail::Matcher matcher(files, options);
  matcher.check(*trainer.weights(), "model.");
  matcher.check(*trainer.adam.m, "adam.m.");
  matcher.check(*trainer.adam.v, "adam.v.");
  matcher.finish("");
  trainer.whole_params();
  const auto load = [&](auto& own, const char* prefix) {
    auto& all = trainer.room_for(own);
    matcher.load(be, *all, prefix);
    trainer.take(all, own);
  };
  if constexpr (Trainer<P, B, M, R>::mixed) matcher.load(be, *trainer.params, "model.");
  load(trainer.weights(), "model.");
  trainer.weights_changed();
  load(trainer.adam.m, "adam.m.");
  load(trainer.adam.v, "adam.v.");
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
/// infinity, with which a conversation would go on without a word that it is lost; and positions and codes
/// that no conversation reaches (io/state_check.hpp).
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
  detail::check_state(file.path(), *state, read);
  auto next = read.begin();
  for_each_tensor(
      [&](std::string_view, auto& tensor) {
        using T = typename std::remove_cvref_t<decltype(tensor)>::value_type;
        be.to_device(reinterpret_cast<const T*>((next++)->data()), tensor.data(), tensor.size());
      },
      *state);
}

}  // namespace mttt
