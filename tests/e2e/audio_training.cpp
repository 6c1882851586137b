// From a manifest of recordings to a trained model, as a YAML file describes it.
#include <sys/wait.h>

#include <cmath>
#include <cstdio>

#include "../io/scratch.hpp"
#include "mttt/io/audio.hpp"
#include "mttt/io/manifest.hpp"

namespace {
using namespace mttt;

struct Ran {
  int status;
  std::string output;
  bool says(const std::string& words) const { return output.find(words) != std::string::npos; }
};

Ran run(const std::string& command) {
  std::FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string output;
  for (int c; (c = std::fgetc(pipe)) != EOF;) output += static_cast<char>(c);
  return {WEXITSTATUS(::pclose(pipe)), output};
}

void write_tone(const std::filesystem::path& path, int channels, double seconds, double pitch) {
  Audio audio{{}, channels, 24000};
  for (int i = 0; i < 24000 * seconds; ++i) {
    for (int c = 0; c < channels; ++c)
      audio.samples.push_back(static_cast<float>(0.3 * std::sin((1 + c) * pitch * i / 24000.0)));
  }
  write_audio(path, audio);
}
}  // namespace

TEST_CASE(
    "a manifest is encoded, what is broken is left out, and a killed training goes on to the same bits") {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / "wav");
  write_tone(scratch / "wav/a.wav", 2, 5, 700);
  scratch.put("wav/a.json", R"({"alignments": [["he", [0.1, 0.3], "SPEAKER_MAIN"]]})");
  write_tone(scratch / "wav/b.wav", 1, 3, 900);
  scratch.put("wav/c.wav", "no sound at all");
  scratch.put("data.jsonl",
              "{\"path\": \"wav/a.wav\", \"duration\": 5}\n{\"path\": \"wav/b.wav\", \"duration\": 3}\n\n"
              "{\"path\": \"wav/c.wav\", \"duration\": 1}\n");
  const std::string bin = MTTT_BIN_DIR, folder = scratch.folder.string(), data = folder + "/data.jsonl";
  const Ran encoded =
      run(bin + "/encode --codec " + folder + "/codec.safetensors --init-codec 1 --mono --tokenizer " +
          MTTT_SOURCE_DIR + "/assets/tokenizer.model --data " + data);
  INFO(encoded.output);
  REQUIRE(encoded.status == 0);
  CHECK(encoded.says("left out: "));
  CHECK(encoded.says("wav/c.wav"));
  CHECK(encoded.says("1 of 3 recordings were left out"));
  const auto a = load_codes(scratch / "data.codes/wav_a.safetensors"),
             b = load_codes(scratch / "data.codes/wav_b.safetensors");
  CHECK(a.frames == 63);
  CHECK(b.frames == 38);
  CHECK(b.stream(0)[5] == -1);  // no words are known, which is not silence
  CHECK(entropy(b.stream(9)) < 1);

  const std::string yaml =
      "preset: tiny\nrun_dir: " + folder + "/run\ndata: {train_data: " + data +
      ", shuffle: false}\nduration_sec: 1.28\nbatch_size: 2\nmax_steps: 6\nckpt_freq: 2\n"
      "full_finetuning: true\nttt: {enable: true, weight_lr_multiplier: 1, alpha_lr_multiplier: 1}\nseed: 3\n"
      "optim: {lr: 1e-3}\nwandb: {project: x}\n";
  scratch.put("train.yaml", yaml);
  const std::string train = bin + "/train --config " + folder + "/train.yaml";
  const Ran trained = run(train);
  INFO(trained.output);
  REQUIRE(trained.status == 0);
  CHECK(trained.says("left out: "));
  CHECK(trained.says("each from its start to its end"));
  CHECK(trained.says("'wandb' has no effect"));
  CHECK(std::filesystem::exists(scratch / "run/carried_000006.safetensors"));

  // Keys that set where TTT starts do so; those that this program does not heed are named.
  scratch.put(
      "start.yaml",
      "max_steps: 2\nfull_finetuning: true\nbatch_size: 2\nduration_sec: 1.28\ndata: {train_data: " + data +
          ", filter: {min_duration_sec: 4}, stages: [{first_step: 1, duration_sec: 2.56}]}\nttt: {enable: "
          "true, gating: fixed, initial_gating_alpha: 0.25, base_lr: 0.5}\n"
          "do_ckpt: false\nsave_adapters: false\nparam_dtype: float32\n");
  const Ran started = run(bin + "/train --config " + folder + "/start.yaml --output " + folder + "/start");
  INFO(started.output);
  REQUIRE(started.status == 0);
  CHECK(started.says("line 9, 'param_dtype' has no effect"));
  CHECK(started.says("wav_b.safetensors: 3.04 s; min_duration_sec is 4"));
  CHECK(started.says("2 recordings are left out"));
  CHECK(!std::filesystem::exists(scratch / "start/step_000002.safetensors"));
  const std::string metrics = content_of(scratch / "start/metrics.jsonl");
  for (const char* field : {"loader_wait", "audio_loss_7", "share_of_peak", "memory_mb"})
    CHECK(metrics.find(field) != std::string::npos);
  const SafetensorsFile model(scratch / "start/model.safetensors");
  for (const auto& [name, value] : {std::pair("gating_alpha", 0.25f), std::pair("ttt.base_lr", 0.5f)}) {
    const TensorEntry& entry = model.at("transformer.layers.2." + std::string(name));
    std::vector<float> values(entry.count());
    model.read(entry, values.data(), values.size());
    for (const float x : values) REQUIRE(x == value);
  }

  // The same, ended after two steps; a checkpoint without its carried state would go on otherwise.
  const std::string again = train + " --output " + folder + "/again";
  REQUIRE(run(again).status == 0);
  for (const char* file : {"step_000004", "step_000006", "carried_000004", "carried_000006", "model"})
    std::filesystem::remove(scratch / ("again/" + std::string(file) + ".safetensors"));
  const Ran resumed = run(again + " --resume");
  INFO(resumed.output);
  REQUIRE(resumed.status == 0);
  CHECK(resumed.says("resumed at step 2"));
  CHECK(content_of(scratch / "again/model.safetensors") == content_of(scratch / "run/model.safetensors"));

  const auto refused = [&](const std::string& text, const std::string& words) {
    scratch.put("wrong.yaml", text);
    const Ran ran = run(bin + "/train --config " + folder + "/wrong.yaml");
    INFO(ran.output);
    CHECK(ran.status == 1);
    CHECK(ran.says(words));
  };
  refused(yaml + "lora: {enable: true}\n", "'full_finetuning' is true");
  refused(yaml + "bach_size: 3\n", "line 13: found the unknown key 'bach_size'; did you mean 'batch_size'?");
  refused("ttt: {enable: true, layers: all}\n" + yaml.substr(0, yaml.find("ttt:")), "the preset has 1,2,3");
  refused("full_finetuning: true\nttt: {enable: true}\nrun_dir: x\n", "no data");
  std::string uneven = yaml;
  refused(uneven.replace(uneven.find("1.28"), 4, "1.0"), "found 13 frames; expected a multiple of");
  std::string staged = yaml;
  staged.insert(staged.find("data: {") + 7, "stages: [{first_step: 2, duration_sec: 2}], ");
  refused(staged, "found 25 frames; expected a multiple of");
  staged.replace(staged.find("first_step: 2"), 13, "first_step: 0");
  refused(staged, "'data.stages[0].first_step': found 0, expected at least 1");
  std::string strict = yaml;
  strict.insert(strict.find("data: {") + 7, "filter: {min_duration_sec: 100}, ");
  refused(strict, "encode them first (encode --data " + data + "), or let the filters take more");
  REQUIRE(run(train + " --data x").status != 0);  // the file says it all
}

