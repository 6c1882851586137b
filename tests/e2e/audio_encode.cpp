// The program encode, from sound files to codes: what it writes, leaves alone, makes again and refuses.
#include <sys/wait.h>

#include <cmath>
#include <cstdio>

#include "../io/scratch.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/codes.hpp"

namespace {
using namespace mttt;

struct Ran {
  int status;
  std::string output;
};

struct Workshop {
  Scratch scratch;

  Workshop() {
    for (const char* name : {"a", "b"}) {
      Audio audio{{}, 2, 24000};
      for (int i = 0; i < 24000 * 2 + 100; ++i) {  // 25 frames and a bit
        const double t = i / 24000.0, loud = name[0] == 'a' ? 0.4 : 0.2;
        audio.samples.push_back(static_cast<float>(t < 1 ? loud * std::sin(700 * t + 3000 * t * t) : 0));
        audio.samples.push_back(static_cast<float>(t < 1 ? 0 : loud * std::sin(1000 * t)));
      }
      write_audio(scratch / (std::string(name) + ".flac"), audio);
    }
    scratch.put("a.json",
                R"({"alignments": [["he", [0.1, 0.3], "SPEAKER_MAIN"], ["no", [1, 2], "SPEAKER_1"]]})");
    scratch.put("b.json", R"({"alignments": []})");
  }
  std::string at(const std::string& name) const { return (scratch / name).string(); }

  Ran run(const std::string& recordings, const std::string& options = "--init-codec 3") const {
    const std::string command = std::string(MTTT_BIN_DIR) + "/encode --codec " + at("codec.safetensors") +
                                " --tokenizer " + MTTT_SOURCE_DIR + "/assets/tokenizer.model --output " +
                                at("codes") + " " + options + " " + recordings + " 2>&1";
    std::FILE* pipe = ::popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::string output;
    for (int c; (c = std::fgetc(pipe)) != EOF;) output += static_cast<char>(c);
    return {WEXITSTATUS(::pclose(pipe)), output};
  }
  CodedRecording codes(const std::string& name) const {
    return load_codes(scratch / ("codes/" + name + ".safetensors"));
  }
};

bool says(const Ran& ran, const std::string& words) { return ran.output.find(words) != std::string::npos; }
}  // namespace

TEST_CASE("encode: codes of both voices and the text, once and the same each time") {
  const Workshop shop;
  const std::string both = shop.at("a.flac") + " " + shop.at("b.flac");
  const Ran first = shop.run(both);
  INFO(first.output);
  REQUIRE(first.status == 0);
  CHECK(says(first, "training of this codec: none"));
  CHECK(says(first, "entropy"));

  const CodedRecording a = shop.codes("a"), b = shop.codes("b");
  CHECK(a.streams == 17);
  CHECK(a.frames == 26);
  CHECK(a.frame_rate == 12.5);
  CHECK(a.text_card == 512);
  CHECK(a.card == 256);
  CHECK(a.codec == b.codec);
  CHECK(a.source != b.source);
  const auto text = a.stream(0);
  CHECK(text[0] == 0);  // padding ends: the word starts at 0.1 s, in frame 1
  CHECK(text[1] > 3);   // "he"
  CHECK(std::count(text.begin(), text.end(), 3) >= 22);
  CHECK(std::count(b.stream(0).begin(), b.stream(0).end(), 3) == 26);
  CHECK(entropy(a.stream(1)) > 2);  // the left voice glides upwards in 13 frames
  // The user is silent for the first second of both recordings.
  for (std::size_t t = 0; t < 12; ++t) CHECK(a.stream(9)[t] == b.stream(9)[t]);
  CHECK(a.stream(9)[20] != b.stream(9)[20]);

  const Ran second = shop.run(both);
  CHECK(second.status == 0);
  CHECK(says(second, "a.safetensors: 26 frames, unchanged"));
  CHECK(says(second, "b.safetensors: 26 frames, unchanged"));

  shop.scratch.put("b.json", R"({"alignments": [["he", [0.5, 0.7], "SPEAKER_MAIN"]]})");
  const Ran third = shop.run(both);
  CHECK(says(third, "a.safetensors: 26 frames, unchanged"));
  CHECK(says(third, "b.safetensors: 26 frames, 1 tokens of text"));
  CHECK(shop.codes("b").stream(0)[6] == text[1]);

  // The same seed makes the same codec, and another one other codes.
  const std::string codec = content_of(shop.scratch / "codec.safetensors");
  std::filesystem::remove(shop.scratch / "codec.safetensors");
  REQUIRE(shop.run(both).status == 0);
  CHECK(content_of(shop.scratch / "codec.safetensors") == codec);
  std::filesystem::remove(shop.scratch / "codec.safetensors");
  const Ran other = shop.run(both, "--init-codec 4");
  CHECK(!says(other, "unchanged"));
  CHECK(shop.codes("a").codec != a.codec);
}

TEST_CASE("encode: what cannot be encoded is refused, and nothing is written for it") {
  const Workshop shop;
  const auto refused = [&](const Ran& ran, const std::string& words) {
    INFO(ran.output);
    CHECK(ran.status == 1);
    CHECK(says(ran, words));
    CHECK(says(ran, "; expected "));
  };
  refused(shop.run(shop.at("a.flac"), ""), "codec.safetensors: found no such file");
  write_audio(shop.scratch / "mono.wav", {std::vector<float>(24000), 1, 24000});
  shop.scratch.put("mono.json", R"({"alignments": []})");
  refused(shop.run(shop.at("mono.wav")), "1 channel");
  REQUIRE(shop.run(shop.at("a.flac")).status == 0);
  refused(shop.run(shop.at("mono.wav")), "1 channel");
  refused(shop.run(shop.at("a.flac") + " " + shop.at("a.flac")), "two recordings of that name");
  std::filesystem::remove(shop.scratch / "b.json");
  refused(shop.run(shop.at("b.flac")), "b.json: found no such file");
  CHECK(std::distance(std::filesystem::directory_iterator(shop.scratch / "codes"), {}) == 1);
}
