// The recordings that a codec is trained on: files, trees of files and manifests.
#pragma once

#include <algorithm>
#include <array>
#include <cstdio>
#include <set>

#include "mttt/io/audio.hpp"
#include "mttt/io/manifest.hpp"
#include "mttt/io/workers.hpp"
#include "options.hpp"

/// Sound files that a path stands for: itself, the sound files of a folder and those below it, or the
/// recordings of a manifest.
inline std::vector<std::filesystem::path> recordings_of(const std::vector<std::string>& paths) {
  namespace fs = std::filesystem;
  constexpr std::array<std::string_view, 5> endings{".wav", ".flac", ".ogg", ".oga", ".opus"};
  std::set<fs::path> found;  // in order, each once
  for (const fs::path path : paths) {
    const std::size_t before = found.size();
    if (path.extension() == ".jsonl") {
      for (const auto& entry : mttt::read_manifest(path)) found.insert(entry.recording);
    } else if (fs::is_directory(path)) {
      for (const auto& file : fs::recursive_directory_iterator(path))
        if (std::ranges::find(endings, file.path().extension().string()) != endings.end())
          found.insert(file.path());
      if (found.size() == before)
        mttt::fail(path.string(), "no recordings", "wav, flac, ogg or opus files in it or below it",
                   "correct the path");
    } else {
      found.insert(path);
    }
  }
  return {found.begin(), found.end()};
}

/// Every channel is a voice. Recordings that cannot be read are named and left out, unless none is left.
inline Voices read_voices(const std::vector<std::string>& paths, int sample_rate) {
  using namespace mttt;
  const auto files = recordings_of(paths);
  std::vector<Voices> of_file(files.size());
  std::vector<std::string> problems(files.size());
  std::uint64_t bytes = 0;
  for (const auto& file : files) {
    std::error_code none;
    if (const auto size = std::filesystem::file_size(file, none); !none) bytes += size;
  }
  detail::in_parallel(files.size(), 16 * bytes, [&](std::size_t i) {  // unpacking takes longer than reading
    try {
      const Audio audio = resample(read_audio(files[i]), sample_rate);
      const auto wide = static_cast<std::size_t>(audio.channels);
      for (std::size_t c = 0; c < wide; ++c) {
        auto& voice = of_file[i].emplace_back(audio.frames());
        for (std::size_t t = 0; t < voice.size(); ++t) voice[t] = audio.samples[t * wide + c];
      }
    } catch (const Error& error) {
      problems[i] = error.what();
    }
  });
  Voices voices;
  std::size_t broken = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    if (!problems[i].empty()) {
      std::fprintf(stderr, "left out: %s\n", problems[i].c_str());
      ++broken;
    }
    for (auto& voice : of_file[i]) voices.push_back(std::move(voice));
  }
  if (broken > 0) std::fprintf(stderr, "%zu of %zu recordings were left out\n", broken, files.size());
  if (voices.empty())
    fail(paths[0], detail::cat("none of ", files.size(), " recordings that can be read"), "at least one",
         "correct the paths");
  return voices;
}
