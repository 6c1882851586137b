// CodedRecording: a recording as the language model sees it: its text, the model's voice, the user's voice.
//
// Formula: entropy = - sum over codes c of p(c) log2 p(c), p the shares counted. A voice is active in a frame
//          whose root mean square is above a level.
// Shapes:  codes (streams, frames); stream 0 text, then the codebooks of the model's voice, then the user's.
// Units:   frames at frame_rate a second; entropy in bits a code; levels in dB of full scale.
// Errors:  codes out of range, a shape that does not fit, a frame rate that is not positive.
// Not supported: streams of different frame rates.
// Source:  kyutai-labs/moshi-finetune finetune/data/interleaver.py `Sample`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/core/tensor.hpp"

namespace mttt {

inline constexpr double silence_level = -50;

/// Shares of the frames of a recording in which the model speaks, the user speaks, nobody does.
struct SpeechActivity {
  double model = 0, user = 0, silence = 0;
  double level = silence_level;  // under which nobody speaks

  /// Of all speech, how much is by the one who speaks more; 0 where nobody speaks.
  double dominance() const { return model + user > 0 ? std::max(model, user) / (model + user) : 0; }
};

/// Of two voices of equal length; what is left of a last frame is a frame too.
inline SpeechActivity speech_activity(std::span<const float> model, std::span<const float> user,
                                      std::size_t frame_size, double level = silence_level) {
  const double least = std::pow(10.0, level / 10);
  const auto active = [&](std::span<const float> voice, std::size_t first) {
    const auto frame = voice.subspan(first, std::min(frame_size, voice.size() - first));
    double sum = 0;
    for (const float x : frame) sum += static_cast<double>(x) * static_cast<double>(x);
    return sum > least * static_cast<double>(frame.size());
  };
  SpeechActivity shares{.level = level};
  double frames = 0;
  for (std::size_t first = 0; first < model.size(); first += frame_size, ++frames) {
    const bool m = active(model, first), u = active(user, first);
    shares.model += m, shares.user += u, shares.silence += !m && !u;
  }
  for (double* share : {&shares.model, &shares.user, &shares.silence}) *share /= std::max(frames, 1.0);
  return shares;
}

struct CodedRecording {
  Index streams = 0, frames = 0;
  std::vector<std::int32_t> codes;  // (streams, frames); -1: nothing here, predict nothing
  double frame_rate = 0;
  Index text_card = 0, card = 0;  // codes of the text stream, of an audio stream
  std::string codec = {};         // which codec and tokenizer made the codes
  std::string source = {};        // which recording they are of
  std::optional<SpeechActivity> activity = {};
  /// Where the codes lie elsewhere, and `codes` is empty: those of a stream from a frame on.
  std::function<void(Index k, Index first, std::span<std::int32_t> out)> fetch = {};

  void read(Index k, Index first, std::span<std::int32_t> out) const {
    if (fetch) return fetch(k, first, out);
    std::copy_n(codes.data() + k * frames + first, out.size(), out.data());
  }
  std::span<const std::int32_t> stream(Index k) const {
    return {codes.data() + k * frames, static_cast<std::size_t>(frames)};
  }
  std::span<std::int32_t> stream(Index k) {
    return {codes.data() + k * frames, static_cast<std::size_t>(frames)};
  }
};

/// Throws unless codes of stream k from frame `first` on are possible.
inline void check_codes(const CodedRecording& recording, Index k, Index first,
                        std::span<const std::int32_t> codes, std::string_view subject) {
  const Index end = k == 0 ? recording.text_card : recording.card;
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] >= -1 && codes[i] < end) continue;
    fail(subject,
         "code " + std::to_string(codes[i]) + " in stream " + std::to_string(k) + ", frame " +
             std::to_string(first + static_cast<Index>(i)),
         "-1 to " + std::to_string(end - 1),
         "encode the recording again, with the codec and tokenizer of the model");
  }
}

/// Throws unless every number of the recording is possible; codes that are fetched are checked then. `subject`
/// is the file's name.
inline void check_codes(const CodedRecording& recording, std::string_view subject) {
  const auto& r = recording;
  const Index kept = r.fetch ? 0 : r.streams * r.frames;
  if (r.streams < 2 || r.frames < 1 || r.codes.size() != static_cast<std::size_t>(kept)) {
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
  for (Index k = 0; kept > 0 && k < r.streams; ++k) check_codes(r, k, 0, r.stream(k), subject);
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
