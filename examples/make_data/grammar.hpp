// What is talked about: exchanges of two or more lines, drawn from grammars.
#pragma once

#include <string_view>

#include "conversation.hpp"

/// Where the text of a recording may come from: training leaves out a tenth of what can be said, for tests.
enum class Split { train, test };

/// A number that a text always has: what is kept for tests is decided by it.
std::uint64_t text_hash(std::string_view text);
inline bool held_out(std::string_view text, std::uint64_t one_in = 10) {
  return text_hash(text) % one_in == 0;
}

/// "zero" to "ninety nine".
std::string number_word(int n);

template <class List>
const auto& pick(const List& list, mttt::Rng& rng) {
  return list[static_cast<std::size_t>(rng.below(std::size(list)))];
}

Exchange greeting(mttt::Rng& rng);
Exchange goodbye(mttt::Rng& rng);
/// One question and its answer, or a little more. Test takes what training leaves out, where a grammar has it.
Exchange small_talk(Split split, mttt::Rng& rng);

/// All that the grammars say, as text to train a tokenizer on: `lines` of it.
std::vector<std::string> grammar_text(int lines, std::uint64_t seed);
