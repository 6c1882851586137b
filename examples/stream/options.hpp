// What the command line of `stream` decides, and the presets that are compiled.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "mttt/lm/lm_gen.hpp"

struct Options {
  std::filesystem::path checkpoint, codec, tokenizer, input, output;
  std::string dtype = "f32";
  std::filesystem::path transcript, json, save_state, load_state;
  mttt::GenOptions gen;
  bool greedy = false, without_ttt = false;
  std::int64_t seed = 1, context = 0;
  std::optional<double> gating_alpha;
};

int stream_tiny(const Options&);
int stream_tiny_without_ttt(const Options&);
// On CUDA:
int stream_tiny_bf16(const Options&);
int stream_tiny_without_ttt_bf16(const Options&);
