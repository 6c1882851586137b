// Word: a spoken word with its times, of which the text stream is made.
//
// Shapes:  a list of words in any order.
// Units:   seconds from the start of the recording.
// Errors:  none.
// Not supported: a time for every token.
// Source:  kyutai-labs/moshi-finetune, the sidecar's `alignments`.
#pragma once

#include <string>
#include <string_view>

namespace mttt {

/// The speaker whose words published data give, and whose voice is the left channel.
inline constexpr std::string_view main_speaker = "SPEAKER_MAIN";

struct Word {
  std::string text;
  double start, end;  // seconds
  std::string speaker{main_speaker};
};

}  // namespace mttt
