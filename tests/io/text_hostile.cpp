// Models of the tokenizer that would lead sentencepiece out of its own tables: each of them crashed it.
#include <sentencepiece_trainer.h>

#include <cstring>

#include "mttt/io/text.hpp"
#include "scratch.hpp"

namespace {
using namespace mttt;

constexpr const char* sentences = "The rain came down the hill, and the river rose by the mill at nine.\n";

/// A model of single letters whose texts are normalised by `rules`.
std::string model(const std::string& rules) {
  const Scratch scratch;
  const std::string folder = scratch.folder.string();
  scratch.put("text.txt", sentences);
  scratch.put("rules.tsv", "41\t61\n43 44\t63 64\n");  // A to a, CD to cd
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      "--input=" + folder + "/text.txt --model_prefix=" + folder +
      "/m --model_type=char --vocab_size=60 --hard_vocab_limit=false --minloglevel=2 --num_threads=1 " +
      (rules.empty() ? "--normalization_rule_tsv=" + folder + "/rules.tsv"
                     : "--normalization_rule_name=" + rules));
  REQUIRE(status.ok());
  return content_of(scratch / "m.model");
}

/// Field `number` of a message, with fewer than 128 bytes in it.
std::string field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}
std::string piece(const std::string& text, char type) {
  return field(1, field(1, text) + std::string("\x15\0\0\0\0\x18", 6) + type);
}

/// Where the double array of a model begins, and its units.
struct Rules {
  std::size_t at = 0;
  std::vector<std::uint32_t> units;

  explicit Rules(const std::string& bytes) {
    detail::ProtoFields fields(bytes);
    while (fields.next()) {
      detail::ProtoFields inner(fields.bytes);
      while (fields.number == 3 && inner.next()) {
        if (inner.number != 2 || !inner.is_bytes) continue;
        std::uint32_t size = 0;
        std::memcpy(&size, inner.bytes.data(), sizeof size);
        at = static_cast<std::size_t>(inner.bytes.data() - bytes.data()) + sizeof size;
        units.resize(size / 4);
        std::memcpy(units.data(), bytes.data() + at, size);
      }
    }
    REQUIRE(units.size() >= 256);
  }
  std::uint32_t base_of(std::uint32_t node) const {
    const std::uint32_t unit = units[node];
    return node ^ ((unit >> 10) << ((unit & (1u << 9)) >> 6));
  }
  /// The model again, with another unit.
  std::string with(std::string bytes, std::uint32_t node, std::uint32_t unit) const {
    std::memcpy(bytes.data() + at + 4 * node, &unit, sizeof unit);
    return bytes;
  }
};

void check_model_refused(const std::string& bytes, const std::string& words) {
  const Scratch scratch;
  check_refused([&] { TextTokenizer::load(scratch.put("a.model", bytes)).encode("A CD"); }, words);
}
}  // namespace

TEST_CASE("models with rules for characters are taken, large and small") {
  const Scratch scratch;
  for (const std::string name : {"", "identity", "nmt_nfkc", "nfkc_cf"}) {
    INFO(name);
    const auto tokenizer = TextTokenizer::load(scratch.put("a.model", model(name)));
    CHECK(tokenizer.decode(tokenizer.encode("the rain")) == "the rain");
    const std::string a = name == "" || name == "nfkc_cf" ? "a" : "A";
    CHECK((tokenizer.encode("A") == tokenizer.encode("a")) == (a == "a"));
  }
}

TEST_CASE("hostile models: rules that lead out of their table") {
  constexpr const char* out = "rules for characters that lead out of their table";
  const std::string good = model("");
  const Rules rules(good);
  const std::uint32_t a = rules.base_of(0) ^ 'A', c = rules.base_of(0) ^ 'C';
  check_model_refused(rules.with(good, 0, 0xfffffe00u), out);  // children far away
  check_model_refused(rules.with(good, c, (rules.units[c] & 0x1ffu) | 0x7ffffe00u), out);
  check_model_refused(rules.with(good, rules.base_of(a), 0xfffffff0u), out);  // a replacement far away
  check_model_refused(rules.with(good, c, std::uint32_t{'C'} << 10 | std::uint32_t{'C'}),
                      out);  // C follows C for ever
  // The array is said to be longer than all there is.
  std::string longer = good;
  const std::uint32_t size = static_cast<std::uint32_t>(rules.units.size() * 4 + 11);
  std::memcpy(longer.data() + rules.at - 4, &size, 4);
  check_model_refused(longer, out);
  // Any byte may be wrong (here every fifth): then the rules are refused, or lead nowhere else.
  const Scratch scratch;
  for (std::size_t i = 0; i < rules.units.size() * 4; i += 5) {
    for (const char wrong : {'\xff', '\x01', '\x40'}) {
      std::string bytes = good;
      bytes[rules.at + i] = static_cast<char>(bytes[rules.at + i] ^ wrong);
      error_of([&] { TextTokenizer::load(scratch.put("a.model", bytes)).encode("A CD the BCDE"); });
    }
  }
}

TEST_CASE("hostile models: symbols that begin with one another") {
  const auto nested = [](std::size_t count) {
    std::string bytes = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3) + piece("\xe2\x96\x81", 1);
    for (std::size_t length = 1; length <= count; ++length) bytes += piece(std::string(length, 'a'), 4);
    return bytes;
  };
  check_model_refused(nested(65), "over 64 symbols that begin with one another");
  const Scratch scratch;
  const auto tokenizer = TextTokenizer::load(scratch.put("a.model", nested(64)));
  CHECK(tokenizer.encode(std::string(128, 'a')).size() == 3);
}

TEST_CASE("hostile models: damaged fields") {
  const std::string good = piece("<unk>", 2) + piece("a", 1);
  check_model_refused(good + "\x0a\x7f", "damaged fields");
  check_model_refused(good + std::string("\x00\x00", 2), "damaged fields");
  check_model_refused(good + "\x0b", "damaged fields");
  check_model_refused(good + field(1,
                                   "\x0a\x05"
                                   "ab"),
                      "damaged fields");
  check_model_refused(good + std::string(11, '\xff'), "damaged fields");
}
