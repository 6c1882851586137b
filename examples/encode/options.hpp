// What the command line of `encode` decides, and the codecs that are compiled.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "mttt/data/codes.hpp"

struct Options {
  std::filesystem::path codec, tokenizer, output;
  std::vector<std::filesystem::path> recordings;
  std::string data;
  std::optional<std::uint64_t> init_codec;
  bool mono = false;
  double silence_level = mttt::silence_level;
  std::string preset;
  bool reply = false;  // sounds instead of codes
  int jobs = 0;        // 0: as many as there are cores, where there are recordings enough
};

int encode_mimi_tiny(const Options&);
int encode_mimi_small(const Options&);
