// A conversation as it grows: two tracks and the words on them.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "coder.hpp"
#include "mttt/core/rng.hpp"
#include "voices.hpp"

enum class Speaker { model, user };

struct Line {
  Speaker speaker;
  std::string text;
};

/// Said one after the other, without others in between.
using Exchange = std::vector<Line>;

class Conversation {
 public:
  Conversation(Studio& studio, Voice user) : studio_(&studio), user_(std::move(user)) {}

  /// Says a line `gap` seconds after the last one ended (a negative gap interrupts). Answers its first word.
  std::size_t say(Speaker speaker, const std::string& text, double gap) {
    const bool model = speaker == Speaker::model;
    const auto spoken = studio_->say(model ? model_voice() : user_, text);
    // Nobody talks across himself.
    const double at = std::max({end_ + gap, free_[model], 0.0});
    const double start =
        studio_->coder() != nullptr ? place_codes(model, at, *spoken) : place(model, at, *spoken);
    const std::size_t word = words_.size();
    for (const auto& w : spoken->words)
      words_.push_back({w.text, start + w.start, start + w.end,
                        std::string(model ? mttt::main_speaker : std::string_view("SPEAKER_1"))});
    end_ = free_[model] = start + spoken->seconds();
    return word;
  }
  /// A word of the model's text without a sound, for a part of its frame; the next may come `frames` later. Of a studio
  /// with a coder.
  std::size_t think(const std::string& text, int frames) {
    const double frame = 1 / studio_->coder()->frame_rate();
    words_.push_back({text, end_, end_ + 0.2 * frame, std::string(mttt::main_speaker)});
    end_ += frames * frame;
    return words_.size() - 1;
  }
  void say(const Exchange& exchange, mttt::Rng& rng) {
    for (const Line& line : exchange) say(line.speaker, line.text, turn_gap(rng));
  }
  void pause(double seconds) { end_ += seconds; }

  /// Before an answer; now and then one comes too early.
  static double turn_gap(mttt::Rng& rng) {
    const double u = rng.uniform(), v = rng.uniform();
    return u < 0.04 ? -0.05 - 0.25 * v : 0.2 + 0.5 * v * v;
  }

  double now() const { return end_; }
  const std::vector<mttt::Word>& words() const { return words_; }
  const Voice& user() const { return user_; }
  Studio& studio() const { return *studio_; }

  /// Left the model, right the user, (frames, 2); a little silence after the last word.
  std::vector<std::int16_t> stereo() const {
    const auto frames =
        static_cast<std::size_t>((std::max(end_, std::max(free_[0], free_[1])) + 0.5) * sample_rate);
    std::vector<std::int16_t> both(2 * frames);
    for (const bool model : {false, true})
      for (std::size_t t = 0; t < tracks_[model].size(); ++t) both[2 * t + !model] = tracks_[model][t];
    return both;
  }

  /// Of a studio with a coder.
  mttt::CodedRecording coded() const {
    const Coder& coder = *studio_->coder();
    auto model = codes_[true];
    coder.silence_until(static_cast<std::size_t>(std::ceil(end_ * coder.frame_rate())), model);
    return coder.recording(words_, std::move(model), codes_[false]);
  }

 private:
  /// Answer when the sentence starts.
  double place(bool model, double at, const Spoken& spoken) {
    auto& track = tracks_[model];
    const auto first = static_cast<std::size_t>(at * sample_rate);
    if (track.size() < first + spoken.samples.size()) track.resize(first + spoken.samples.size());
    std::copy(spoken.samples.begin(), spoken.samples.end(),
              track.begin() + static_cast<std::ptrdiff_t>(first));
    return static_cast<double>(first) / sample_rate;
  }
  double place_codes(bool model, double at, const Spoken& spoken) {
    const Coder& coder = *studio_->coder();
    auto& track = codes_[model];
    const auto parts = std::max(static_cast<std::size_t>(std::ceil(at * coder.frame_rate() * Coder::phases)),
                                track.size() / coder.codebooks() * Coder::phases);
    const std::size_t first = parts / Coder::phases;
    const auto& codes = spoken.codes[parts % Coder::phases];
    coder.silence_until(first, track);
    track.insert(track.end(), codes.begin(), codes.end());
    return static_cast<double>(parts) / Coder::phases / coder.frame_rate();
  }

  Studio* studio_;
  Voice user_;
  std::vector<std::int16_t> tracks_[2];  // the user's, the model's
  std::vector<std::int32_t> codes_[2];
  double end_ = 0.3, free_[2] = {0, 0};
  std::vector<mttt::Word> words_;
};
