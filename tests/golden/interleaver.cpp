// Text streams against the published interleaver, over random words, rates, delays and options.
#include "mttt/data/interleaver.hpp"

#include <fstream>

#include "catch.hpp"

TEST_CASE("the text streams of the published interleaver") {
  using namespace mttt;
  std::ifstream file(std::string(MTTT_TEST_DATA) + "/interleaver.txt");
  for (std::string comment; file.peek() == '#';) std::getline(file, comment);
  const auto spell = [](const std::string& word) { return std::vector<int>(word.begin(), word.end()); };
  int cases = 0;
  for (double rate; file >> rate; ++cases) {
    Index frames = 0;
    std::int32_t in_word = 0;
    InterleaverOptions options;
    std::size_t words = 0, tokens = 0;
    file >> frames >> in_word >> options.keep_main_only >> options.keep_and_shift >> options.audio_delay >>
        words >> tokens;
    if (in_word != -99) options.in_word_padding = in_word;
    std::vector<std::int32_t> expected(tokens);
    for (auto& token : expected) file >> token;
    expected.resize(
        std::min(tokens, static_cast<std::size_t>(frames)));  // a long negative delay lengthens theirs
    std::vector<Word> list(words);
    for (Word& word : list) file >> word.text >> word.start >> word.end >> word.speaker;
    REQUIRE(file);
    INFO("case " << cases << ": " << frames << " frames at " << rate << ", " << words << " words");
    REQUIRE(text_stream(list, frames, rate, spell, options) == expected);
  }
  CHECK(file.eof());
  CHECK(cases > 200);
}
