// A recording on disk: NAME.wav, NAME.json beside it where words are known, and its line of the manifest.
#pragma once

#include <cstdio>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mttt/io/codes.hpp"
#include "voices.hpp"

struct Recording {
  std::vector<std::int16_t> samples;  // (frames, channels)
  int channels = 1;
  std::vector<mttt::Word> words;
  std::string about;                               // further members of the sidecar, each after a comma
  std::optional<mttt::CodedRecording> coded = {};  // in the place of samples

  double seconds() const {
    return coded ? static_cast<double>(coded->frames) / coded->frame_rate
                 : static_cast<double>(samples.size()) / channels / sample_rate;
  }
};

inline std::string json_number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", x);
  return text;
}

/// Words are letters, digits and apostrophes; names are of this program: nothing needs escapes.
inline std::string sidecar(const Recording& recording) {
  std::string json = "{\"alignments\": [";
  for (const auto& word : recording.words) {
    json += (json.back() == '[' ? "\n" : ",\n");
    json += "[\"" + word.text + "\", [" + json_number(word.start) + ", " + json_number(word.end) + "], \"" +
            word.speaker + "\"]";
  }
  return json + "\n]" + recording.about + "}\n";
}

/// Its line of the manifest.
inline std::string manifest_line(const std::string& name, const Recording& recording) {
  return "{\"path\": \"" + name + "\", \"duration\": " + json_number(recording.seconds()) + "}\n";
}

/// 16 bits, no chunk but what a wav must have: equal sound, equal bytes.
inline std::string wav_header(const Recording& recording) {
  std::string header;
  const auto number = [&](std::uint64_t value, int bytes) {
    for (; bytes-- > 0; value >>= 8) header += static_cast<char>(value & 255);
  };
  const auto channels = static_cast<std::uint64_t>(recording.channels), bytes = 2 * recording.samples.size();
  header += "RIFF", number(36 + bytes, 4), header += "WAVEfmt ", number(16, 4), number(1, 2),
      number(channels, 2);
  number(sample_rate, 4), number(2 * channels * sample_rate, 4), number(2 * channels, 2), number(16, 2);
  header += "data", number(bytes, 4);
  return header;
}

/// Codes go to the folder `codes`, where the manifest beside the folder of `wav` looks for them.
inline void write_recording(const std::filesystem::path& wav, const std::filesystem::path& codes,
                            const Recording& recording) {
  if (recording.coded)
    mttt::save_codes(codes / mttt::codes_name(wav.parent_path().filename() / wav.filename()),
                     *recording.coded);
  else
    mttt::write_file_atomically(wav, [&](mttt::FileSink& sink) {
      const std::string header = wav_header(recording);
      sink.write(std::as_bytes(std::span(header)));
      sink.write(std::as_bytes(std::span(recording.samples)));
    });
  if (!recording.words.empty())
    mttt::write_file_atomically(std::filesystem::path(wav).replace_extension(".json"), sidecar(recording));
}
