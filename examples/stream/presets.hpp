// Which of the presets that are compiled a model needs: config.json of a published one says so, or the
// metadata of a checkpoint of ours.
#pragma once

#include <array>

#include "mttt/io/model_config.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/presets/moshi.hpp"
#include "mttt/presets/moshi_small.hpp"
#include "mttt/presets/tiny.hpp"
#include "options.hpp"

/// A way to store a model, and what streams it so.
struct Way {
  std::string_view dtype;
  int (*stream)(const Options&, const Model&) = nullptr;  // nullptr: not compiled
};

struct Preset {
  const char* name;
  mttt::detail::Problems (*published)(const nlohmann::json& config);
  nlohmann::json (*ours)();
  std::array<Way, 4> ways;  // the first is taken where the command line does not say
};

template <mttt::MoshiConfig C>
mttt::detail::Problems problems_of(const nlohmann::json& config) {
  auto problems = mttt::published_config_problems<C>(config);
  if (C.temporal.num_ttt_layers() > 0)
    problems.add("TTT layers: found no word of them, expected ", C.temporal.num_ttt_layers());
  return problems;
}

#ifdef MTTT_EXAMPLES_CUDA
#define MTTT_ON_CUDA(function) function
#else
#define MTTT_ON_CUDA(function) nullptr
#endif

#ifdef MTTT_EXAMPLES_CUDA
inline constexpr std::array ways_of_moshi_7b{Way{"bf16", stream_moshi_7b_half},
                                             Way{"int8", stream_moshi_7b_int8},
                                             Way{"int4", stream_moshi_7b_int4}, Way{"f32", stream_moshi_7b}};
#elif defined(MTTT_ALL_PRESETS)  // bf16 saves memory there, not time
inline constexpr std::array ways_of_moshi_7b{Way{"int8", stream_moshi_7b_int8},
                                             Way{"int4", stream_moshi_7b_int4},
                                             Way{"bf16", stream_moshi_7b_half}, Way{"f32", stream_moshi_7b}};
#else
inline constexpr std::array ways_of_moshi_7b{Way{"f32", stream_moshi_7b}, Way{}, Way{}, Way{}};
#endif

/// The first is that of a published model without config.json.
inline constexpr std::array presets{
    Preset{"moshi_7b", problems_of<mttt::presets::moshi_7b>,
           [] { return mttt::config_json<mttt::presets::moshi_7b>("moshi_7b"); }, ways_of_moshi_7b},
#ifdef MTTT_ALL_PRESETS
    Preset{"moshi_small",
           problems_of<mttt::presets::moshi_small>,
           [] { return mttt::config_json<mttt::presets::moshi_small>("moshi_small"); },
           {Way{"int8", stream_moshi_small_int8}, Way{"f32", stream_moshi_small}}},
#endif
    Preset{"tiny_without_ttt",
           problems_of<mttt::presets::tiny_without_ttt>,
           [] { return mttt::config_json<mttt::presets::tiny_without_ttt>("tiny_without_ttt"); },
           {Way{"f32", stream_tiny_without_ttt}, Way{"int8", stream_tiny_without_ttt_int8},
            Way{"bf16", MTTT_ON_CUDA(stream_tiny_without_ttt_bf16)}}},
    Preset{"tiny",
           problems_of<mttt::presets::tiny>,
           [] { return mttt::config_json<mttt::presets::tiny>("tiny"); },
           {Way{"f32", stream_tiny}, Way{"bf16", MTTT_ON_CUDA(stream_tiny_bf16)}}}};

#undef MTTT_ON_CUDA

/// The preset without problems; if each has some, those of the one that has fewest are told.
template <class Problems>
const Preset& fitting_preset(const std::string& subject, Problems&& problems) {
  const Preset* nearest = nullptr;
  mttt::detail::Problems fewest;
  std::string names;
  for (const auto& preset : presets) {
    auto found = problems(preset);
    if (found.count() == 0) return preset;
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
    if (nearest == nullptr || found.count() < fewest.count()) nearest = &preset, fewest = std::move(found);
  }
  fewest.stop(
      subject + ", for the preset " + nearest->name + ", which is nearest of " + names,
      "a model that one of the compiled presets fits",
      "write a preset of this model (include/mttt/presets/), a file beside examples/stream/moshi_7b.cpp "
      "and a line in examples/stream/presets.hpp");
  return *nearest;  // never reached
}

