// stream --model: folders as other programs write them, raw samples through pipes, how a conversation ends.
#include <poll.h>
#include <sys/wait.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "../io/foreign.hpp"
#include "../io/gguf_writer.hpp"
#include "../io/hollow.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/presets/tiny.hpp"

namespace {
using namespace mttt::testing;

using Lm = Moshi<presets::tiny_without_ttt, B>;
using Codec = Mimi<presets::mimi_tiny, B>;
constexpr std::size_t frame_bytes = 1920 * 2;

/// A model that speaks: published folders of it in several forms, made once.
struct Studio {
  Scratch scratch;
  Tensors lm;
  std::vector<std::int16_t> question;
  nlohmann::json config = nlohmann::json::parse(R"({
    "moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "spm.model",
    "dim": 128, "text_card": 512, "existing_text_padding_id": 3, "n_q": 16, "dep_q": 8, "card": 256,
    "num_heads": 4, "num_layers": 4, "hidden_scale": 4.125, "causal": true, "context": 25,
    "max_period": 10000.0, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_dim": 64, "depformer_dim_feedforward": 264, "depformer_num_heads": 4,
    "depformer_num_layers": 2, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_multi_linear": true, "depformer_weights_per_step": true,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]})");

  Studio() {
    B be;
    Rng rng(5);
    Store<Lm::Params, B> params(be);
    Lm::init(*params, rng);
    lm = tensors_of(*params);
    for (auto& [name, stored] : lm) {  // exact in bf16
      for (auto& value : stored.values) value = float(bf16(value));
    }
    for (int i = 0; i < 5 * 1920; ++i)
      question.push_back(static_cast<std::int16_t>(9000 * std::sin(0.03 * i + 1e-5 * i * i)));
    folder("kyutai", "model.safetensors");
    write(scratch / "kyutai/model.safetensors", lm, DType::BF16);
  }
  /// A folder with everything but the weights of the language model.
  void folder(const std::string& name, const std::string& weights) {
    std::filesystem::create_directory(scratch / name);
    B be;
    Rng rng(6);
    Store<Codec::Params, B> codec(be);
    Codec::init(*codec, rng);
    save_params(scratch / (name + "/mimi.safetensors"), be, codec);
    auto named = config;
    named["moshi_name"] = weights;
    scratch.put(name + "/config.json", named.dump());
    std::filesystem::copy_file(MTTT_SOURCE_DIR "/assets/tokenizer.model", scratch / (name + "/spm.model"));
  }
  void write_gguf(const std::string& path, GgmlType type) const {
    GgufWriter writer;
    for (const auto& [name, stored] : moshi_in_steps<presets::tiny_without_ttt>(lm, false)) {
      const bool packs = stored.shape.size() == 2 && stored.shape[1] % block_numbers(type) == 0;
      writer.add(name, packs ? type : GgmlType::f32, stored.shape, stored.values);
    }
    writer.write(scratch / path);
  }

