// train_codec as a person types it: from recordings to a codec that `encode` takes, killed and resumed.
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "../io/scratch.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/metrics.hpp"
#include "mttt/io/safetensors.hpp"

namespace {
using namespace mttt;

struct Workshop {
  Scratch scratch;

  Workshop() {
    std::filesystem::create_directories(scratch / "tree/deep");
    tone("tree/a.wav", 24000, 1, 150);
    tone("tree/deep/b.flac", 16000, 2, 210);
    tone("c.wav", 24000, 1, 150);
    scratch.put("data.jsonl", "{\"path\": \"c.wav\", \"duration\": 2}\n");
    scratch.put("tree/broken.wav", "no sound at all");
  }
  void tone(const std::string& name, int rate, int channels, double pitch) const {
    Audio audio{{}, channels, rate};
    for (int i = 0; i < 2 * rate * channels; ++i)
      audio.samples.push_back(static_cast<float>(0.3 * std::sin(2 * M_PI * pitch * (i / channels) / rate)));
    write_audio(scratch / name, audio);
  }
  std::string command(const std::string& arguments, const std::string& program = "train_codec") const {
    return "cd '" + scratch.folder.string() + "' && exec '" MTTT_BIN_DIR "/" + program + "' " + arguments +
           " >log 2>&1";
  }
  int run(const std::string& arguments, const std::string& program = "train_codec") const {
    return WEXITSTATUS(std::system(command(arguments, program).c_str()));
  }
  bool says(const std::string& words) const {
    return content_of(scratch / "log").find(words) != std::string::npos;
  }
};
}  // namespace

TEST_CASE("train_codec: the loss falls, the reply comes nearer to the sound, and encode takes the codec") {
  const Workshop w;
  const int status = w.run(
      "--preset mimi_tiny --data tree data.jsonl --held-out c.wav --output run --max-steps 60 --log-freq 20 "
      "--batch-size 4 --segment-frames 4 --spectral-weight 0.1 --waveform-weight 10 --lr 1e-2 "
      "--codebook-decay 0.9");
  INFO(content_of(w.scratch / "log"));
  REQUIRE(status == 0);
  CHECK(w.says("left out: "));
  CHECK(w.says("broken.wav"));
  CHECK(w.says("1 of 4 recordings were left out"));
  CHECK(w.says("8 s of sound"));  // b has two voices
  const Metrics metrics = read_metrics(w.scratch / "run/metrics.jsonl", "run");
  const auto ends = [&](const std::string& field) {
    const auto* column = metrics.column(field);
    REQUIRE(column != nullptr);
    return std::pair(column->front(), column->back());
  };
  CHECK(ends("loss").second < 0.7 * ends("loss").first);
  CHECK(ends("snr_db").second > ends("snr_db").first + 3);
  CHECK(ends("held_out_snr_db").second > ends("held_out_snr_db").first + 3);
  CHECK(ends("perplexity_0").second > 10);
  ends("restarted_codes"), ends("spectral_loss"), ends("commitment_loss"), ends("held_out_loss");

  const SafetensorsFile model(w.scratch / "run/model.safetensors");
  for (const char* name : {"cluster_usage", "embedding_sum", "_initialized"})
    CHECK(model.find("quantizer.rvq_rest.vq.layers.6._codebook." + std::string(name)) != nullptr);
  w.scratch.put("tree/a.json", "{\"alignments\": []}");
  REQUIRE(w.run("--codec run/model.safetensors --mono --tokenizer '" MTTT_SOURCE_DIR
                "/assets/tokenizer.model' --output codes tree/a.wav",
                "encode") == 0);
  CHECK(w.says("training of this codec: 60 steps on 8 s of sound"));

  // In the form that ships it is half as large, and says nearly the same.
  REQUIRE(w.run("run/model.safetensors packed.safetensors", "pack") == 0);
  CHECK(2 * std::filesystem::file_size(w.scratch / "packed.safetensors") <
        std::filesystem::file_size(w.scratch / "run/model.safetensors"));
  const SafetensorsFile packed(w.scratch / "packed.safetensors");
  CHECK(packed.at("quantizer.rvq_rest.vq.layers.6._codebook.embedding_sum").dtype == DType::F16);
  CHECK(packed.at("decoder.model.0.conv.conv.weight").dtype == DType::I8);
  const auto reply = [&](const std::string& codec) {
    REQUIRE(w.run("--codec " + codec + " --reply --output back c.wav", "encode") == 0);
    CHECK(w.says("times real time"));
    return read_audio(w.scratch / "back/c.wav").samples;
  };
  const auto exact = reply("run/model.safetensors"), rounded = reply("packed.safetensors");
  REQUIRE(exact.size() == 48000);
  double signal = 0, error = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    signal += double(exact[i]) * exact[i];
    error += double(exact[i] - rounded[i]) * (exact[i] - rounded[i]);
  }
  CHECK(10 * std::log10(signal / error) > 15);
  REQUIRE(w.run("--codec packed.safetensors --output codes c.wav", "encode") == 1);
  CHECK(w.says("--tokenizer"));

  REQUIRE(
      w.run("--preset mimi_tiny --data c.wav --output more --max-steps 1 --batch-size 1 --segment-frames 2 "
            "--from run/model.safetensors") == 0);
  CHECK(w.says("started from run/model.safetensors"));
  CHECK(w.run("--preset mimi_tiny --data nowhere.wav --output x") == 1);
  CHECK(w.says("expected at least one"));
}

TEST_CASE("train_codec: killed at any moment, it goes on to the same bits") {
  const Workshop w;
  const std::string training =
      "--preset mimi_tiny --data tree --max-steps 12 --ckpt-freq 2 --num-ckpt-keep 0 --log-freq 4 "
      "--batch-size 2 --segment-frames 2 --gain-db 6 --adversarial 1 --features 1 --adversarial-from-step 3 "
      "--adversarial-seconds 0.1 --adversarial-every 2 --output ";
  REQUIRE(w.run(training + "whole") == 0);
  const Metrics metrics = read_metrics(w.scratch / "whole/metrics.jsonl", "whole");
  for (const char* field : {"adversarial_loss", "feature_loss", "discriminator_loss"}) {
    INFO(field);
    REQUIRE(metrics.column(field) != nullptr);
  }
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::execl("/bin/sh", "sh", "-c", w.command(training + "killed").c_str(), static_cast<char*>(nullptr));
    ::_exit(127);
  }
  for (int i = 0; i < 3000 && !std::filesystem::exists(w.scratch / "killed/step_000004.safetensors"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  REQUIRE(std::filesystem::exists(w.scratch / "killed/step_000004.safetensors"));
  std::filesystem::remove(w.scratch / "killed/model.safetensors");  // where it was faster than the signal
  std::filesystem::remove(w.scratch / "killed/step_000012.safetensors");
  REQUIRE(w.run(training + "killed --resume") == 0);
  INFO(content_of(w.scratch / "log"));
  CHECK(w.says("resumed at step "));
  for (const char* file : {"model.safetensors", "step_000012.safetensors", "adversary_000012.safetensors"}) {
    const std::string expected = content_of(w.scratch / ("whole/" + std::string(file)));
    REQUIRE(!expected.empty());
    CHECK((content_of(w.scratch / ("killed/" + std::string(file))) == expected));
  }
}
