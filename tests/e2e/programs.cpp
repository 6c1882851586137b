// encode, train and stream, as a person types them, on the recordings that ship: the way from sound to reply.
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "../io/scratch.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/codes.hpp"
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
      "2 --inner-loss-freq 2";
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

TEST_CASE("train: the inner losses of every TTT layer are in the metrics", "[e2e]") {
  const Studio& s = studio();
  std::istringstream lines(content_of(s.scratch / "ttt/metrics.jsonl"));
  int looked = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto json = nlohmann::json::parse(line);
    if (!json.contains("inner_loss_0_layer_1")) continue;
    ++looked;
    for (const std::string layer : {"_layer_1", "_layer_2", "_layer_3"}) {
      CHECK(json.at("inner_loss_0" + layer).get<double>() >
            json.at("inner_loss_after" + layer).get<double>());
      CHECK(json.at("inner_loss_prev" + layer).get<double>() > 0);
      CHECK(json.at("inner_violations" + layer).get<double>() <= 0.5);
    }
  }
  CHECK(looked == 4);  // of steps 1, 2, 4 and 6
  CHECK(s.run("report", "--run ttt=ttt/metrics.jsonl --output training.html") == 0);
  CHECK(content_of(s.scratch / "training.html").find("inner losses, layer 3") != std::string::npos);
}