namespace {
std::vector<float> values_of(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry& entry = file.at(name);
  std::vector<float> values(entry.count());
  file.read(entry, values.data(), values.size());
  return values;
}
}  // namespace

TEST_CASE("adapters are trained beside a base that stays, kept alone, resumed to the same bits, and fused") {
  const Scratch scratch;
  write_tone(scratch / "a.wav", 2, 4, 700);
  scratch.put("a.json", R"({"alignments": [["he", [0.1, 0.3], "SPEAKER_MAIN"]]})");
  scratch.put("data.jsonl", "{\"path\": \"a.wav\", \"duration\": 4}\n");
  const std::string bin = MTTT_BIN_DIR, folder = scratch.folder.string(), data = folder + "/data.jsonl";
  REQUIRE(run(bin + "/encode --codec " + folder + "/codec.safetensors --init-codec 1 --tokenizer " +
              MTTT_SOURCE_DIR + "/assets/tokenizer.model --data " + data)
              .status == 0);
  const auto train = [&](const std::string& name, const std::string& yaml, const std::string& more = "") {
    scratch.put(name + ".yaml",
                "data: {train_data: " + data + ", shuffle: true}\nduration_sec: 1.28\n" + yaml);
    const Ran ran =
        run(bin + "/train --config " + folder + "/" + name + ".yaml --output " + folder + "/" + name + more);
    INFO(ran.output);
    CHECK(ran.status == 0);
    return ran;
  };
  const auto at = [&](const std::string& path) { return scratch / path; };
  train("base", "preset: tiny\nmax_steps: 1\nfull_finetuning: true\nttt: {enable: true}\n");
  const std::string lora =
      "preset: tiny_lora\nmax_steps: 4\nckpt_freq: 2\noptim: {lr: 1e-2}\nlora: {enable: true, rank: 8}\n"
      "ttt: {enable: true, gating: fixed, weight_lr_multiplier: 0.1}\nmoshi_paths: {moshi_path: " +
      folder + "/base/model.safetensors}\n";
  train("adapted", lora);
  const SafetensorsFile base(at("base/model.safetensors"));
  const std::string layer = "transformer.layers.1.gating.linear_in.",
                    gate = "transformer.layers.2.gating_alpha";
  {
    const SafetensorsFile adapters(at("adapted/lora.safetensors")),
        step(at("adapted/step_000004.safetensors"));
    for (const auto& entry : adapters.tensors()) {
      INFO(entry.name);
      CHECK((entry.name.find(".lora_") != std::string::npos || entry.name.find("ttt") != std::string::npos ||
             entry.name.ends_with("gating_alpha")));
    }
    CHECK(values_of(adapters, gate) == values_of(base, gate));  // fixed, and of the TTT layers all the same
    CHECK(step.find("model." + layer + "weight") == nullptr);
    CHECK(step.find("adam.m." + layer + "lora_A.weight") != nullptr);
    CHECK(step.find("adam.m." + layer + "weight") == nullptr);
    CHECK(!std::filesystem::exists(at("adapted/model.safetensors")));
  }
  const std::string done = content_of(at("adapted/lora.safetensors"));
  for (const char* file : {"adapted/step_000004.safetensors", "adapted/lora.safetensors"})
    std::filesystem::remove(at(file));
  CHECK(train("adapted", lora, " --resume").says("resumed at step 2"));
  CHECK(content_of(at("adapted/lora.safetensors")) == done);

  // Without save_adapters the end is the base with the adapters in it, and checkpoints hold all.
  train("fused", lora + "save_adapters: false\n");
  const SafetensorsFile adapters(at("adapted/lora.safetensors")), fused(at("fused/model.safetensors"));
  CHECK(fused.find(layer + "lora_A.weight") == nullptr);
  CHECK(fused.tensors().size() == base.tensors().size());
  CHECK(values_of(fused, "text_emb.weight") == values_of(base, "text_emb.weight"));
  CHECK(SafetensorsFile(at("fused/step_000004.safetensors")).find("model." + layer + "weight") != nullptr);
  const auto w = values_of(base, layer + "weight"), sum = values_of(fused, layer + "weight"),
             a = values_of(adapters, layer + "lora_A.weight"),
             b = values_of(adapters, layer + "lora_B.weight");
  constexpr std::size_t rank = 8, in = 128;
  double changed = 0, off = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    double product = 0;
    for (std::size_t r = 0; r < rank; ++r)
      product += static_cast<double>(b[i / in * rank + r]) * static_cast<double>(a[r * in + i % in]);
    changed = std::max(changed, std::abs(product));
    off = std::max(off, std::abs(w[i] + 2 * product - static_cast<double>(sum[i])));
  }
  CHECK(changed > 1e-3);
  CHECK(off < 1e-6);

  // TTT alone, on the base without it; its file goes on top of that base again.
  train("plain", "preset: tiny_without_ttt\nmax_steps: 1\nfull_finetuning: true\n");
  const std::string onto = "moshi_paths: {moshi_path: " + folder + "/plain/model.safetensors}\n";
  train("ttt", "preset: tiny\nmax_steps: 2\nttt: {enable: true}\n" + onto);
  CHECK(SafetensorsFile(at("ttt/lora.safetensors")).find("transformer.layers.1.ttt.W1") != nullptr);
  CHECK(SafetensorsFile(at("ttt/lora.safetensors")).find("text_emb.weight") == nullptr);
  const Ran on = train("more", "preset: tiny\nmax_steps: 1\nreset_optimizer: true\nttt: {enable: true}\n" +
                                   onto + "resume_from: " + folder + "/ttt/lora.safetensors\n");
  CHECK(on.says("started from " + folder + "/ttt/lora.safetensors"));
}

