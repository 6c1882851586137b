// The program encode, from sound files to codes: what it writes, leaves alone, makes again and refuses. And the
// program make_data, whose recordings it reads.
#include <sys/wait.h>

#include <cmath>
#include <cstdio>
#include <map>

#include "../io/scratch.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/manifest.hpp"
#include "mttt/io/text.hpp"

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

TEST_CASE("make_data: spoken conversations, the same each time, that encode reads") {
  if (!std::filesystem::exists(MTTT_BIN_DIR "/make_data")) {
    WARN("make_data was not built, for want of flite (flite1-dev): left out");
    return;
  }
  const Workshop shop;
  const auto make = [&](const std::string& arguments) {
    const std::string command = MTTT_BIN_DIR "/make_data " + arguments + " --hours 0.001 >" + shop.at("log");
    INFO(command);
    REQUIRE(std::system(command.c_str()) == 0);
  };
  const std::string memory = "memory --delays 5 --facts 1 --values 8 --seed 4 --output ";
  make(memory + shop.at("memory"));
  make(memory + shop.at("again") + " --jobs 1");
  make("dialogue --length 10 --test --held-out-voices --output " + shop.at("dialogue"));
  for (const char* file : {"train.jsonl", "train/000000.wav", "train/000000.json"})
    CHECK(content_of(shop.scratch / "memory" / file) == content_of(shop.scratch / "again" / file));
  CHECK(content_of(shop.scratch / "dialogue/test/000000.json").find("\"voice\": \"awb") != std::string::npos);

  for (const char* name : {"memory/train", "dialogue/test"}) {
    const auto entries = read_manifest(shop.scratch / (std::string(name) + ".jsonl"));
    REQUIRE(entries.size() == 1);
    const Audio audio = read_audio(entries[0].recording);
    CHECK(audio.channels == 2);
    CHECK(audio.sample_rate == 24000);
    CHECK(audio.seconds() == Approx(entries[0].duration).margin(0.001));
    double power[2] = {}, samples[2] = {}, rest[2] = {}, highest = 0;
    std::vector<char> spoken(audio.samples.size());
    const auto words = read_alignment(sidecar_of(entries[0].recording));
    REQUIRE(words.size() > 8);
    for (const Word& word : words) {
      INFO(word.text);
      CHECK(word.end < audio.seconds());
      for (auto t = static_cast<std::size_t>(word.start * 24000); static_cast<double>(t) < word.end * 24000;
           ++t)
        spoken[2 * t + (word.speaker != main_speaker)] = 1;
    }
    for (std::size_t i = 0; i < spoken.size(); ++i) {
      const double x = static_cast<double>(audio.samples[i]);
      highest = std::max(highest, std::abs(x));
      (spoken[i] ? power : rest)[i % 2] += x * x;
      samples[i % 2] += spoken[i];
    }
    CHECK(highest < 0.95);
    // A voice is where its words are, and as loud as the other.
    for (const int c : {0, 1}) {
      CHECK(power[c] > 20 * rest[c]);
      CHECK(10 * std::log10(power[c] / samples[c]) == Approx(-23).margin(1.5));
    }
  }

  const auto json = nlohmann::json::parse(content_of(shop.scratch / "memory/train/000000.json"));
  REQUIRE(json.at("questions").size() == 1);
  const auto& question = json["questions"][0];
  const auto& answer = json["alignments"].at(question.at("answer_word").get<std::size_t>());
  CHECK(answer[0] == question.at("value"));
  CHECK(answer[1] == question.at("answer"));
  CHECK(answer[2] == "SPEAKER_MAIN");
  // The value is spoken by itself: what comes before it must not tell it by its sound.
  const auto& before = json["alignments"].at(question["answer_word"].get<std::size_t>() - 1);
  CHECK(before[0] == "is");
  CHECK(answer[1][0].get<double>() - before[1][1].get<double>() > 0.03);
  const double delay = question.at("delay");
  CHECK(delay ==
        Approx(question["answer"][0].get<double>() - question["heard"][1].get<double>()).margin(0.002));
  CHECK(delay == Approx(5).margin(2));
  CHECK(question["told"][1] <= question["heard"][1]);
  CHECK(question.at("held_out") == false);

  const std::string encode = MTTT_BIN_DIR "/encode --codec " + shop.at("codec.safetensors") +
                             " --tokenizer " + MTTT_SOURCE_DIR +
                             "/assets/tokenizer.model --init-codec 3 --data " +
                             shop.at("memory/train.jsonl") + " >" + shop.at("log");
  REQUIRE(std::system(encode.c_str()) == 0);
  std::vector<std::string> skipped;
  const auto sources = load_data_sources(shop.at("memory/train.jsonl"), skipped);
  CHECK(skipped.empty());
  CHECK(sources.at(0).recordings.at(0).activity->user > 0.2);
}

