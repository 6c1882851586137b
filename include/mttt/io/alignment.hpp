// The sidecar of a recording: NAME.json beside NAME.flac, with the words of the model's voice.
//
// Layout:  {"alignments": [["word", [start, end], "SPEAKER_MAIN"], ...]}; other keys are left alone.
// Shapes:  a list of words.
// Units:   seconds.
// Errors:  a missing file; what is not JSON, with its place; words of another form, negative, reversed and
//          infinite times, each with its number.
// Not supported: text conditions.
// Source:  kyutai-labs/moshi-finetune annotate.py and finetune/data/interleaver.py `InterleavedTokenizer`.
#pragma once

#include <cmath>
#include <vector>

#include "mttt/data/alignment.hpp"
#include "mttt/io/file.hpp"
#include "mttt/io/json.hpp"

namespace mttt {

inline std::filesystem::path sidecar_of(std::filesystem::path recording) {
  return recording.replace_extension(".json");
}

inline std::vector<Word> read_alignment(const std::filesystem::path& path) {
  constexpr std::string_view form = R"(["word", [start, end], "speaker"])";
  const WholeFile file(path);
  std::string problem;
  const auto json = detail::parse_json(file.text(), &problem);
  if (json.is_discarded())
    fail(path.string(), detail::quote(problem), "JSON", "repair the file or make it again");
  const auto found = json.is_object() ? json.find("alignments") : json.end();
  if (found == json.end() || !found->is_array()) {
    fail(path.string(), json.is_object() ? "no list 'alignments'" : "no object", R"({"alignments": [...]})",
         "make the file again");
  }
  std::vector<Word> words;
  words.reserve(found->size());
  for (const auto& item : *found) {
    const std::string subject = path.string() + ", word " + std::to_string(words.size());
    const bool good = item.is_array() && item.size() == 3 && item[0].is_string() && item[1].is_array() &&
                      item[1].size() == 2 && item[1][0].is_number() && item[1][1].is_number() &&
                      item[2].is_string();
    if (!good) {
      fail(subject, detail::quote(item.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace)), form,
           "make the file again");
    }
    Word word{item[0], item[1][0], item[1][1], item[2]};
    if (!(word.start >= 0) || !(word.end >= word.start) || !std::isfinite(word.end)) {
      fail(subject, detail::cat(detail::quote(word.text), " from ", word.start, " to ", word.end, " s"),
           "times with 0 <= start <= end", "correct the times");
    }
    words.push_back(std::move(word));
  }
  return words;
}

}  // namespace mttt
