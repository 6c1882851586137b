// Sidecars: what is read, and how the broken ones are refused.
#include "mttt/io/alignment.hpp"

#include "scratch.hpp"

using namespace mttt;

TEST_CASE("alignment: words, times, speakers") {
  const Scratch scratch;
  const auto path = scratch.put("a.json", R"({"alignments": [["caf\u00e9", [0, 0.5], "SPEAKER_MAIN"],
    ["then", [1.25, 1.25], "SPEAKER_00"]], "text_conditions": {"mood": "calm"}})");
  const auto words = read_alignment(path);
  REQUIRE(words.size() == 2);
  CHECK(words[0].text == "caf\xc3\xa9");
  CHECK(words[0].start == 0);
  CHECK(words[0].end == 0.5);
  CHECK(words[0].speaker == "SPEAKER_MAIN");
  CHECK(words[1].start == 1.25);
  CHECK(words[1].speaker == "SPEAKER_00");
  CHECK(read_alignment(scratch.put("b.json", R"({"alignments": []})")).empty());
  CHECK(sidecar_of("x/a.b.flac") == "x/a.b.json");
}

TEST_CASE("alignment: what is not a sidecar is refused, with its place") {
  const Scratch scratch;
  check_refused([&] { read_alignment(scratch / "none.json"); }, "no such file");
  const auto refused = [&](const std::string& content, const std::string& words) {
    check_refused([&] { read_alignment(scratch.put("a.json", content)); }, words);
  };
  refused("", "parse error");
  refused(R"({"alignments": [)", "parse error");
  refused("\xff", "parse error");
  refused("[]", "no object");
  refused("{}", "no list 'alignments'");
  refused(R"({"alignments": {}})", "no list 'alignments'");
  const std::string good = R"(["a", [0, 1], "S"], )";
  const auto second = [&](const std::string& word, const std::string& words) {
    refused(R"({"alignments": [)" + good + word + "]}", "a.json, word 1: found " + words);
  };
  second(R"("b")", "'\"b\"'");
  second(R"(["b", [0, 1]])", "'[\"b\",[0,1]]'");
  second(R"(["b", [0, 1], "S", 4])", "'[");
  second(R"([7, [0, 1], "S"])", "'[7");
  second(R"(["b", [0], "S"])", "'[");
  second(R"(["b", ["0", "1"], "S"])", "'[");
  second(R"(["b", [null, 1], "S"])", "'[");
  second(R"(["b", [0, 1], null])", "'[");
  second(R"(["b", [-0.1, 1], "S"])", "'b' from -0.1 to 1 s");
  second(R"(["b", [2, 1.5], "S"])", "'b' from 2 to 1.5 s");
  refused(R"({"alignments": [["b", [0, 1e999], "S"]]})", "number overflow");
}
