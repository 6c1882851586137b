// Hostile folders of published models: config.json, the configuration of an adapter, the index of shards.
#include "mttt/io/published.hpp"
#include "fuzz.hpp"
#include "mttt/presets/moshi.hpp"

namespace {
using namespace mttt;

/// A model and an adapter, of a few bytes: only their names and what config.json says of them counts.
struct Folder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("mttt-fuzz-" + std::to_string(::getpid()));
  Folder() {
    std::filesystem::create_directories(path / "adapter");
    SafetensorsWriter writer;
    const float one = 1;
    writer.add("a", {1}, std::span(&one, 1));
    for (const char* name : {"model.safetensors", "mimi.safetensors", "adapter/lora.safetensors"})
      writer.write(path / name);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path); }
};
}  // namespace

void seeds(const std::filesystem::path& folder) {
  fuzz::put(folder / "kyutai", R"({"mimi_name": "mimi.safetensors", "moshi_name": "model.safetensors",
    "tokenizer_name": "hf://a/b/t.model", "lora_name": null, "lora_rank": 4, "lora_scaling": 2.0, "n_q": 16,
    "dim": 4096, "hidden_scale": 4.125, "depformer_dim_feedforward": [4224, 4224], "delays": [0, 0, 1],
    "gating": "silu", "causal": true, "quantize": false})");
  fuzz::put(folder / "transformers", R"({"depth_decoder_config": {"hidden_size": 1024}, "vocab_size": 32000,
    "rope_parameters": {"rope_theta": 10000}, "ffn_dim": 22528})");
  fuzz::put(folder / "training", R"({"ttt": {"base_lr": 1.5}, "mimi_name": "mimi.safetensors"})");
  fuzz::put(folder / "index", R"({"weight_map": {"a": "mimi.safetensors"}, "metadata": {"total_size": 4}})");
}

void try_file(const std::filesystem::path&, std::span<const std::byte> content) {
  static const Folder folder;
  const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
  for (const char* name :
       {"config.json", "adapter/config.json", "adapter/training_config.json", "x.index.json"})
    fuzz::put(folder.path / name, text);
  fuzz::accepted([&] {
    const ModelFiles files = find_model(folder.path);
    fuzz::accepted([&] { expect_published_config<presets::moshi_7b>("config.json", files.config); });
    TensorFiles(files.moshi).find("a");
  });
  fuzz::accepted([&] { TensorFiles(folder.path / "x.index.json").find("a"); });
  fuzz::put(folder.path / "config.json", R"({"mimi_name": "mimi.safetensors"})");
  fuzz::accepted([&] { find_model(folder.path, folder.path / "adapter"); });
}
