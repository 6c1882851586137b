// Published models: finds the files of one in its folder and loads them.
//
//   const ModelFiles files = find_model("moshiko-pytorch-bf16");        // or with a folder of adapters
//   load_moshi<presets::moshi_7b>(files, be, params);
//   load_mimi<presets::mimi_24khz>(files, be, codec);
//   const auto tokenizer = TextTokenizer::load(files.tokenizer);
//
// A folder is what a repository of the model holds: config.json (it may be absent, then the names are those
//                                                   below),
// the weights, Mimi, the sentencepiece model. A folder of adapters is what a fine-tuning program leaves:
// lora.safetensors beside its config.json, and training_config.json of the earlier TTT attempt.
//
// Formula, shapes: see io/matcher.hpp.
// Units:   none.
// Errors:  a folder without config.json and weights; files that config.json names and that are not there; a
//          config that does not match the preset; what load_params refuses.
// Not supported: downloads: "hf://owner/name/FILE" is looked for in the folder under the name FILE.
// Source:  kyutai-labs/moshi models/loaders.py `CheckpointInfo.from_hf_repo`; kyutai-labs/moshi-finetune
//          finetune/checkpointing.py.
#pragma once

#include "mttt/codec/mimi.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/published_config.hpp"

namespace mttt {

struct ModelFiles {
  std::filesystem::path moshi, mimi, tokenizer;  // `tokenizer` is empty where there is none
  std::string moshi_prefix, mimi_prefix;         // of their names, where one file may hold both models
  std::filesystem::path config_file;             // empty where there is none
  nlohmann::json config;
  std::filesystem::path adapter;  // empty: none
  Index lora_rank = 0;
  double lora_scaling = 2;
  std::optional<double> base_lr;  // of TTT layers, from training_config.json
};

/// TTT layers and their gates: what a model has beside those that were published.
inline bool is_ttt_name(std::string_view name) {
  return name.find(".ttt.") != name.npos || name.ends_with("gating_alpha");
}

namespace detail {

inline nlohmann::json read_json(const std::filesystem::path& path) {
  auto json = parse_json(WholeFile(path).text());
  if (!json.is_object()) fail(path.string(), "no JSON object", "a JSON object", "fetch the file again");
  return json;
}

/// What config.json calls `key`, in the folder; empty if it is absent and may be.
inline std::filesystem::path model_file(const std::filesystem::path& folder, const nlohmann::json& config,
                                        const char* key, const char* usual, bool needed) {
  std::string name = usual;
  if (config.contains(key) && config[key].is_string()) name = config[key].get<std::string>();
  const bool elsewhere = name.starts_with("hf://");
  const std::string local = elsewhere ? std::filesystem::path(name).filename().string() : name;
  if (!leads_below(local)) {
    fail(folder.string() + ", config.json", cat("'", key, "': ", quote(name)), "a file of that folder",
         "fetch the file again");
  }
  std::filesystem::path path = folder / local;
  std::error_code ignored;  // what cannot be looked at cannot be opened either, which says why
  if (std::filesystem::exists(path, ignored)) return path;
  if (!needed) return {};
  fail(path.string(), "no such file", cat("the file that '", key, "' names: ", quote(name)),
       elsewhere ? "fetch it from the repository of that name, and put it into this folder"
                 : "fetch all files of the repository");
}

/// What weights are called where no config.json says so.
inline std::string usual_weights(const std::filesystem::path& folder) {
  std::error_code ignored;
  for (const char* name :
       {"model.safetensors.index.json", "model.safetensors", "model.q8.gguf", "model.gguf"})
    if (std::filesystem::exists(folder / name, ignored)) return name;
  std::set<std::string> others;  // "model.safetensors.q4_k.gguf"
  for (std::filesystem::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    const auto name = it->path().filename().string();
    if (name.ends_with(".gguf") && name.starts_with("model")) others.insert(name);
  }
  return others.empty() ? "model.safetensors" : *others.begin();
}

/// moshi.cpp writes the models that it converts with "lm." before all names.
inline bool is_of_ggml(const std::filesystem::path& weights) {
  return weights.extension() == ".gguf" && GgufFile(weights).find("lm.text_emb.weight") != nullptr;
}

/// A number of config.json, not negative; nothing where it is absent or null.
inline std::optional<double> model_number(const nlohmann::json& config, const char* key,
                                          std::string_view subject) {
  if (!config.contains(key) || config[key].is_null()) return std::nullopt;
  const double number = config[key].is_number() ? config[key].get<double>() : -1;
  if (number >= 0 && number < 1e9) return number;
  fail(subject, cat("'", key, "': ", quote(config[key].dump())), "a number, 0 or more",
       "fetch the file again");
}

}  // namespace detail

/// Notes a file of adapters, or the folder with lora.safetensors, and what its config.json and
/// training_config.json say; without a name that of config.json, if there is one.
inline void add_adapter(ModelFiles& files, std::filesystem::path adapter) {
  auto config = files.config;
  std::error_code ignored;
  if (adapter.empty() && config.contains("lora_name") && config["lora_name"].is_string())
    adapter =
        detail::model_file(files.config_file.parent_path(), config, "lora_name", "lora.safetensors", true);
  if (std::filesystem::is_directory(adapter, ignored)) adapter /= "lora.safetensors";
  if (adapter.empty()) return;
  files.adapter = adapter;
  if (std::filesystem::exists(adapter.parent_path() / "config.json", ignored))
    config = detail::read_json(adapter.parent_path() / "config.json");
  const std::string subject = adapter.string() + ", its config.json";
  files.lora_rank = static_cast<Index>(detail::model_number(config, "lora_rank", subject).value_or(0));
  files.lora_scaling = detail::model_number(config, "lora_scaling", subject).value_or(2);
  if (std::filesystem::exists(adapter.parent_path() / "training_config.json", ignored)) {
    const auto training = detail::read_json(adapter.parent_path() / "training_config.json");
    const auto ttt = training.value("ttt", nlohmann::json::object());
    if (ttt.contains("base_lr") && ttt["base_lr"].is_number()) files.base_lr = ttt["base_lr"].get<double>();
  }
}

/// `adapter` is a file of adapters, or the folder with lora.safetensors. `mimi` is the codec's file, where it
/// is not that of the folder.
inline ModelFiles find_model(const std::filesystem::path& folder, std::filesystem::path adapter = {},
                             const std::filesystem::path& mimi = {}) {
  ModelFiles files;
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored))
    fail(folder.string(), std::filesystem::exists(folder, ignored) ? "a file" : "nothing",
         "the folder of a model", "name the folder that holds config.json and model.safetensors");
  files.config = nlohmann::json::object();
  if (std::filesystem::exists(folder / "config.json", ignored)) {
    files.config_file = folder / "config.json";
    files.config = detail::read_json(files.config_file);
  }
  const auto& config = files.config;
  if (config.contains("depth_decoder_config")) {  // transformers: one set of files for both models
    files.moshi = files.mimi = folder;
    files.mimi_prefix = "audio_encoder.";
    if (std::filesystem::is_directory(folder / "mimi"))  // later versions keep it apart
      files.mimi = folder / "mimi", files.mimi_prefix = {};
  } else {
    files.moshi =
        detail::model_file(folder, config, "moshi_name", detail::usual_weights(folder).c_str(), true);
    if (detail::is_of_ggml(files.moshi)) files.moshi_prefix = "lm.";
    if (mimi.empty())
      files.mimi = detail::model_file(folder, config, "mimi_name",
                                      "tokenizer-e351c8d8-checkpoint125.safetensors", true);
  }
  if (!mimi.empty()) files.mimi = mimi, files.mimi_prefix = {};
  files.tokenizer = detail::model_file(folder, config, "tokenizer_name", "tokenizer_spm_32k_3.model", false);

  add_adapter(files, std::move(adapter));
  return files;
}