namespace {

/// Lines of a file of comma separated values.
std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream file(content_of(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

/// A command of diagnose; its page.
std::string diagnosed(const std::string& command, const std::string& arguments, int status = 0) {
  const Studio& s = studio();
  const int found = s.run("diagnose", command + " --model ttt --output d " + arguments);
  INFO(s.log());
  REQUIRE(found == status);
  const std::string page = content_of(s.scratch / ("d/" + command + ".html"));
  REQUIRE(page.find("class=\"note\"") != page.npos);  // the verdict
  CHECK(page.find("http:") == page.npos);
  CHECK(page.find("https:") == page.npos);
  return page;
}

}  // namespace

TEST_CASE("diagnose figure5: losses, verdicts, figures and numbers", "[e2e]") {
  const Studio& s = studio();
  const std::string page = diagnosed("figure5", "--max-frames 40 codes");
  CHECK(page.find("Layer 3: inner losses") != page.npos);
  const auto lines = lines_of(s.scratch / "d/figure5.csv");
  REQUIRE(lines.size() == 1 + 5 * 3 * 40);  // recordings, layers, frames
  CHECK(lines[0] ==
        "recording,layer,frame,l_w0,l_prev,l_after,drift,base_norm,ttt_norm,gated_norm,mean_abs_tanh_alpha");
  CHECK(content_of(s.scratch / "d/figure5.txt").find("Layer 2: ") != std::string::npos);
  for (const char* name : {"losses", "improvement", "benefit", "drift", "norms"}) {
    const std::string stem = s.scratch / (std::string("d/figure5_layer_1_") + name);
    CHECK(content_of(stem + ".svg").starts_with("<svg "));
    CHECK(content_of(stem + ".png").starts_with("\x89PNG"));
  }
  // A sound, coded here, is a recording like any other.
  diagnosed("figure5", "--max-frames 32 --codec mimi.safetensors '" + assets + "/question.flac'");
  CHECK(lines_of(s.scratch / "d/figure5.csv").size() == 1 + 3 * 32);
}

TEST_CASE("diagnose gates: openings and shares", "[e2e]") {
  diagnosed("gates", "--max-frames 40 codes");
  const auto lines = lines_of(studio().scratch / "d/gates.csv");
  REQUIRE(lines.size() == 4);
  for (std::size_t l = 1; l < 4; ++l) {
    CHECK(lines[l].starts_with(std::to_string(l) + ",0."));
    CHECK(std::stod(lines[l].substr(2)) == Approx(0.1).epsilon(0.2));
  }
}

TEST_CASE("diagnose sweep: what it says with its gates forced", "[e2e]") {
  const std::string page =
      diagnosed("sweep", "codes --max-frames 40 --alpha 0 2 --temp-text 0.5 1 --tokenizer '" + assets +
                             "/tokenizer.model' --codec mimi.safetensors");
  CHECK(page.find("0: the base model") != page.npos);
  const auto lines = lines_of(studio().scratch / "d/sweep.csv");
  REQUIRE(lines.size() >= 1 + 3 * 2);
  CHECK(lines[0].starts_with("alpha,text temp.,text loss,audio loss,"));
}

TEST_CASE("diagnose context: the loss by position, with and without memory", "[e2e]") {
  diagnosed("context", "--max-frames 48 --window 16 --reset-every 20 codes");
  const auto lines = lines_of(studio().scratch / "d/context.csv");
  REQUIRE(lines.size() == 1 + 4 * 3);
  for (std::size_t i = 1; i <= 3; ++i)  // as trained, over itself
    CHECK(lines[i].ends_with(",0,0"));
  CHECK(lines[4].starts_with("TTT frozen at W_0,0,16,5,"));
  CHECK(!lines[4].ends_with(",0,0"));
}

TEST_CASE("diagnose recall: what a model was told, asked later", "[e2e]") {
  const Studio& s = studio();
  std::filesystem::create_directories(s.scratch / "asked");
  int recordings = 0;
  for (const auto& entry : std::filesystem::directory_iterator(s.scratch / "codes")) {
    const mttt::CodedRecording codes = mttt::load_codes(entry.path());
    const auto text = codes.stream(0);
    const auto word = std::find_if(text.begin(), text.end(), [](int code) { return code != 0 && code != 3; });
    REQUIRE(word != text.end());
    const auto from = 0.08 * static_cast<double>(word - text.begin()) + 0.01;
    s.scratch.put(
        "asked/" + entry.path().stem().string() + ".json",
        R"({"questions": [{"person": "my", "attribute": "dog", "value": "Rex", "values": 8, "delay": 7,)"
        R"( "answer": [)" +
            std::to_string(from) + ", " + std::to_string(from + 0.05) + "]}]}");
    ++recordings;
  }
  const std::string page = diagnosed("recall", "--questions asked codes");
  CHECK(page.find("longer ago than attention sees (2 s)") != page.npos);
  CHECK(page.find("chance is 12.5 %") != page.npos);
  const auto lines = lines_of(s.scratch / "d/recall.csv");
  REQUIRE(lines.size() == 1 + 4 * static_cast<std::size_t>(recordings));
  CHECK(lines[1].find(",my dog: Rex,7,0.125,as trained,") != std::string::npos);
  CHECK(s.run("diagnose", "recall --model ttt codes") == 1);
  CHECK(s.log().find("--questions") != std::string::npos);
}

TEST_CASE("diagnose stream: a long conversation stays as it was", "[e2e]") {
  diagnosed("stream", "--minutes 0.2 codes");
  const auto lines = lines_of(studio().scratch / "d/stream.csv");
  CHECK(lines[0] == "frame,ms,memory_mb,drift_layer_1,drift_layer_2,drift_layer_3");
  CHECK(lines.back().starts_with("150,"));
}

TEST_CASE("diagnose causality: proved on data", "[e2e]") {
  const std::string page = diagnosed("causality", "--trials 6 --frames 40 codes");
  CHECK(page.find("Causal: ") != page.npos);
}

TEST_CASE("diagnose ends with a clear error", "[e2e]") {
  const Studio& s = studio();
  for (const auto& [arguments, words] : {std::pair{"gates --model nowhere codes", "nowhere"},
                                         {"gates --model mimi.safetensors codes", "compiled presets"},
                                         {"gates --model ttt mimi.safetensors", "mimi.safetensors"}}) {
    INFO(arguments);
    CHECK(s.run("diagnose", arguments) == 1);
    CHECK(s.log().find(words) != std::string::npos);
  }
}