  int run(const std::string& arguments) const {
    const std::string command = "cd '" + scratch.folder.string() + "' && " + arguments;
    return WEXITSTATUS(std::system(("{ " + command + "; } 2>'" + (scratch / "log").string() + "'").c_str()));
  }
  std::string log() const { return content_of(scratch / "log"); }
  std::string raw(std::size_t bytes) const {
    return std::string(reinterpret_cast<const char*>(question.data()), 2 * question.size()).substr(0, bytes);
  }
  /// What a model says to the question, greedily.
  nlohmann::json tokens(const std::string& model) const {
    scratch.put("question", raw(std::string::npos));
    const int status = run(program + " --model " + model + " --greedy --json out.json - - <question >reply");
    INFO(log());
    REQUIRE(status == 0);
    CHECK(std::filesystem::file_size(scratch / "reply") == 2 * question.size());
    return nlohmann::json::parse(content_of(scratch / "out.json")).at("tokens");
  }
  const std::string program = MTTT_BIN_DIR "/stream";
};

Studio& studio() {
  static Studio one;
  return one;
}

/// The program between two pipes.
class Talk {
 public:
  explicit Talk(const std::vector<std::string>& arguments) {
    int to[2], from[2];
    REQUIRE(::pipe(to) == 0);
    REQUIRE(::pipe(from) == 0);
    child_ = ::fork();
    REQUIRE(child_ >= 0);
    if (child_ == 0) {
      ::dup2(to[0], 0), ::dup2(from[1], 1);
      for (const int end : {to[0], to[1], from[0], from[1]}) ::close(end);
      std::vector<char*> argv;
      for (const auto& text : arguments) argv.push_back(const_cast<char*>(text.c_str()));
      argv.push_back(nullptr);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(to[0]), ::close(from[1]);
    in = to[1], out = from[0];
  }
  Talk(const Talk&) = delete;
  Talk& operator=(const Talk&) = delete;
  ~Talk() {
    if (child_ > 0) ::kill(child_, SIGKILL), end();
  }
  bool say(const std::string& bytes) const {
    return ::write(in, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  }
  /// So many bytes; fewer if none come for ten seconds.
  std::string hear(std::size_t bytes) const {
    std::string heard;
    pollfd reply{out, POLLIN, 0};
    while (heard.size() < bytes && ::poll(&reply, 1, 10'000) == 1) {
      char part[4096];
      const auto n = ::read(out, part, std::min(sizeof part, bytes - heard.size()));
      if (n <= 0) break;
      heard.append(part, static_cast<std::size_t>(n));
    }
    return heard;
  }
  void interrupt() const { ::kill(child_, SIGINT); }
  int end() {
    if (in >= 0) ::close(in);
    if (out >= 0) ::close(out);
    in = out = -1;
    int status = 0;
    ::waitpid(std::exchange(child_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int in = -1, out = -1;

 private:
  pid_t child_ = -1;
};
}  // namespace

TEST_CASE("stream: one model says the same, whoever wrote its files", "[e2e]") {
  Studio& s = studio();
  const auto said = s.tokens("kyutai");
  REQUIRE(said.size() == 5 - 1);  // frames, less the delay
  CHECK(s.log().find("tiny_without_ttt in f32") != std::string::npos);
  s.folder("mlx", "model.safetensors");
  write(s.scratch / "mlx/model.safetensors", moshi_in_steps<presets::tiny_without_ttt>(s.lm, true),
        DType::BF16);
  CHECK(s.tokens("mlx") == said);
  s.folder("candle", "model.safetensors");
  write(s.scratch / "candle/model.safetensors", moshi_in_steps<presets::tiny_without_ttt>(s.lm, false),
        DType::BF16);
  CHECK(s.tokens("candle") == said);
  s.folder("gguf", "model.gguf");
  s.write_gguf("gguf/model.gguf", GgmlType::bf16);
  CHECK(s.tokens("gguf") == said);
  s.folder("q8", "model.q8.gguf");
  s.write_gguf("q8/model.q8.gguf", GgmlType::q8_0);
  CHECK(s.tokens("q8").size() == said.size());
  CHECK(s.tokens("kyutai --dtype int8").size() == said.size());
  CHECK(s.log().find("tiny_without_ttt in int8") != std::string::npos);
}

TEST_CASE("stream: raw samples say what a sound file says", "[e2e]") {
  Studio& s = studio();
  const auto said = s.tokens("kyutai");
  const std::string reply = content_of(s.scratch / "reply");
  std::vector<float> samples;
  for (const auto x : s.question) samples.push_back(static_cast<float>(x) / 32768);
  write_audio(s.scratch / "question.wav", {samples, 1, 24000}, SampleFormat::pcm16);
  REQUIRE(s.run(s.program + " --model kyutai --greedy --json out.json question.wav reply.wav >text") == 0);
  CHECK(nlohmann::json::parse(content_of(s.scratch / "out.json")).at("tokens") == said);
  const auto sound = read_audio(s.scratch / "reply.wav");
  REQUIRE(sound.samples.size() == 4 * 1920);  // without the silence of the delay
  std::vector<std::int16_t> raw(reply.size() / 2);
  std::memcpy(raw.data(), reply.data(), reply.size());
  for (std::size_t i = 0; i < sound.samples.size(); i += 97)
    CHECK(std::abs(sound.samples[i] * 32767 - static_cast<float>(raw[1920 + i])) <= 1.5f);

  s.scratch.put("floats", std::string(reinterpret_cast<const char*>(samples.data()), 4 * samples.size()));
  REQUIRE(s.run(s.program + " --model kyutai --greedy --raw f32le --json out.json - - <floats >reply") == 0);
  CHECK(nlohmann::json::parse(content_of(s.scratch / "out.json")).at("tokens") == said);
  CHECK(std::filesystem::file_size(s.scratch / "reply") == 4 * samples.size());
}

TEST_CASE("stream: text goes where it does not meet the sound, and without a tokenizer as numbers", "[e2e]") {
  Studio& s = studio();
  s.tokens("kyutai");
  const auto text = nlohmann::json::parse(content_of(s.scratch / "out.json")).at("text").get<std::string>();
  CHECK(s.log().find(text + "\n") != std::string::npos);  // word by word on standard error
  REQUIRE(s.run(s.program + " --model kyutai --greedy --transcript words - reply.wav <question >text") == 0);
  CHECK(content_of(s.scratch / "text") == text + "\n");
  CHECK(content_of(s.scratch / "words") == text + "\n");
  std::filesystem::rename(s.scratch / "kyutai/spm.model", s.scratch / "kyutai/away");
  const auto said = s.tokens("kyutai");
  std::filesystem::rename(s.scratch / "kyutai/away", s.scratch / "kyutai/spm.model");
  CHECK(s.log().find("no tokenizer") != std::string::npos);
  std::string numbers;
  for (const auto& frame : said) {
    if (frame[0] != 3 && frame[0] != 0) numbers += (numbers.empty() ? "" : " ") + frame[0].dump();
  }
  CHECK(nlohmann::json::parse(content_of(s.scratch / "out.json")).at("text") == numbers);
}

TEST_CASE("stream: a frame is answered before the next is spoken, pauses are waited for", "[e2e]") {
  Studio& s = studio();
  s.tokens("kyutai");
  const std::string whole = content_of(s.scratch / "reply"), question = s.raw(std::string::npos);
  Talk talk({s.program, "--model", (s.scratch / "kyutai").string(), "--greedy", "-", "-"});
  std::string reply;
  for (std::size_t at = 0; at < question.size(); at += frame_bytes) {
    REQUIRE(talk.say(question.substr(at, 1001)));  // in pieces, as a sound card gives them
    ::usleep(20'000);
    REQUIRE(talk.say(question.substr(at + 1001, frame_bytes - 1001)));
    const auto frame = talk.hear(frame_bytes);
    REQUIRE(frame.size() == frame_bytes);
    reply += frame;
  }
  CHECK(talk.end() == 0);
  CHECK((reply == whole));
}

TEST_CASE("stream: an input that ends within a frame, or within a sample, is filled up with silence",
          "[e2e]") {
  Studio& s = studio();
  s.scratch.put("cut", s.raw(2 * frame_bytes + 501));
  s.scratch.put("filled", s.raw(2 * frame_bytes + 500) + std::string(frame_bytes - 500, '\0'));
  REQUIRE(s.run(s.program + " --model kyutai --greedy - - <cut >a") == 0);
  CHECK(s.log().find("ends within a sample") != std::string::npos);
  REQUIRE(s.run(s.program + " --model kyutai --greedy - - <filled >b") == 0);
  CHECK(content_of(s.scratch / "a").size() == 3 * frame_bytes);
  CHECK((content_of(s.scratch / "a") == content_of(s.scratch / "b")));
  REQUIRE(s.run(s.program + " --model kyutai --greedy - - </dev/null >c") == 0);
  CHECK(content_of(s.scratch / "c").empty());
}

TEST_CASE("stream: Ctrl-C ends the conversation as its end does, with all that was asked for", "[e2e]") {
  Studio& s = studio();
  const auto json = s.scratch / "stopped.json", state = s.scratch / "stopped.state";
  Talk talk({s.program, "--model", (s.scratch / "kyutai").string(), "--json", json.string(), "--save-state",
             state.string(), "-", "-"});
  REQUIRE(talk.say(s.raw(3 * frame_bytes + 100)));
  CHECK(talk.hear(3 * frame_bytes).size() == 3 * frame_bytes);
  talk.interrupt();
  CHECK(talk.end() == 0);
  CHECK(nlohmann::json::parse(content_of(json)).at("frames") == 3);
  CHECK(std::filesystem::exists(state));
}

TEST_CASE("stream: a listener that goes ends the conversation; samples that are none are refused", "[e2e]") {
  Studio& s = studio();
  Talk talk({s.program, "--model", (s.scratch / "kyutai").string(), "-", "-"});
  REQUIRE(talk.say(s.raw(frame_bytes)));
  CHECK(talk.hear(frame_bytes).size() == frame_bytes);
  ::close(std::exchange(talk.out, -1));
  REQUIRE(talk.say(s.raw(frame_bytes)));
  CHECK(talk.end() == 0);
  const float nan = NAN;
  s.scratch.put("nan", std::string(400, '\0') + std::string(reinterpret_cast<const char*>(&nan), 4));
  CHECK(s.run(s.program + " --model kyutai --raw f32le - - <nan >reply") == 1);
  CHECK_THAT(s.log(), contains("stream: standard input: found nan at sample 100; expected samples between"));
}

TEST_CASE("stream: a model that no preset fits is told what differs from the nearest", "[e2e]") {
  Studio& s = studio();
  s.folder("other", "model.safetensors");
  write(s.scratch / "other/model.safetensors", s.lm);
  auto config = s.config;
  config["num_layers"] = 5, config["context"] = 30, config["gating"] = "gelu";
  s.scratch.put("other/config.json", config.dump());
  CHECK(s.run(s.program + " --model other - - </dev/null") == 1);
  CHECK_THAT(s.log(), contains("for the preset tiny_without_ttt, which is nearest of moshi_7b, ") &&
                          contains("found 3 problems:") &&
                          contains("config field 'num_layers': found 5, expected 4") &&
                          contains("config field 'context': found 30, expected 25") &&
                          contains("config field 'gating': found \"gelu\", expected \"silu\""));
  CHECK(s.run(s.program + " --model kyutai/model.safetensors - - </dev/null") == 1);
  CHECK_THAT(s.log(), contains("name the folder that holds it"));
  CHECK(s.run(s.program + " --model kyutai --dtype int4 - - </dev/null") == 1);
  CHECK_THAT(s.log(), contains("found --dtype int4; expected one that is compiled for it: f32, int8"));
}

TEST_CASE("stream: a model that does not fit into memory is refused before it is read", "[e2e]") {
  const Repository repository;
  write_hollow(repository.folder / "model.safetensors", published("moshi_7b_tensors.json", "BF16"));
  double available = 0;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);)
    std::sscanf(line.c_str(), "MemAvailable: %lf", &available);
  if (available * 1024 > 30e9) return;  // a machine that has room for it
  const auto start = std::chrono::steady_clock::now();
  CHECK(studio().run(MTTT_BIN_DIR "/stream --model '" + repository.folder.folder.string() +
                     "' --dtype f32 - - </dev/null") == 1);
  CHECK_THAT(studio().log(), contains("stream: memory of this machine: found") &&
                                 contains("GiB for moshi_7b in f32; name --dtype bf16, which takes half"));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(5));
}