TEST_CASE("make_data: conversations put together of sentences' codes") {
  if (!std::filesystem::exists(MTTT_BIN_DIR "/make_data")) return;  // told above
  const Workshop shop;
  const auto run = [&](const std::string& program, const std::string& arguments) {
    const std::string command = MTTT_BIN_DIR "/" + program + " " + arguments + " >" + shop.at("log");
    INFO(command);
    REQUIRE(std::system(command.c_str()) == 0);
  };
  const std::string coder = " --codec " + shop.at("codec.safetensors") + " --tokenizer " + MTTT_SOURCE_DIR +
                            "/assets/speech_tokenizer.model ";
  const std::string memory = "memory --delays 5 --facts 1 --seed 4 --hours 0.001 --output ";
  run("make_data", memory + shop.at("sound"));
  run("encode", coder + "--preset mimi_small --init-codec 3 --data " + shop.at("sound/train.jsonl"));
  run("make_data", memory + shop.at("codes") + coder);
  run("make_data", memory + shop.at("again") + coder + "--jobs 1");
  const char* name = "train.codes/train_000000.safetensors";
  CHECK(content_of(shop.scratch / "codes" / name) == content_of(shop.scratch / "again" / name));

  const auto entries = read_manifest(shop.scratch / "codes/train.jsonl");
  REQUIRE(entries.size() == 1);
  const CodedRecording coded = load_codes(entries[0].codes),
                       recorded = load_codes(shop.scratch / "sound" / name);
  CHECK(coded.codec == recorded.codec);
  CHECK(coded.streams == recorded.streams);
  CHECK(static_cast<double>(coded.frames) / 12.5 == Approx(entries[0].duration).margin(0.001));
  CHECK(std::abs(coded.frames - recorded.frames) < 12);

  // Words where the file beside says, in the model's text and in both voices; else silence, which is one code.
  const auto words = read_alignment(sidecar_of(entries[0].recording));
  REQUIRE(words.size() > 8);
  for (const bool model : {true, false}) {
    const auto voice = coded.stream(model ? 1 : 9);
    const std::int32_t silence = coded.stream(1)[0];  // nobody begins at once
    std::vector<char> spoken(voice.size());
    for (const Word& word : words) {
      if ((word.speaker == main_speaker) != model) continue;
      const auto first = static_cast<std::size_t>(word.start * 12.5);
      std::fill(spoken.begin() + static_cast<std::ptrdiff_t>(first),
                spoken.begin() + static_cast<std::ptrdiff_t>(word.end * 12.5) + 1, true);
      if (model) CHECK(coded.stream(0)[first] > 3);
    }
    double heard = 0, said = 0, quiet = 0, rest = 0;
    for (std::size_t t = 0; t < voice.size(); ++t) {
      (spoken[t] ? heard : quiet) += (voice[t] != silence) == (spoken[t] != 0);
      (spoken[t] ? said : rest) += 1;
    }
    CHECK(heard > 0.6 * said);
    CHECK(quiet > 0.9 * rest);
  }
}

TEST_CASE("make_data: pairs of words, spoken and as text alone") {
  if (!std::filesystem::exists(MTTT_BIN_DIR "/make_data")) return;  // told above
  const Workshop shop;
  const auto run = [&](const std::string& command) {
    INFO(command);
    REQUIRE(std::system((command + " >" + shop.at("log")).c_str()) == 0);
  };
  const std::string pairs =
      MTTT_BIN_DIR "/make_data pairs --keys 4 --values 6 --hours 0.001 --codec " MTTT_SOURCE_DIR
                   "/assets/mimi_small.safetensors --tokenizer " MTTT_SOURCE_DIR
                   "/assets/speech_tokenizer.model --output ";
  const TextTokenizer tokenizer = TextTokenizer::load(MTTT_SOURCE_DIR "/assets/speech_tokenizer.model");
  for (const bool silent : {false, true}) {
    run(pairs + shop.at("pairs") + (silent ? " --silent 1 --pace 1:3 --length 12" : " --length 20"));
    const auto entry = read_manifest(shop.scratch / "pairs/train.jsonl").at(0);
    const CodedRecording coded = load_codes(entry.codes);
    const WholeFile file(sidecar_of(entry.recording));
    const auto questions = detail::parse_json(file.text()).at("questions");
    REQUIRE(questions.size() > (silent ? 20u : 3u));
    std::map<std::string, std::string> of;  // a word keeps the word that goes with it
    for (const auto& q : questions) {
      const auto key = q.at("attribute").get<std::string>(), value = q.at("value").get<std::string>();
      CHECK(of.emplace(key, value).first->second == value);
      const auto frame = static_cast<std::size_t>(q.at("answer").at(0).get<double>() * coded.frame_rate);
      CHECK(coded.stream(0)[frame] == tokenizer.encode(value).at(0));
    }
    const auto voice = coded.stream(1);
    const bool still = std::all_of(voice.begin(), voice.end(), [&](auto code) { return code == voice[0]; });
    CHECK(still == silent);
  }
}

TEST_CASE("make_data: people's sounds become recordings, as loud as other voices") {
  if (!std::filesystem::exists(MTTT_BIN_DIR "/make_data")) return;  // told above
  const Workshop shop;
  const std::string speakers =
      " anna=" MTTT_SOURCE_DIR "/assets/train bert=" + shop.scratch.folder.string() + ":a.";
  const std::string command = MTTT_BIN_DIR "/make_data speech --keep bert --output " + shop.at("people");
  REQUIRE(std::system((command + " --minutes 0.5" + speakers + " >" + shop.at("log")).c_str()) == 0);
  REQUIRE(std::system((command + " --test" + speakers + " >" + shop.at("log")).c_str()) == 0);
  const auto train = read_manifest(shop.scratch / "people/train.jsonl"),
             test = read_manifest(shop.scratch / "people/test.jsonl");
  REQUIRE(train.size() >= 1);
  REQUIRE(test.size() == 1);
  CHECK(train[0].recording.string().find("/train/anna/") != std::string::npos);
  // A second of sound on the left, a second on the right: both are heard.
  const Audio audio = read_audio(test[0].recording);
  CHECK(audio.channels == 1);
  CHECK(audio.seconds() < 2.8);
  double sum = 0, peak = 0;
  for (const float x : audio.samples) {
    const double wide = static_cast<double>(x);
    sum += wide * wide, peak = std::max(peak, std::abs(wide));
  }
  CHECK(peak < 0.95);
  CHECK(10 * std::log10(sum / static_cast<double>(audio.samples.size())) == Approx(-24).margin(2));
}
