// Hostile YAML: the configuration of a training, and what presets say to it.
#include "fuzz.hpp"
#include "mttt/io/yaml_config.hpp"
#include "mttt/presets/moshi.hpp"
#include "mttt/presets/tiny.hpp"

using namespace mttt;

void seeds(const std::filesystem::path& folder) {
  fuzz::put(folder / "lora", R"(data:
  train_data: 'a.jsonl:0.5,b:2'
  shuffle: true
moshi_paths: {hf_repo_id: "kyutai/moshiko-pytorch-bf16"}
full_finetuning: false
lora: {enable: true, rank: 128, scaling: 2., ft_embed: false}
first_codebook_weight_multiplier: 100.
optim:
  lr: 2e-6
  weight_decay: .1
seed: 0
wandb: {project: null}
)");
  fuzz::put(folder / "ttt", R"(# stages and placement
data: {stages: [{first_step: 10, duration_sec: 5}, {first_step: 20, duration_sec: 9.5}]}
ttt:
  enable: true
  layers: [24, 25, 31]
  ttt_mlp_layers: 3
  ttt_mlp_hidden_dims: [256, 0x100]
  gating: "fix\u0065d"
full_finetuning: &yes true
save_adapters: false
seed: 7
run_dir: |
  a
  b
)");
  fuzz::put(folder / "broken", "a: [1, {b: 'c\n? d\n: - - -e\n");
}

void try_file(const std::filesystem::path& path, std::span<const std::byte>) {
  TrainFile file;
  if (!fuzz::accepted([&] { file = read_train_config(path); })) return;
  fuzz::accepted([&] { expect_preset<presets::tiny>(file, "tiny"); });
  fuzz::accepted([&] { expect_preset<presets::moshi_7b_lora>(file, "moshi_7b_lora"); });
}
