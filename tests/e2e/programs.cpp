// encode, train and stream, as a person types them, on the recordings that ship: the way from sound to reply.
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "../io/scratch.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/safetensors.hpp"

namespace {

const std::string assets = MTTT_SOURCE_DIR "/assets";

/// A folder with codes and a trained model, made once for all cases of this file.
struct Studio {
  Scratch scratch;

  int run(const std::string& program, const std::string& arguments) const {
    const std::string command =
        "cd '" + scratch.folder.string() + "' && '" MTTT_BIN_DIR "/" + program + "' " + arguments;
    return WEXITSTATUS(std::system((command + " >log 2>&1").c_str()));
  }
  std::string log() const { return content_of(scratch / "log"); }
  nlohmann::json json(const std::string& name) const {
    return nlohmann::json::parse(content_of(scratch / name));
  }
  /// Streams `input`; the tokens that were said.
  nlohmann::json stream(const std::string& input, const std::string& arguments,
                        const std::string& model = "ttt") const {
    const int status =
        run("stream", "--model " + model + " --codec mimi.safetensors --tokenizer '" + assets +
                          "/tokenizer.model' --json out.json " + arguments + " '" + input + "' out.wav");
    INFO(log());
    REQUIRE(status == 0);
    return json("out.json").at("tokens");
  }

  Studio() {
    REQUIRE(run("encode", "--codec mimi.safetensors --init-codec 1 --tokenizer '" + assets +
                              "/tokenizer.model' --output codes '" + assets + "/train/'*.flac") == 0);
    REQUIRE(run("train", small + " --output ttt") == 0);
  }
  const std::string small =
      "--preset tiny --data codes --max-steps 6 --batch-size 2 --segment-frames 40 --ckpt-freq 3 --log-freq "
      "2";
};

const Studio& studio() {
  static const Studio one;
  return one;
}

}  // namespace

TEST_CASE("train: a run that was stopped and resumed ends with the same bits", "[e2e]") {
  const Studio& s = studio();
  // The schedule spans all six steps, so the first half is the same run, ended after its first checkpoint.
  REQUIRE(s.run("train", s.small + " --output again") == 0);
  std::filesystem::remove(s.scratch / "again/step_000006.safetensors");
  std::filesystem::remove(s.scratch / "again/model.safetensors");
  REQUIRE(s.run("train", s.small + " --output again --resume") == 0);
  CHECK(s.log().find("resumed at step 3") != std::string::npos);
  const std::string whole = content_of(s.scratch / "ttt/model.safetensors");
  REQUIRE(!whole.empty());
  CHECK((whole == content_of(s.scratch / "again/model.safetensors")));
  CHECK((content_of(s.scratch / "ttt/step_000006.safetensors") ==
         content_of(s.scratch / "again/step_000006.safetensors")));
}

TEST_CASE("stream: gates at 0 say what the model without TTT says", "[e2e]") {
  const Studio& s = studio();
  const std::string question = assets + "/question.flac";
  const auto open = s.stream(question, "--greedy --force-gating-alpha 0.5");
  const auto silent = s.stream(question, "--greedy --force-gating-alpha 0");
  const auto base = s.stream(question, "--greedy --without-ttt");
  REQUIRE(base.size() == 138 - 1);  // frames of the recording, less the delay
  CHECK(silent == base);
  CHECK(open != base);
}

TEST_CASE("stream: the same seed says the same, another seed does not", "[e2e]") {
  const Studio& s = studio();
  const std::string question = assets + "/question.flac";
  const auto first = s.stream(question, "--seed 7");
  CHECK(first == s.stream(question, "--seed 7"));
  CHECK(first != s.stream(question, "--seed 8"));
  CHECK(first != s.stream(question, "--seed 7 --context 2"));
}

