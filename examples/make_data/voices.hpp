// Voices of flite, and a studio in which every sentence is spoken once.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "mttt/data/alignment.hpp"

inline constexpr int sample_rate = 24000;
inline constexpr double voice_loudness = 0.07;  // root mean square of a sentence: -23 dB of full scale
inline constexpr double voice_peak = 0.9;       // a higher one makes the sentence quieter

/// A speaker of flite as someone else: a shorter throat (tract above 1), a pitch, a pace.
struct Voice {
  std::string base;  // a voice of flite
  double tract = 1;  // all frequencies of the spectrum's shape, times this
  double pitch = 0;  // Hz
  double pace = 1;   // seconds taken, times this

  std::string name() const;
};

/// A sentence without silence at its ends.
struct Spoken {
  std::vector<std::int16_t> samples;                  // 24 kHz, mono
  std::vector<mttt::Word> words;                      // lower case, seconds from its start, of no speaker
  std::vector<std::vector<std::int32_t>> codes = {};  // if the studio has a coder: Coder::encode

  double seconds() const { return static_cast<double>(samples.size()) / sample_rate; }
};

/// The voice of the model. Training never hears it as a user.
const Voice& model_voice();
/// Voices of users, in an order without meaning: those of training, or those of another speaker altogether.
std::vector<Voice> user_voices(bool held_out);
/// The speakers of flite as they are.
std::vector<Voice> plain_voices();

/// Speaks now. Any number of threads.
Spoken speak(const Voice& voice, const std::string& text);

/// Letters, digits and apostrophes alone, in lower case.
std::string plain_word(const char* token);
/// What was said at 24 kHz without the silence around its words, as loud as all voices.
Spoken trimmed(std::span<const float> sound, std::vector<mttt::Word> words);

class Coder;

class Studio {
 public:
  /// With a coder, sentences are encoded too.
  explicit Studio(std::size_t most_bytes, const Coder* coder = nullptr)
      : most_bytes_(most_bytes), coder_(coder) {}
  const Coder* coder() const { return coder_; }

  std::shared_ptr<const Spoken> say(const Voice& voice, const std::string& text);

  /// Seconds that were spoken, and those of them that were spoken anew.
  double seconds_said() const { return static_cast<double>(said_) / sample_rate; }
  double seconds_new() const { return static_cast<double>(made_) / sample_rate; }
  std::size_t sentences() const;

 private:
  struct Shelf {
    std::mutex mutex;
    std::map<std::string, std::shared_ptr<const Spoken>> sentences;
  };
  mutable std::array<Shelf, 64> shelves_;
  std::size_t most_bytes_;
  const Coder* coder_;
  std::atomic<std::size_t> bytes_ = 0, said_ = 0, made_ = 0;  // samples
};
