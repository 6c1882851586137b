// Sentences as a language model reads them: each is spoken and encoded once, and conversations are put together of
// codes. So any number of hours of conversation costs the sentences alone.
//
// Half of a sentence's codes are others when it begins half a frame later, so each is encoded from several places within
// a frame on. It is encoded between silences, and does not sound of what was said before it, as it would a little
// in a recording that is encoded whole: test with such recordings.
#pragma once

#include <filesystem>
#include <memory>
#include <span>

#include "mttt/data/codes.hpp"
#include "voices.hpp"

class Coder {
 public:
  /// Of a codec of the preset mimi_small.
  Coder(const std::filesystem::path& codec, const std::filesystem::path& tokenizer);
  ~Coder();

  double frame_rate() const;
  std::size_t codebooks() const;
  static constexpr std::size_t phases = 4;
  /// (frames, codebooks) for a sentence that begins 0, 1/4, 1/2 and 3/4 of a frame after a frame does. Any number
  /// of threads.
  std::vector<std::vector<std::int32_t>> encode(std::span<const std::int16_t> samples) const;
  /// Appends silence until there are so many frames.
  void silence_until(std::size_t frames, std::vector<std::int32_t>& codes) const;
  /// Text and the voices' codes, each (frames, codebooks), of which the shorter one ends in silence.
  mttt::CodedRecording recording(const std::vector<mttt::Word>& words, std::vector<std::int32_t> model,
                                 std::vector<std::int32_t> user) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};
