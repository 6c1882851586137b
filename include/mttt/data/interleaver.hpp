// Interleaver: words with times to one text token a frame.
//
// Rule:    a word starts at frame floor(start * frame_rate), or at 0; its tokens take one frame each. The
//          frame before a run of tokens, where it is padding, becomes end_of_text_padding. The rest is
//          padding: in_word_padding up to the frame of the word's end, text_padding beyond. A word that
//          starts while another is being written replaces what is left of it, or, with keep_and_shift, waits.
// Shapes:  tokens (frames).
// Units:   seconds, frames a second; audio_delay in seconds: above 0 the text comes first.
// Errors:  a frame rate that is not positive, negative frames.
// Not supported: tokens that mark turns; sampled segmentations; leaving out the text of some recordings.
// Source:  kyutai-labs/moshi-finetune finetune/data/interleaver.py `Interleaver`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mttt/core/tensor.hpp"
#include "mttt/data/alignment.hpp"

namespace mttt {

struct InterleaverOptions {
  std::int32_t text_padding = 3, end_of_text_padding = 0;
  std::int32_t zero = -1;                            // "nothing here", where audio_delay < 0 leaves no text
  std::optional<std::int32_t> in_word_padding = {};  // text_padding unless given
  bool keep_main_only = false;                       // drop the words of all but `speaker`
  std::string speaker{main_speaker};
  bool keep_and_shift = false;  // never drop a token, rather come late
  double audio_delay = 0;       // seconds by which the sound follows the text
};

struct TimedTokens {
  std::vector<std::int32_t> tokens;
  double start, end;  // seconds
};

/// The stream of words that are sorted by their start.
inline std::vector<std::int32_t> interleave(std::span<const TimedTokens> words, Index frames,
                                            double frame_rate, const InterleaverOptions& options = {}) {
  if (frames < 0 || !(frame_rate > 0)) {
    fail("interleave", std::to_string(frames) + " frames at " + std::to_string(frame_rate) + " a second",
         "0 frames or more at a rate above 0", "pass the frames of the codes and the rate of the codec");
  }
  const std::int32_t in_word = options.in_word_padding.value_or(options.text_padding);
  std::vector<std::int32_t> stream(static_cast<std::size_t>(frames), options.text_padding);
  std::deque<std::int32_t> waiting;
  Index last_word_end = -1;
  std::size_t next = 0;
  for (Index t = 0; t < frames; ++t) {
    const auto here = stream.begin() + t;
    for (; next < words.size() && words[next].start * frame_rate < static_cast<double>(t + 1); ++next) {
      const TimedTokens& word = words[next];
      last_word_end = static_cast<Index>(word.end * frame_rate);
      if (!options.keep_and_shift) waiting.clear();
      waiting.insert(waiting.end(), word.tokens.begin(), word.tokens.end());
    }
    if (!waiting.empty()) {
      if (t > 0 && (here[-1] == options.text_padding || here[-1] == in_word))
        here[-1] = options.end_of_text_padding;
      *here = waiting.front();
      waiting.pop_front();
    } else if (t <= last_word_end) {
      *here = in_word;
    }
  }
  if (options.audio_delay < 0) {
    const auto silent = static_cast<Index>(frame_rate * -options.audio_delay);
    std::fill_n(stream.begin(), std::min(silent, frames), options.zero);
  }
  return stream;
}

/// The text stream of a recording. encode(text) answers the tokens of one word, as a list of whole numbers.
template <class Encode>
std::vector<std::int32_t> text_stream(std::vector<Word> words, Index frames, double frame_rate,
                                      Encode&& encode, const InterleaverOptions& options = {}) {
  std::stable_sort(words.begin(), words.end(),
                   [](const Word& a, const Word& b) { return a.start < b.start; });
  std::vector<TimedTokens> timed;
  for (const Word& word : words) {
    if (options.keep_main_only && word.speaker != options.speaker) continue;
    if (word.start >= word.end || (options.audio_delay != 0 && word.end <= options.audio_delay)) continue;
    const auto tokens = encode(word.text);
    timed.push_back(
        {{tokens.begin(), tokens.end()}, word.start - options.audio_delay, word.end - options.audio_delay});
  }
  return interleave(timed, frames, frame_rate, options);
}

}  // namespace mttt
