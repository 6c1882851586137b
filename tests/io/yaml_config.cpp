// Training configurations from YAML: what moshi-finetune's users have is taken, what is wrong told by its
// line.
#include "mttt/io/yaml_config.hpp"

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/presets/moshi.hpp"
#include "mttt/presets/tiny.hpp"
#include "scratch.hpp"

namespace {
using namespace mttt;

/// Every problem must be in the message.
void check_problems(const std::string& text, const std::vector<std::string>& problems) {
  const Scratch scratch;
  for (const auto& words : problems)
    check_refused([&] { read_train_config(scratch.put("a.yaml", text)); }, words);
}
TrainFile read(const std::string& text) {
  const Scratch scratch;
  return read_train_config(scratch.put("a.yaml", text));
}
}  // namespace

TEST_CASE("yaml: a LoRA training as moshi-finetune describes it") {
  const auto [c, keys] = read(R"(
data:
  eval_data: ''
  shuffle: true
  train_data: 'dailytalk.jsonl'
moshi_paths:
  hf_repo_id: "kyutai/moshiko-pytorch-bf16"
full_finetuning: false
lora:
  enable: true
  rank: 128
  scaling: 2.
  ft_embed: false
first_codebook_weight_multiplier: 100.
text_padding_weight: .5
duration_sec: 100
batch_size: 16
max_steps: 2000
gradient_checkpointing: true
optim:
  lr: 2e-6
  weight_decay: 0.1
  pct_start: 0.05
seed: 0
log_freq: 1
eval_freq: 100
do_eval: false
do_ckpt: true
ckpt_freq: 100
save_adapters: true
run_dir: "runs/lora"
)");
  CHECK(c.data.train_data == "dailytalk.jsonl");
  CHECK(c.data.shuffle);
  CHECK(c.moshi_paths.hf_repo_id == "kyutai/moshiko-pytorch-bf16");
  CHECK(c.lora.enable);
  CHECK(c.lora.rank == 128);
  CHECK(c.lora.scaling == 2);
  BatchOptions segments{.batch = 1, .frames = 1};
  c.set_lengths(12.5, segments);
  CHECK(segments.frames == 1250);
  CHECK(segments.stages.empty());
  CHECK(c.loss().first_codebook_weight_multiplier == 100);
  CHECK(c.options().lr == 2e-6);
  CHECK(c.options().ckpt_freq == 100);
  CHECK(c.options().num_ckpt_keep == 3);  // left out: the default
  REQUIRE(keys.notes.size() == 2);
  CHECK(keys.notes[1].find("'eval_freq'") != std::string::npos);
}

TEST_CASE("yaml: the keys of ttt") {
  const auto [c, keys] = read(R"(
ttt:
  enable: true
  layers: [29, 30, 31]
  base_lr: 1000000.0
  mini_batch_size: 64
  ttt_mlp_layers: 3
  ttt_mlp_hidden_dims: null
  unfrozen_attention_layers: "30, 31"
  log_inner_loop_losses: false
num_ckpt_keep: null
)");
  REQUIRE(c.ttt.layers);
  CHECK(c.ttt.layers->among(32)->bits == LayerSet::range(29, 31).bits);
  CHECK(c.ttt.unfrozen_attention_layers.among(32)->bits == LayerSet::range(30, 31).bits);
  CHECK(c.ttt.base_lr == 1e6);
  CHECK(c.ttt.mini_batch_size == 64);
  CHECK(!c.ttt.ttt_mlp_hidden_dims);
  CHECK(c.options().num_ckpt_keep == 0);
  CHECK(keys.lines.at("ttt.layers") == 4);
}

TEST_CASE("yaml: layers by name") {
  const auto among = [](const char* text, Index n) { return LayerChoice{text}.among(n); };
  CHECK(among("all", 4)->bits == 0b1111);
  CHECK(among("middle", 32)->bits == LayerSet::range(8, 23).bits);
  CHECK(among("none", 4)->bits == 0);
  CHECK(among(" 3, 1", 4)->bits == 0b1010);
  for (const char* bad : {"4", "1,1", "-1", "1,,2", "1 2", "most", "1,"}) CHECK(!among(bad, 4));
}