TEST_CASE("stream: a saved conversation goes on as if it had not been interrupted", "[e2e]") {
  const Studio& s = studio();
  const auto sound = mttt::load_mono(assets + "/question.flac", 24000, mttt::Convert::yes);
  const std::ptrdiff_t cut = 1920 * 37;  // inside a mini-batch of the TTT layers
  const auto piece = [&](const char* name, auto begin, auto end) {
    mttt::write_audio(s.scratch / name, {std::vector<float>(begin, end), 1, 24000},
                      mttt::SampleFormat::float32);
  };
  piece("whole.wav", sound.samples.begin(), sound.samples.end());
  piece("first.wav", sound.samples.begin(), sound.samples.begin() + cut);
  piece("second.wav", sound.samples.begin() + cut, sound.samples.end());
  const auto whole = s.stream("whole.wav", "--seed 3");
  auto pieces = s.stream("first.wav", "--seed 3 --save-state state");
  for (const auto& frame : s.stream("second.wav", "--load-state state")) pieces.push_back(frame);
  CHECK(pieces == whole);
}

TEST_CASE("stream: what it writes is sound, text and figures", "[e2e]") {
  const Studio& s = studio();
  s.stream(assets + "/question.flac", "--transcript words.txt");
  const auto out = s.json("out.json");
  CHECK(out.at("frames") == 138);
  CHECK(out.at("ms_per_frame").at("p99") >= out.at("ms_per_frame").at("p50"));
  CHECK(out.at("real_time_factor") > 0);
  CHECK(out.at("peak_memory_mb") > 1);
  REQUIRE(out.at("ttt").size() == 3);
  for (const auto& layer : out.at("ttt")) {
    CHECK(layer.at("gate_opening").get<double>() == Approx(0.1).epsilon(0.2));
    CHECK(layer.at("share_of_stream").get<double>() > 0);
  }
  const auto reply = mttt::read_audio(s.scratch / "out.wav");
  mttt::expect_format(reply, 24000, 1);
  CHECK(reply.frames() == 137 * 1920);
  CHECK(std::any_of(reply.samples.begin(), reply.samples.end(), [](float x) { return x != 0; }));
  CHECK(content_of(s.scratch / "words.txt") == out.at("text").get<std::string>() + "\n");
}

TEST_CASE("programs end with a clear error and write nothing", "[e2e]") {
  const Studio& s = studio();
  const std::string whole = content_of(s.scratch / "ttt/model.safetensors");
  s.scratch.put("cut.safetensors", whole.substr(0, whole.size() / 2));
  std::string nan = whole;
  const float bad = NAN;
  std::memcpy(nan.data() + nan.size() - sizeof bad, &bad, sizeof bad);
  s.scratch.put("nan.safetensors", nan);
  s.scratch.put("noise.wav", "no sound");
  const std::string tail = " --codec mimi.safetensors --tokenizer '" + assets + "/tokenizer.model' ";
  const std::string question = "'" + assets + "/question.flac' reply.wav";
  const std::pair<std::string, const char*> wrong[] = {
      {"stream --model cut.safetensors" + tail + question, "cut.safetensors"},
      {"stream --model nan.safetensors" + tail + question, "nan"},
      {"stream --model missing" + tail + question, "missing"},
      {"stream --model mimi.safetensors" + tail + question, "a model that one of the compiled presets fits"},
      {"stream --model ttt/model.safetensors" + tail + "noise.wav reply.wav", "noise.wav"},
      {"stream --model ttt/model.safetensors --load-state mimi.safetensors" + tail + question, "state"},
      {"train --data nowhere --output run", "nowhere"},
      {"train --data codes --preset tiny_without_ttt --output ttt --resume --max-steps 9", "config field"},
  };
  for (const auto& [command, words] : wrong) {
    const auto space = command.find(' ');
    INFO(command);
    CHECK(s.run(command.substr(0, space), command.substr(space + 1)) == 1);
    INFO(s.log());
    CHECK(s.log().find(words) != std::string::npos);
    CHECK(!std::filesystem::exists(s.scratch / "reply.wav"));
  }
}
