// The tokenizer of assets/, and the text streams that it makes of the sidecars.
#include "catch.hpp"
#include "mttt/data/interleaver.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/text.hpp"
#include "mttt/presets/tiny.hpp"

namespace {
using namespace mttt;
const std::filesystem::path assets = std::filesystem::path(MTTT_SOURCE_DIR) / "assets";
}  // namespace

TEST_CASE("assets: the tokenizer is that of the tiny preset") {
  const auto tokenizer = TextTokenizer::load(assets / "tokenizer.model");
  CHECK(tokenizer.vocab_size() == presets::tiny.text_card);
  CHECK(tokenizer.unk_id() == presets::tiny.existing_text_end_padding_id);
  CHECK(tokenizer.bos_id() == 1);
  CHECK(tokenizer.eos_id() == 2);
  CHECK(tokenizer.pad_id() == presets::tiny.existing_text_padding_id);
  CHECK(std::filesystem::file_size(assets / "tokenizer.model") < 300'000);
  CHECK(tokenizer.encode("Mister DASHWOOD") == tokenizer.encode("mister dashwood"));
  CHECK(tokenizer.decode(tokenizer.encode("Jazz quips vex them")) == "jazz quips vex them");
}

TEST_CASE("assets: the words of the sidecars survive as text streams, nearly whole") {
  const auto tokenizer = TextTokenizer::load(assets / "tokenizer.model");
  std::size_t spoken = 0, kept = 0;
  for (const auto& item : std::filesystem::directory_iterator(assets / "train")) {
    if (item.path().extension() != ".json") continue;
    const auto encode = [&](const std::string& word) {
      const auto tokens = tokenizer.encode(word);
      REQUIRE(std::find(tokens.begin(), tokens.end(), tokenizer.unk_id()) == tokens.end());
      spoken += tokens.size();
      return tokens;
    };
    for (const auto token :
         text_stream(read_alignment(item.path()), 350, 12.5, encode, {.keep_main_only = true}))
      kept += token > 3;
  }
  INFO(kept << " of " << spoken << " tokens");
  CHECK(spoken > 147);              // at least one a word
  CHECK(kept * 100 > spoken * 95);  // the rest gave way to a word that started too early
}