TEST_CASE("yaml: all problems of a file at once, with their lines") {
  check_problems(
      "optim:\n  lr: fast\n  weigth_decay: 0.1\nbatch_size: 0\nbatch_size: 2\nlora: 3\nseed: 1.5\n"
      "ttt: {gating: open}\nmax_steps: '10'\n",
      {"line 2, 'optim.lr': found 'fast', expected a number", "found 8 problems",
       "line 3: found the unknown key 'optim.weigth_decay'; did you mean 'weight_decay'?",
       "line 5: found 'batch_size' a second time", "line 6, 'lora': found '3', expected keys with values",
       "line 7, 'seed': found '1.5', expected a whole number",
       "'ttt.gating': found 'open', expected one of 'learned', 'fixed'"});
  check_problems("max_norm: .nan\nduration_sec: 0\nttt: {enable: true}\n",
                 {"line 1, 'max_norm': found .nan, expected at least 0", "found 0, expected above 0"});
  check_problems(
      "seed: 1\nsharding: half\n",
      {"line 2, 'sharding': found 'half', expected one of 'none', 'optimizer', 'gradients', 'full'"});
  check_problems("a: [1\n", {"line 2"});
  check_problems("", {"found nothing"});
  check_problems("- 1\n", {"found no keys"});
  check_problems(std::string(5000, '[') + "\n", {"expected YAML"});
  // What a file holds reaches no terminal as it is, and a zero ends no message.
  check_problems("a: \"\\\x1b[2J\"\n", {"unknown escape character: ?'; expected YAML"});
  check_problems(std::string("a: \"\\\0\"\n", 8), {"unknown escape character: ?'; expected YAML"});
  check_problems("\"\\0\": 1\n\"\\0\": 2\n", {"found '?' a second time"});
  check_problems(std::string((1 << 20) + 1, '#'), {"at most 1 MB"});
}

TEST_CASE("yaml: contradictions") {
  check_problems("full_finetuning: true\nlora: {enable: true}\n", {"line 1, 'full_finetuning' is true"});
  check_problems("full_finetuning: true\nsave_adapters: true\n", {"line 2, 'save_adapters' is true"});
  check_problems("ttt: {enable: true, gating: fixed, alpha_pull: 1}\n", {"fixed gates need no pull"});
  check_problems("seed: 1\n", {"expected something to train"});
  check_problems("ttt:\n  enable: true\n  layers: none\n", {"line 3, 'ttt.layers' is none"});
  check_problems("ttt:\n  enable: true\n  ttt_mlp_layers: 3\n  ttt_mlp_hidden_dims: [64]\n",
                 {"line 4, 'ttt.ttt_mlp_hidden_dims': found 1 widths, expected 2"});
  check_problems("data: {shuffle: true}\nttt:\n  enable: true\n  persistent_states: true\n",
                 {"random segments have nothing to go on from"});
  check_problems("full_finetuning: true\nreset_step: true\n", {"'resume_from' (left out) names nothing"});
}

TEST_CASE("yaml: what contradicts the compiled preset") {
  const auto expect = [](const std::string& text) { expect_preset<presets::tiny>(read(text), "tiny"); };
  expect(
      "ttt:\n  enable: true\n  layers: '1,2,3'\n  mini_batch_size: 16\n  ttt_mlp_layers: 1\n  variant: lm\n"
      "  placement: parallel\n  use_rope: true\n  ttt_layer_context: 25\n  non_ttt_layer_context: 25\n");
  const std::string wrong =
      "ttt:\n  enable: true\n  layers: all\n  mini_batch_size: 64\n  use_rope: false\n  ttt_layer_context: "
      "50\n"
      "  normalize_ttt_output: false\n  unfrozen_attention_layers: '9'\n";
  for (const char* words :
       {"line 3, 'ttt.layers': found 'all', the preset has 1,2,3",
        "line 4, 'ttt.mini_batch_size': found 64, the preset has 16", "line 5, 'ttt.use_rope': found false",
        "line 6, 'ttt.ttt_layer_context': found 50, the preset has 25", "line 7",
        "line 8, 'ttt.unfrozen_attention_layers': found '9'"})
    check_refused([&] { expect(wrong); }, words);
  check_refused([&] { expect("full_finetuning: true\nttt: {enable: false}\n"); },
                "the preset has TTT layers");
  check_refused([&] { expect_preset<presets::tiny_without_ttt>(read("ttt: {enable: true}\n"), "x"); },
                "found true, the preset has none");
  const auto adapted = [](const std::string& text) {
    expect_preset<presets::tiny_lora>(read(text), "tiny_lora");
  };
  adapted("ttt: {enable: true}\nlora: {enable: true}\n");  // rank and scaling are the preset's
  adapted("ttt: {enable: true}\nlora: {enable: true, rank: 8, scaling: 2}\n");
  check_refused([&] { adapted("ttt: {enable: true}\nlora:\n  enable: true\n  rank: 16\n"); },
                "line 4, 'lora.rank': found 16, the preset has 8");
  check_refused([&] { adapted("ttt: {enable: true}\nlora: {enable: true, scaling: 4}\n"); },
                "'lora.scaling': found 4, the preset has 2");
  check_refused([&] { adapted("ttt: {enable: true}\n"); },
                "'lora.enable' (left out): found false, the preset has adapters");
  check_refused([&] { expect("ttt: {enable: true}\nlora: {enable: true}\n"); },
                "line 2, 'lora.enable': found true, the preset has none");
  check_refused([&] { expect("ttt: {enable: true, inner_clip: 1}\n"); },
                "'ttt.inner_clip': found 1, the preset has 0");
}

