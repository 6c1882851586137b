// Hostile models of the text tokenizer: sentencepiece files through our wrapper.
#include <sentencepiece_trainer.h>

#include "fuzz.hpp"
#include "mttt/io/text.hpp"

namespace {
using namespace mttt;
}

void seeds(const std::filesystem::path& folder) {
  const auto text = folder / "text.txt", rules = folder / "rules.tsv";
  fuzz::put(text,
            "the rain came down the hill and the river rose by the mill\nshe asked the miller at nine\n");
  fuzz::put(rules, "41\t61\n42\t62\n43 44\t63 64\n");  // A to a, B to b, CD to cd
  for (const char* type : {"unigram", "bpe", "char", "word"}) {
    for (const bool normalized : {false, true}) {
      const std::string model = std::string(type) + (normalized ? "-rules" : "");
      const auto status = sentencepiece::SentencePieceTrainer::Train(
          "--input=" + text.string() + " --model_prefix=" + (folder / model).string() + " --model_type=" +
          type + " --vocab_size=40 --hard_vocab_limit=false --minloglevel=2 --num_threads=1" +
          (normalized ? " --normalization_rule_tsv=" + rules.string() + " --byte_fallback=" +
                            (type == std::string("unigram") ? "true --vocab_size=300" : "false")
                      : " --normalization_rule_name=identity"));
      if (!status.ok()) std::fprintf(stderr, "%s: %s\n", model.c_str(), status.ToString().c_str());
      std::filesystem::remove(folder / (model + ".vocab"));
    }
  }
  std::filesystem::remove(text), std::filesystem::remove(rules);
}

void try_file(const std::filesystem::path& path, std::span<const std::byte>) {
  fuzz::accepted([&] {
    const auto tokenizer = TextTokenizer::load(path);
    std::vector<int> all;
    for (int id = 0; id < std::min(tokenizer.vocab_size(), 50); ++id) {
      all.push_back(id);
      if (tokenizer.id_to_piece(id).size() > std::size_t{1} << 20) return;
    }
    for (const char* text :
         {"", "the rain ABCD came", "\xff\xfe caf\xc3\xa9 \xe4\xbd\xa0 \xef\xbd\x81 \xc3", "   a\tb\n"})
      fuzz::accepted([&] { tokenizer.decode(tokenizer.encode(text)); });
    fuzz::accepted([&] { tokenizer.decode(all); });
  });
}