namespace detail {

template <MoshiConfig C>
LoadOptions moshi_options(const ModelFiles& files, LoadOptions options) {
  if (!files.config_file.empty()) expect_published_config<C>(files.config_file.string(), files.config);
  options.head_dim = C.temporal.dim / C.temporal.num_heads;
  options.prefix = files.moshi_prefix;
  options.adapter = files.adapter;
  options.lora_rank = files.lora_rank;
  options.lora_scaling = files.lora_scaling;
  if (!options.base_lr) options.base_lr = files.base_lr;
  if (!files.mimi_prefix.empty()) {
    options.ignore_extra = [prefix = files.mimi_prefix, also = options.ignore_extra](std::string_view name) {
      return name.starts_with(prefix) || (also && also(name));
    };
  }
  return options;
}
template <MimiConfig C>
LoadOptions mimi_options(const ModelFiles& files, LoadOptions options) {
  options.head_dim = C.transformer.d_model / C.transformer.num_heads;
  options.prefix = files.mimi_prefix;
  return options;
}

}  // namespace detail

/// `options` may say what is extra or missing, TTT layers on top of a published model say (is_ttt_name); the
/// rest of it follows from the files.
template <MoshiConfig C, class P, class B>
void load_moshi(const ModelFiles& files, B& be, Store<P, B>& params, const LoadOptions& options = {}) {
  load_params(files.moshi, be, params, detail::moshi_options<C>(files, options));
}
template <MimiConfig C, class P, class B>
void load_mimi(const ModelFiles& files, B& be, Store<P, B>& params, const LoadOptions& options = {}) {
  load_params(files.mimi, be, params, detail::mimi_options<C>(files, options));
}

/// Says what loading would say, from config, names, shapes and types; reads no weights, takes no memory for
/// them.
template <MoshiConfig C>
void check_moshi(const ModelFiles& files, const LoadOptions& options = {}) {
  check_params<typename Moshi<C, Cpu<float>>::Params>(files.moshi, detail::moshi_options<C>(files, options));
}
template <MimiConfig C>
void check_mimi(const ModelFiles& files, const LoadOptions& options = {}) {
  check_params<typename Mimi<C, Cpu<float>>::Params>(files.mimi, detail::mimi_options<C>(files, options));
}

}  // namespace mttt