TEST_CASE("yaml: the files that ship name keys that are known, and fit the presets that they name") {
  const auto file = [](const char* name) {
    return read_train_config(std::filesystem::path(MTTT_SOURCE_DIR) / "examples/train" / name);
  };
  const auto tiny = file("tiny.yaml"), librilight = file("librilight_pretrain.yaml"),
             dailytalk = file("dailytalk_finetune.yaml");
  CHECK(tiny.config.preset == "tiny");
  expect_preset<presets::tiny>(tiny, "tiny");
  for (const auto* one : {&librilight, &dailytalk}) {
    CHECK(one->config.preset == "moshi_7b_ttt");
    expect_preset<presets::moshi_7b_ttt>(*one, "moshi_7b_ttt");
    CHECK(one->config.saves_adapters());
    CHECK(one->config.ttt.persistent_states);
    CHECK(one->config.duration_sec * 12.5 == 1248);
    CHECK(1248 % presets::moshi_7b_ttt.temporal.ttt_config().mini_batch_size == 0);
    CHECK(one->config.moshi_paths.moshi_path == "moshiko/model.safetensors");
  }
  CHECK(librilight.config.ttt.alpha_pull == 0.01);
  CHECK(dailytalk.config.ttt.gating == "fixed");
  CHECK(*dailytalk.config.resume_from == librilight.config.run_dir + "/lora.safetensors");
}

TEST_CASE("yaml: what trains") {
  using B = Cpu<float>;
  B be;
  Store<Moshi<presets::tiny, B>::Params, B> params(be);
  const auto rate_of = [&](const std::string& text, std::string_view wanted) {
    const auto groups = make_groups(*params, 0.1, what_trains<presets::tiny>(read(text).config));
    std::size_t i = 0;
    std::optional<double> rate;
    for_each_tensor(
        [&](std::string_view name, const auto&) {
          if (name == wanted) rate = groups[i].frozen ? 0 : groups[i].learning_rate;
          ++i;
        },
        *params);
    REQUIRE(rate);
    return *rate;
  };
  const std::string ttt = "ttt: {enable: true, unfrozen_attention_layers: [2]}\n";
  CHECK(rate_of(ttt, "transformer.layers.2.ttt.W1") == 10);
  CHECK(rate_of(ttt, "transformer.layers.2.gating_alpha") == 100);
  CHECK(rate_of(ttt, "transformer.layers.2.ttt.base_lr") == 0);
  CHECK(rate_of(ttt, "transformer.layers.2.self_attn.in_projs.0.weight") == 1);
  CHECK(rate_of(ttt, "transformer.layers.3.self_attn.in_projs.0.weight") == 0);
  CHECK(rate_of(ttt, "text_emb.weight") == 0);
  const std::string all =
      "full_finetuning: true\nttt: {enable: true, gating: fixed, weight_lr_multiplier: 2}\n";
  CHECK(rate_of(all, "text_emb.weight") == 1);
  CHECK(rate_of(all, "transformer.layers.1.ttt.W1") == 2);
  CHECK(rate_of(all, "transformer.layers.1.gating_alpha") == 0);
}
