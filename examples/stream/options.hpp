// What the command line of `stream` decides, what of it was found on disk, and the presets that are compiled.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "../sound.hpp"
#include "mttt/io/published.hpp"
#include "mttt/lm/lm_gen.hpp"

struct Options {
  std::string input, output;  // "-": raw samples through standard input and output
  RawFormat raw = RawFormat::s16le;
  std::filesystem::path model, codec, tokenizer, adapter;
  std::string dtype = "auto";
  std::filesystem::path transcript, json, save_state, load_state;
  mttt::GenOptions gen;
  bool greedy = false, without_ttt = false;
  std::int64_t seed = 1, context = 0;
  std::optional<double> gating_alpha;
};

/// The files of a model, and the preset that fits them.
struct Model {
  mttt::ModelFiles files;
  std::string preset;
};

int stream_tiny(const Options&, const Model&);
int stream_tiny_without_ttt(const Options&, const Model&);
int stream_tiny_without_ttt_int8(const Options&, const Model&);
int stream_moshi_7b(const Options&, const Model&);
// With MTTT_ALL_PRESETS:
int stream_moshi_small(const Options&, const Model&);
int stream_moshi_small_int8(const Options&, const Model&);
int stream_moshi_7b_half(const Options&, const Model&);
int stream_moshi_7b_int8(const Options&, const Model&);
int stream_moshi_7b_int4(const Options&, const Model&);
// On CUDA:
int stream_tiny_bf16(const Options&, const Model&);
int stream_tiny_without_ttt_bf16(const Options&, const Model&);
