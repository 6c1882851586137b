// CodedRecording: a recording as the language model sees it: its text, the model's voice, the user's voice.
//
// Formula: entropy = - sum over codes c of p(c) log2 p(c), p the shares counted.
// Shapes:  codes (streams, frames); stream 0 text, then the codebooks of the model's voice, then the user's.
// Units:   frames at frame_rate a second; entropy in bits a code.
// Errors:  codes out of range, a shape that does not fit, a frame rate that is not positive.
// Not supported: streams of different frame rates.
// Source:  kyutai-labs/moshi-finetune finetune/data/interleaver.py `Sample`.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/core/tensor.hpp"

namespace mttt {

struct CodedRecording {
  Index streams = 0, frames = 0;
  std::vector<std::int32_t> codes;  // (streams, frames); -1: nothing here, predict nothing
  double frame_rate = 0;
  Index text_card = 0, card = 0;  // codes of the text stream, of an audio stream
  std::string codec = {};         // which codec and tokenizer made the codes
  std::string source = {};        // which recording they are of

  std::span<const std::int32_t> stream(Index k) const {
    return {codes.data() + k * frames, static_cast<std::size_t>(frames)};
  }
  std::span<std::int32_t> stream(Index k) {
    return {codes.data() + k * frames, static_cast<std::size_t>(frames)};
  }
};

/// Throws unless every number of the recording is possible. `subject` is the file's name.
inline void check_codes(const CodedRecording& recording, std::string_view subject) {
  const auto& r = recording;
  if (r.streams < 2 || r.frames < 1 || r.codes.size() != static_cast<std::size_t>(r.streams * r.frames)) {
    fail(subject,
         std::to_string(r.codes.size()) + " codes for " + std::to_string(r.streams) + " streams of " +
             std::to_string(r.frames) + " frames",
         "a text stream and audio streams of one frame or more", "encode the recording again");
  }
  if (!(r.frame_rate > 0) || !std::isfinite(r.frame_rate) || r.text_card < 1 || r.card < 1) {
    fail(subject,
         "frame rate " + std::to_string(r.frame_rate) + ", text_card " + std::to_string(r.text_card) +
             ", card " + std::to_string(r.card),
         "numbers above 0", "encode the recording again");
  }
  for (Index i = 0; i < r.streams * r.frames; ++i) {
    const std::int32_t code = r.codes[static_cast<std::size_t>(i)];
    const Index k = i / r.frames, end = k == 0 ? r.text_card : r.card;
    if (code >= -1 && code < end) continue;
    fail(subject,
         "code " + std::to_string(code) + " in stream " + std::to_string(k) + ", frame " +
             std::to_string(i % r.frames),
         "-1 to " + std::to_string(end - 1),
         "encode the recording again, with the codec and tokenizer of the model");
  }
}

/// How many bits a code carries by itself; codes below 0 do not count. At most log2 of the number of codes
/// given.
inline double entropy(std::span<const std::int32_t> codes) {
  std::vector<double> count;
  double n = 0;
  for (const std::int32_t code : codes) {
    if (code < 0) continue;
    const auto c = static_cast<std::size_t>(code);
    if (c >= count.size()) count.resize(c + 1);
    ++count[c];
    ++n;
  }
  double bits = 0;
  for (const double c : count) {
    if (c > 0) bits -= c / n * std::log2(c / n);
  }
  return bits;
}

}  // namespace mttt
