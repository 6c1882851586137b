// What the command line of `train_codec` decides, and the presets that are compiled.
#pragma once

#include <string>
#include <vector>

#include "mttt/core/tensor.hpp"
#include "mttt/train/adversary.hpp"
#include "mttt/train/codec_loss.hpp"
#include "mttt/train/trainer.hpp"

/// Each voice at the codec's rate.
using Voices = std::vector<std::vector<float>>;

struct Options {
  std::string preset = "mimi_small", from, output;
  std::vector<std::string> data, held_out;
  Voices voices, held_out_voices;  // what these hold
  mttt::Index batch = 16, segment_frames = 25;
  mttt::TrainOptions train{.max_steps = 10000,
                           .lr = 5e-4,
                           .pct_start = 0.05,
                           .adam = {.beta2 = 0.99, .weight_decay = 0.01},
                           .log_freq = 50,
                           .seed = 1};
  mttt::CodecLossConfig loss;
  mttt::AdversaryOptions adversary;
  double adversarial_seconds = 0, gain_db = 0;
  std::int64_t model_freq = 0;
  std::string model_dtype = "f32";
  bool resume = false, tf32 = true;
};

int train_mimi_tiny(const Options&);
int train_mimi_small(const Options&);
// On CUDA:
int train_mimi_24khz(const Options&);
