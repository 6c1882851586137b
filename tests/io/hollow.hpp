// Files of the full size of the published models that take no room, for no number in them was ever written.
#pragma once

#include "mttt/io/published.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"
#include "scratch.hpp"

using namespace mttt;
using mttt::test::contains;

struct Tensor7b {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes() const {
    std::uint64_t n = *dtype_from_name(dtype) == DType::BF16 ? 2 : dtype == "I8" ? 1 : 4;
    for (const auto extent : shape) n *= static_cast<std::uint64_t>(extent);
    return n;
  }
};
using List = std::vector<Tensor7b>;

inline List published(const std::string& file, const std::string& dtype) {
  List list;
  for (const auto& entry : nlohmann::json::parse(content_of(MTTT_TEST_DATA "/" + file)))
    list.push_back({entry[0], dtype, entry[1]});
  return list;
}

/// A header, and then a hole.
inline void write_hollow(const std::filesystem::path& path, const List& list) {
  nlohmann::json header;
  std::uint64_t at = 0;
  for (const auto& tensor : list) {
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {at, at + tensor.bytes()}}};
    at += tensor.bytes();
  }
  const std::string text = header.dump();
  const std::uint64_t size = text.size();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(&size), sizeof size)
      .write(text.data(), static_cast<std::streamsize>(size));
  std::filesystem::resize_file(path, 8 + size + at);
}

/// The repository of a published model.
struct Repository {
  Scratch folder;
  Repository() {
    write_hollow(folder / "tokenizer-e351c8d8-checkpoint125.safetensors",
                 published("mimi_tensors.json", "F32"));
    folder.put("config.json", R"({
      "moshi_name": "model.safetensors", "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
      "tokenizer_name": "tokenizer_spm_32k_3.model", "quantize": false, "dim": 4096, "text_card": 32000,
      "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 2048, "num_heads": 32, "num_layers": 32,
      "hidden_scale": 4.125, "causal": true, "layer_scale": null, "context": 3000, "max_period": 10000.0,
      "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope", "depformer_dim": 1024,
      "depformer_dim_feedforward": 4224, "depformer_num_heads": 16, "depformer_num_layers": 6,
      "depformer_layer_scale": null, "depformer_multi_linear": true, "depformer_context": 8,
      "depformer_max_period": 10000.0, "depformer_gating": "silu", "depformer_pos_emb": "none",
      "depformer_weights_per_step": true, "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]})");
  }
};