/// What the metadata of a checkpoint of ours say of its model; nothing where another program wrote it.
inline nlohmann::json config_of_ours(const mttt::TensorFile& file) {
  const auto found = file.metadata().find("config");
  if (found == file.metadata().end()) return nlohmann::json::value_t::discarded;
  return mttt::detail::parse_json(found->second);
}

/// The checkpoint of a run: model.safetensors of its end, else the newest of its steps.
inline std::filesystem::path checkpoint_in(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (std::filesystem::exists(folder / "model.safetensors", ignored)) return folder / "model.safetensors";
  if (const auto newest = mttt::RunFolder::newest_in(folder)) return *newest;
  return {};
}

inline Model find_our_model(const Options& options, const std::filesystem::path& checkpoint,
                            const nlohmann::json& config) {
  Model model;
  auto& files = model.files;
  files.moshi = checkpoint;
  files.mimi = options.codec;
  std::error_code ignored;
  const auto folder = checkpoint.parent_path();
  if (files.mimi.empty() && std::filesystem::exists(folder / "mimi.safetensors", ignored))
    files.mimi = folder / "mimi.safetensors";
  if (files.mimi.empty())
    mttt::fail(folder.string(), "no mimi.safetensors beside the checkpoint", "the weights of Mimi",
               "name them with --codec");
  if (std::filesystem::exists(folder / "tokenizer.model", ignored))
    files.tokenizer = folder / "tokenizer.model";
  mttt::add_adapter(files, options.adapter);
  model.preset = fitting_preset(checkpoint.string(), [&](const Preset& preset) {
                   return mttt::detail::config_problems(config, preset.ours());
                 }).name;
  return model;
}

/// --model is the folder of a published model, or of a run of the program train, or a checkpoint of one.
inline Model find_stream_model(const Options& options) {
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(options.model, ignored);
  const bool described = folder && std::filesystem::exists(options.model / "config.json", ignored);
  const auto checkpoint = folder ? checkpoint_in(options.model) : options.model;
  Model model;
  if (!described && !checkpoint.empty()) {
    const mttt::TensorFiles file(checkpoint);
    const auto config = config_of_ours(file.first());
    if (!config.is_discarded()) model = find_our_model(options, checkpoint, config);
    if (config.is_discarded() && !folder) {
      mttt::fail(checkpoint.string(), "a checkpoint without the metadata of the program train",
                 "a run's folder or checkpoint, or the folder of a published model",
                 "name the folder that holds it, with config.json, Mimi and the tokenizer");
    }
  }
  if (model.preset.empty()) {
    model.files = mttt::find_model(options.model, options.adapter, options.codec);
    model.preset = model.files.config_file.empty()
                       ? presets[0].name
                       : fitting_preset(model.files.config_file.string(), [&](const Preset& preset) {
                           return preset.published(model.files.config);
                         }).name;
  }
  if (!options.tokenizer.empty()) model.files.tokenizer = options.tokenizer;
  return model;
}

inline int stream_with_preset(const Options& options) {
  Model model = find_stream_model(options);
  if (options.without_ttt && model.preset == "tiny") model.preset = "tiny_without_ttt";
  for (const auto& preset : presets) {
    if (model.preset != preset.name) continue;
    std::string names;
    for (const auto& way : preset.ways) {
      if (way.stream == nullptr) continue;
      if (options.dtype == "auto" || options.dtype == way.dtype) return way.stream(options, model);
      names += (names.empty() ? "" : ", ") + std::string(way.dtype);
    }
    mttt::fail(model.preset, "--dtype " + options.dtype, "one that is compiled for it: " + names,
               "choose one");
  }
  mttt::fail("--model", model.preset, "a preset that is compiled");
}
