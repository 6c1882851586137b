// The text tokenizer, on a small model trained here.
#include "mttt/io/text.hpp"

#include <sentencepiece_trainer.h>

#include <algorithm>
#include <limits>
#include <sstream>

#include "scratch.hpp"

namespace {

constexpr const char* sentences =
    "The rain came down the hill and the river rose by the mill.\n"
    "She asked the miller whether the bridge would hold until the morning.\n"
    "He listened, and the water sang below the boards.\n"
    "By the morning the rain had gone and the river was quiet again.\n"
    "The bridge had held, and the miller went down the hill to tell her.\n"
    "They walked along the river and talked about the water and the rain.\n"
    "A small boat came by, and the boatman asked them for the time.\n"
    "It was nine by the clock of the mill, and ten by the bells of the town.\n";

/// The bytes of a model of 120 pieces with the special tokens of Moshi's: unk 0, bos 1, eos 2, pad 3.
const std::string& model() {
  static const std::string bytes = [] {
    const Scratch scratch;
    scratch.put("text.txt", sentences);
    const std::string folder = scratch.folder.string();
    const auto status = sentencepiece::SentencePieceTrainer::Train(
        "--input=" + folder + "/text.txt --model_prefix=" + folder +
        "/m --vocab_size=120 --hard_vocab_limit=false --pad_id=3 --minloglevel=2 --num_threads=1");
    REQUIRE(status.ok());
    return content_of(scratch / "m.model");
  }();
  return bytes;
}

}  // namespace

TEST_CASE("text survives the way to tokens and back", "[io]") {
  Scratch scratch;
  const auto tokenizer = mttt::TextTokenizer::load(scratch.put("a.model", model()));
  CHECK(tokenizer.vocab_size() > 40);
  CHECK(tokenizer.vocab_size() <= 120);
  CHECK(tokenizer.unk_id() == 0);
  CHECK(tokenizer.bos_id() == 1);
  CHECK(tokenizer.eos_id() == 2);
  CHECK(tokenizer.pad_id() == 3);
  CHECK(tokenizer.id_to_piece(1) == "<s>");

  std::istringstream in(sentences);
  for (std::string line; std::getline(in, line);) {
    const auto ids = tokenizer.encode(line);
    CHECK(ids.size() < line.size());
    CHECK(std::all_of(ids.begin(), ids.end(), [&](int id) { return id > 3 && id < tokenizer.vocab_size(); }));
    CHECK(tokenizer.decode(ids) == line);
    std::string pieces;  // the pieces themselves spell the line, with U+2581 for a space
    for (const int id : ids) pieces += tokenizer.id_to_piece(id);
    for (std::size_t at; (at = pieces.find("\u2581")) != pieces.npos;) pieces.replace(at, 3, " ");
    CHECK(pieces == " " + line);
  }
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.decode({}).empty());
  CHECK_FALSE(tokenizer.encode("\xff\xfe bytes that are not UTF-8 \xc3").empty());
  const auto unknown = tokenizer.encode("\u4f60");
  CHECK(std::count(unknown.begin(), unknown.end(), 0) == 1);
}

TEST_CASE("ids outside the vocabulary are refused", "[io]") {
  Scratch scratch;
  const auto tokenizer = mttt::TextTokenizer::load(scratch.put("a.model", model()));
  for (const int id : {-1, tokenizer.vocab_size(), 32000, std::numeric_limits<int>::max()}) {
    check_refused([&] { tokenizer.id_to_piece(id); },
                  "a.model: found token " + std::to_string(id) + "; expected an id from 0 to ");
    check_refused([&] { tokenizer.decode(std::vector<int>{5, id}); }, "found token " + std::to_string(id));
  }
}

TEST_CASE("what is not a model is refused", "[io]") {
  Scratch scratch;
  const auto load = [&](const std::filesystem::path& path) {
    return [path] { mttt::TextTokenizer::load(path); };
  };
  check_refused(load(scratch / "none.model"), "no such file");
  check_refused(load(scratch.folder), "a folder");
  check_refused(load(scratch.put("empty.model", "")), "an empty file; expected a sentencepiece model");
  check_refused(load(scratch.put("text.model", "this is no model")), "expected a sentencepiece model");
  check_refused(load(scratch.put("zeros.model", std::string(1000, '\0'))), "expected a sentencepiece model");
  // A piece without letters, appended to the list: {piece: "", type: user defined}.
  check_refused(load(scratch.put("piece.model", model() + std::string("\x0a\x04\x0a\x00\x18\x04", 6))),
                "expected a sentencepiece model");
  // A cut between two fields may leave a smaller but sound model; anything else must be an Error, never a
  // crash.
  int refused = 0;
  for (std::size_t length = 1; length < model().size(); length += model().size() / 300) {
    const auto path = scratch.put("cut.model", model().substr(0, length));
    if (!error_of([&] { mttt::TextTokenizer::load(path).encode("the rain"); }).empty()) ++refused;
  }
  CHECK(refused > 100);
}
