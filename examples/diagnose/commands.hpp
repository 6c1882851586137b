// What the command line of `diagnose` decides, and its commands. Each answers the exit status.
#pragma once

#include "figure5.hpp"
#include "subject.hpp"

struct Options {
  std::filesystem::path model, output = "diagnosis", codec, tokenizer, questions;
  std::string dtype = "f32";
  std::vector<std::filesystem::path> recordings;
  mttt::Index max_frames = 0, window = 0;
  // gates, sweep, context
  std::vector<double> alphas = {0, 1e-5, 1e-3, 0.1, 0.3, 0.5, 1}, temperatures = {0.7};
  mttt::Index reset_every = 128;
  double audio_temperature = 0.8;
  std::int64_t seed = 1;
  // stream
  double minutes = 10;
  // causality
  mttt::Index trials = 24, frames = 200;
};

struct Recording {
  std::filesystem::path path;
  mttt::CodedRecording codes;

  std::string name() const { return path.stem().string(); }
};

/// Coded ones, folders of them, or sounds, which are encoded here.
std::vector<Recording> load_recordings(const Options&, const Facts&);
/// What a person reads; the tokens as numbers where there is no tokenizer.
std::string words_of(const std::vector<int>& tokens, const std::filesystem::path& tokenizer);
/// Share of the frames that sound like nothing, below -50 dB of full scale; nothing without a codec.
std::optional<double> share_of_silence(const std::vector<std::int32_t>& voice, mttt::Index codebooks,
                                       const std::filesystem::path& codec);

int figure5(Subject&, const std::vector<Recording>&, const Options&);
int gates(Subject&, const std::vector<Recording>&, const Options&);
int sweep(Subject&, const std::vector<Recording>&, const Options&);
int context(Subject&, const std::vector<Recording>&, const Options&);
int recall(Subject&, const std::vector<Recording>&, const Options&);
int stream(Subject&, const std::vector<Recording>&, const Options&);
int causality(Subject&, const std::vector<Recording>&, const Options&);

namespace diagnose {

/// "Gates: tiny/model.safetensors (tiny, f32)"
inline std::string title_of(const std::string& what, const Facts& facts) {
  const std::filesystem::path path(facts.checkpoint);
  return what + ": " + (path.parent_path().filename() / path.filename()).string() + " (" + facts.preset +
         ", " + facts.dtype + ")";
}

inline double mean_magnitude(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += std::abs(v);
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

/// Mean of what is a number.
inline double mean_known(std::span<const double> values) {
  double sum = 0, count = 0;
  for (const double v : values)
    if (std::isfinite(v)) sum += v, count += 1;
  return count > 0 ? sum / count : NAN;
}

/// How much of what was said repeats what was said before.
struct Fluency {
  double words_a_minute = 0, pauses = 0;  // pauses: share of frames without a token of text
  double repeated_frames = 0;             // share of frames whose sound has the codes of the frame before
  double repeated_words = 0;              // share of threes of tokens that were said before
};
inline Fluency fluency_of(const std::vector<std::int32_t>& said, const Facts& facts, double frame_rate) {
  const auto spoken = static_cast<std::size_t>(1 + facts.dep_q);
  Fluency f;
  std::vector<std::int32_t> words;
  double frames = 0, pairs = 0;
  for (std::size_t at = 0; at + spoken <= said.size(); at += spoken) {
    if (said[at] == mttt::ungenerated_code) continue;
    ++frames;
    if (facts.is_word(said[at]))
      words.push_back(said[at]);
    else
      f.pauses += 1;
    if (at < spoken || said[at - spoken] == mttt::ungenerated_code) continue;
    ++pairs;
    f.repeated_frames += std::equal(said.begin() + static_cast<std::ptrdiff_t>(at + 1),
                                    said.begin() + static_cast<std::ptrdiff_t>(at + spoken),
                                    said.begin() + static_cast<std::ptrdiff_t>(at - spoken + 1));
  }
  std::vector<std::vector<std::int32_t>> threes;
  for (std::size_t i = 0; i + 3 <= words.size(); ++i)
    threes.emplace_back(words.begin() + static_cast<std::ptrdiff_t>(i),
                        words.begin() + static_cast<std::ptrdiff_t>(i + 3));
  const auto all = static_cast<double>(threes.size());
  std::sort(threes.begin(), threes.end());
  const auto different = static_cast<double>(std::unique(threes.begin(), threes.end()) - threes.begin());
  f.repeated_words = all > 0 ? 1 - different / all : 0;
  f.words_a_minute = frames > 0 ? static_cast<double>(words.size()) / (frames / frame_rate / 60) : 0;
  f.pauses = frames > 0 ? f.pauses / frames : 0;
  f.repeated_frames = pairs > 0 ? f.repeated_frames / pairs : 0;
  return f;
}

/// Of several conversations, weighted with their frames.
inline Fluency fluency_of_all(const std::vector<std::vector<std::int32_t>>& talks, const Facts& facts,
                              double frame_rate) {
  double frames = 0;
  for (const auto& said : talks) frames += static_cast<double>(said.size());
  Fluency mean;
  for (const auto& said : talks) {
    const Fluency one = fluency_of(said, facts, frame_rate);
    const double share = static_cast<double>(said.size()) / frames;
    mean.words_a_minute += share * one.words_a_minute, mean.pauses += share * one.pauses;
    mean.repeated_frames += share * one.repeated_frames, mean.repeated_words += share * one.repeated_words;
  }
  return mean;
}

}  // namespace diagnose