TEST_CASE("data sources and manifests: what is refused") {
  const Scratch scratch;
  const auto text = [&](const std::string& name) { return (scratch / name).string(); };
  scratch.put("a.jsonl", "{\"path\": \"a.wav\", \"duration\": 5}\n");
  const auto refused = [&](const std::string& sources, const std::string& words) {
    check_refused([&] { read_data_sources(sources); }, words);
  };
  const auto two = read_data_sources(text("a.jsonl") + ":0.25, " + scratch.folder.string());
  REQUIRE(two.size() == 2);
  CHECK(two[0].weight == 0.25);
  CHECK(two[0].entries[0].recording == scratch / "a.wav");
  CHECK(two[0].entries[0].codes == scratch / "a.codes/a.safetensors");
  CHECK(two[1].weight == 1);
  refused("", "data sources: found none");
  refused(text("none.jsonl"), "no such file or folder");
  refused(text("a.jsonl") + ":0", "the weight '0'");
  refused(text("a.jsonl") + ":many", "the weight 'many'");
  refused(text("a.jsonl") + "," + text("a.jsonl"), "it a second time");
  std::filesystem::create_directory(scratch / "empty");
  refused(text("empty"), "neither codes, manifests nor recordings");
  std::filesystem::create_directories(scratch / "tree/reader/book");
  for (const char* name : {"tree/reader/book/2.flac", "tree/reader/book/1.flac", "tree/a.wav", "tree/a.txt"})
    scratch.put(name, "");
  const auto tree = read_data_sources(text("tree/"));
  REQUIRE(tree[0].entries.size() == 3);
  CHECK(tree[0].entries[0].recording == scratch / "tree/a.wav");
  CHECK(tree[0].entries[1].recording == scratch / "tree/reader/book/1.flac");
  CHECK(tree[0].entries[1].codes == scratch / "tree.codes/reader_book_1.safetensors");
  scratch.put("tree/a.flac", "");
  refused(text("tree"), "as those of another");
  scratch.put("b.jsonl", "{\"path\": \"a.wav\", \"duration\": 5}\n{\"path\": \"a.flac\", \"duration\": 5}\n");
  refused(text("b.jsonl"), "b.jsonl, line 2: found 'a.flac'");
  scratch.put("b.jsonl", "\n");
  refused(text("b.jsonl"), "no lines");
  for (const char* line : {"{\"path\": 1, \"duration\": 5}", "{\"path\": \"a\"}", "[]", "{",
                           "{\"path\": \"\", \"duration\": 1}"}) {
    scratch.put("b.jsonl", line);
    refused(text("b.jsonl"), "b.jsonl, line 1");
  }
  std::vector<std::string> skipped;
  check_refused([&] { load_data_sources(text("a.jsonl"), skipped); },
                "none of the codes of its 1 recordings");
}
