// Questions of memory conversations (make_data memory): what was told, when it is asked for, and which frames of
// the text answer it.
//
// Formula: an answer is known where, of all words, each piece of it is the likeliest in its frame, given all
//          that was said before.
// Units:   seconds in files, frames in what is asked of a model.
// Errors:  a file that is not there or has no member 'questions', unless that is allowed; another form.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "mttt/data/codes.hpp"
#include "mttt/io/file.hpp"
#include "mttt/io/json.hpp"

struct Question {
  std::string says;
  double chance, delay;  // delay in seconds, from where it was last heard
  double from, to;       // the word of the answer
  bool echoed = false;   // the model said the value when it was told, here:
  double heard_from = 0, heard_to = 0;
};

/// A recording with no file beside it, or with one that has no questions, as those of dialogues.
enum class WithoutQuestions { refused, allowed };

/// Of a recording, from the file beside it; `advice`: what to do if there are none, or they cannot be read.
inline std::vector<Question> read_questions(const std::filesystem::path& sidecar, const char* advice,
                                            WithoutQuestions without = WithoutQuestions::refused) {
  const auto refuse = [&](const std::string& found) {
    mttt::fail(sidecar.string(), found,
               "a JSON file with the member 'questions', as make_data memory writes it", advice);
  };
  std::vector<Question> all;
  const bool may_lack = without == WithoutQuestions::allowed;
  if (!std::filesystem::exists(sidecar)) {
    if (may_lack) return all;
    refuse("no such file");
  }
  const mttt::WholeFile file(sidecar);
  std::string problem;
  const auto json = mttt::detail::parse_json(file.text(), &problem);
  if (!problem.empty()) refuse(problem);
  const auto list = json.is_object() ? json.find("questions") : json.end();
  if (may_lack && list == json.end()) return all;
  if (list == json.end() || !list->is_array()) refuse("no list 'questions'");
  try {
    for (const auto& q : *list) {
      Question one{q.at("person").get<std::string>() + " " + q.at("attribute").get<std::string>() + ": " +
                       q.at("value").get<std::string>(),
                   1 / q.at("values").get<double>(), q.at("delay").get<double>(),
                   q.at("answer").at(0).get<double>(), q.at("answer").at(1).get<double>()};
      if ((one.echoed = q.value("echoed", false)))
        one.heard_from = q.at("heard").at(0).get<double>(), one.heard_to = q.at("heard").at(1).get<double>();
      all.push_back(std::move(one));
    }
  } catch (const nlohmann::json::exception& error) {
    refuse(error.what());
  }
  return all;
}

/// The text of a word of the model: frame, code.
using Pieces = std::vector<std::pair<mttt::Index, std::int32_t>>;

/// Those between two times in seconds.
inline Pieces pieces_between(double from, double to, const mttt::CodedRecording& codes,
                             const std::function<bool(std::int32_t)>& is_word) {
  Pieces pieces;
  const auto text = codes.stream(0);
  const auto first = static_cast<mttt::Index>(from * codes.frame_rate);
  const auto end = std::min(codes.frames, static_cast<mttt::Index>(to * codes.frame_rate) + 1);
  for (mttt::Index t = first; t < end; ++t) {
    const std::int32_t code = text[static_cast<std::size_t>(t)];
    if (is_word(code)) pieces.emplace_back(t, code);
  }
  return pieces;
}

/// `likeliest_word` of each frame, see lm/listen.hpp.
inline bool knows(const Pieces& pieces, const std::vector<std::int32_t>& likeliest_word) {
  return std::all_of(pieces.begin(), pieces.end(), [&](const auto& piece) {
    return likeliest_word[static_cast<std::size_t>(piece.first)] == piece.second;
  });
}
