// What the command line of `train` decides, and the presets that are compiled.
#pragma once

#include <optional>
#include <string>

#include "mttt/data/batches.hpp"
#include "mttt/io/yaml_config.hpp"
#include "mttt/train/loss.hpp"
#include "mttt/train/trainer.hpp"

struct Options {
  std::string preset = "tiny", dtype = "f32", data, output;
  mttt::BatchOptions segments{.batch = 8, .frames = 100};
  mttt::TrainOptions train{.max_steps = 300, .lr = 2e-3, .pct_start = 0.1, .seed = 1};
  mttt::LossConfig loss;
  bool resume = false;
  std::int64_t inner_loss_freq = 0;       // steps between two looks at the inner losses; 0: 20 or more
  std::optional<mttt::TrainFile> config;  // what --config says, beside what it put into the members above
};

int train_tiny(const Options&);
int train_tiny_without_ttt(const Options&);
int train_tiny_lora(const Options&);
// On CUDA:
int train_tiny_bf16(const Options&);
int train_tiny_without_ttt_bf16(const Options&);
int train_moshi_small_bf16(const Options&);
int train_moshi_7b_lora_bf16(const Options&);
int train_moshi_7b_ttt_bf16(const Options&);
