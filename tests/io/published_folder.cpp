// Folders of models: config.json against the preset, the files that it names, adapters, the earlier TTT
//                    attempt.
#include "foreign.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using mttt::test::contains;

constexpr MoshiConfig with_ttt(Index inner_layers) {
  MoshiConfig config = foreign_moshi;
  config.temporal.ttt_layers = LayerSet::range(1, 1);
  config.temporal.ttt = {
      .dim = 0, .num_heads = 0, .mini_batch_size = 4, .layers = inner_layers, .variant = TttVariant::video};
  return config;
}
template <Index inner_layers>
using TttParams = typename Moshi<with_ttt(inner_layers), B>::Params;

/// The config.json of foreign_moshi, as kyutai-labs/moshi writes it.
nlohmann::json kyutai_config() {
  return nlohmann::json::parse(R"({
    "moshi_name": "model.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "spm.model",
    "quantize": false, "dim": 16, "text_card": 9, "existing_text_padding_id": 3, "n_q": 4, "dep_q": 3,
    "card": 6, "num_heads": 2, "num_layers": 2, "hidden_scale": 4.125, "causal": true, "layer_scale": null,
    "context": 4, "max_period": 10000.0, "gating": "silu", "norm": "rms_norm_f32",
    "positional_embedding": "rope", "depformer_dim": 8, "depformer_dim_feedforward": 33,
    "depformer_num_heads": 2, "depformer_num_layers": 2, "depformer_causal": true,
    "depformer_layer_scale": null, "depformer_multi_linear": true, "depformer_context": 8,
    "depformer_max_period": 10000, "depformer_gating": "silu", "depformer_pos_emb": "none",
    "depformer_weights_per_step": true, "delays": [0, 0, 1, 1, 1]})");
}
nlohmann::json transformers_config() {
  return nlohmann::json::parse(R"({
    "architectures": ["MoshiForConditionalGeneration"], "model_type": "moshi", "vocab_size": 9,
    "num_codebooks": 3, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "ffn_dim": 88, "head_dim": 8, "sliding_window": 4, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-08, "hidden_act": "silu", "audio_vocab_size": 6, "audio_encoder_config": {},
    "depth_decoder_config": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2,
                             "ffn_dim": 44, "hidden_act": "silu"}})");
}
void expect(const nlohmann::json& config) { expect_published_config<foreign_moshi>("config.json", config); }

struct Model {
  Scratch folder;
  B be;
  Store<MoshiParams, B> moshi{be}, back{be};
  Store<MimiParams, B> mimi{be}, mimi_back{be};
  Model() { number(*moshi), number(*mimi, 5); }
  void put(const nlohmann::json& config) const { folder.put("config.json", config.dump()); }
};
}  // namespace

TEST_CASE("a config.json that matches is taken, of either program", "[io]") {
  expect(kyutai_config());
  expect(transformers_config());
  auto config = kyutai_config();
  config["depformer_dim_feedforward"] = {33, 33, 33};
  config["depformer_weights_per_step_schedule"] = nullptr;
  config["conditioners"] = nullptr;
  config["tts_config"] = nlohmann::json::object();
  expect(config);
  config["model_type"] = "hibiki";
  check_refused([&] { expect(config); }, "'model_type': found \"hibiki\", expected \"moshi\"");
  config = transformers_config();
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_theta", 10000.0}, {"rope_type", "default"}};
  expect(config);
}

TEST_CASE("a config.json of another model is told field by field", "[io]") {
  auto config = kyutai_config();
  config["dim"] = 2048, config["hidden_scale"] = 4, config["delays"][1] = 2, config["norm"] = "layer_norm";
  config["depformer_dim_feedforward"] = {33, 40}, config["conditioners"] = {{"cfg", {}}};
  config.erase("n_q");
  const std::string message = error_of([&] { expect(config); });
  CHECK_THAT(message, contains("config.json: found 7 problems:"));
  CHECK_THAT(message, contains("'dim': found 2048, expected 16"));
  CHECK_THAT(message,
             contains("'hidden_scale': found 4, which makes 42, expected what makes a hidden width of 44"));
  CHECK_THAT(message, contains("'delays': found [0,2,1,1,1], expected [0,0,1,1,1]"));
  CHECK_THAT(message, contains("'norm': found \"layer_norm\", expected \"rms_norm_f32\""));
  CHECK_THAT(message, contains("'depformer_dim_feedforward': found [33,40], which makes 26"));
  CHECK_THAT(message, contains("'conditioners': found {\"cfg\":null}, expected no such field"));
  CHECK_THAT(message, contains("'n_q': found nothing, expected 4"));

  auto theirs = transformers_config();
  theirs["depth_decoder_config"]["hidden_size"] = 1024, theirs["sliding_window"] = 3000;
  CHECK_THAT(error_of([&] { expect(theirs); }),
             contains("2 problems") &&
                 contains("'depth_decoder_config.hidden_size': found 1024, expected 8") &&
                 contains("'sliding_window': found 3000, expected 4"));
  check_refused([&] { expect(nlohmann::json::array()); }, "no JSON object");
  for (const char* other : {"-1e300", "\"4\"", "true", "[]", "{}"}) {  // never a crash, whatever stands there
    for (const char* field : {"hidden_scale", "dim", "delays", "depformer_dim_feedforward"}) {
      config = kyutai_config();
      config[field] = nlohmann::json::parse(other);
      if (std::string(field) != "depformer_dim_feedforward" || std::string(other) != "[]")
        check_refused([&] { expect(config); }, std::string("config field '") + field + "'");
    }
  }
}

TEST_CASE("the folder of a model is loaded by its name alone", "[io]") {
  Model m;
  m.put(kyutai_config());
  write(m.folder / "model.safetensors", moshi_fused(tensors_of(*m.moshi), "in_proj_weight"), DType::BF16);
  write(m.folder / "mimi.safetensors", tensors_of(*m.mimi));
  m.folder.put("spm.model", "x");
  const auto files = find_model(m.folder.folder);
  CHECK(files.tokenizer == m.folder / "spm.model");
  check_moshi<foreign_moshi>(files);
  check_mimi<foreign_mimi>(files);
  load_moshi<foreign_moshi>(files, m.be, m.back);
  load_mimi<foreign_mimi>(files, m.be, m.mimi_back);
  CHECK(same(m.moshi, m.back));
  CHECK(same(m.mimi, m.mimi_back));

  auto config = kyutai_config();
  config["num_layers"] = 32;
  m.put(config);
  check_refused([&] { load_moshi<foreign_moshi>(find_model(m.folder.folder), m.be, m.back); },
                "config.json: found 1 problem:\n  - config field 'num_layers': found 32, expected 2");
  config["mimi_name"] = "hf://kyutai/moshiko-pytorch-bf16/other.safetensors";
  m.put(config);
  check_refused([&] { find_model(m.folder.folder); },
                "other.safetensors: found no such file; expected the file that 'mimi_name' names: "
                "'hf://kyutai/moshiko-pytorch-bf16/other.safetensors'; fetch it from the repository");
  m.folder.put("config.json", "{");
  check_refused([&] { find_model(m.folder.folder); }, "expected a JSON object");
  check_refused([&] { find_model(m.folder / "none"); }, "found nothing; expected the folder of a model");
  check_refused([&] { find_model(m.folder / "spm.model"); }, "found a file; expected the folder of a model");
}

TEST_CASE("a folder without config.json has the usual names", "[io]") {
  Model m;
  check_refused([&] { find_model(m.folder.folder); }, "model.safetensors: found no such file");
  write(m.folder / "model.safetensors", tensors_of(*m.moshi));
  check_refused([&] { find_model(m.folder.folder); },
                "tokenizer-e351c8d8-checkpoint125.safetensors: found no");
  write(m.folder / "tokenizer-e351c8d8-checkpoint125.safetensors", tensors_of(*m.mimi));
  const auto files = find_model(m.folder.folder);
  CHECK(files.tokenizer.empty());
  load_moshi<foreign_moshi>(files, m.be, m.back);
  CHECK(same(m.moshi, m.back));
}

TEST_CASE("a folder of transformers holds both models in one set of files", "[io]") {
  Model m;
  m.put(transformers_config());
  auto both = moshi_in_transformers(tensors_of(*m.moshi));
  both.merge(mimi_in_transformers(tensors_of(*m.mimi), "audio_encoder."));
  write(m.folder / "model.safetensors", both);
  const auto files = find_model(m.folder.folder);
  load_moshi<foreign_moshi>(files, m.be, m.back);
  load_mimi<foreign_mimi>(files, m.be, m.mimi_back);
  CHECK(same(m.moshi, m.back));
  CHECK(same(m.mimi, m.mimi_back));
}

TEST_CASE("a folder of adapters says rank and scaling", "[io]") {
  Model m;
  m.put(kyutai_config());
  write(m.folder / "model.safetensors", tensors_of(*m.moshi));
  write(m.folder / "mimi.safetensors", tensors_of(*m.mimi));
  std::filesystem::create_directory(m.folder / "tuned");
  auto config = kyutai_config();
  config["lora"] = true, config["lora_rank"] = 1, config["lora_scaling"] = 0.5;
  m.folder.put("tuned/config.json", config.dump());
  write(m.folder / "tuned/lora.safetensors",
        {{"text_linear.lora_A.weight", {{1, 16}, std::vector<float>(16, 2)}},
         {"text_linear.lora_B.weight", {{9, 1}, std::vector<float>(9, 3)}}});
  load_moshi<foreign_moshi>(find_model(m.folder.folder, m.folder / "tuned"), m.be, m.back);
  CHECK(m.back->text_linear.weight(4, 7) == m.moshi->text_linear.weight(4, 7) + 3);
  CHECK(m.back->text_emb.weight(4, 7) == m.moshi->text_emb.weight(4, 7));

  config["lora_rank"] = 128;
  m.folder.put("tuned/config.json", config.dump());
  check_refused(
      [&] { load_moshi<foreign_moshi>(find_model(m.folder.folder, m.folder / "tuned"), m.be, m.back); },
      "found lora_A [1, 16] and lora_B [9, 1], expected [128, 16] and [9, 128]");
  for (const nlohmann::json& wrong : {nlohmann::json("128"), nlohmann::json(-1), nlohmann::json(1e300)}) {
    config["lora_rank"] = wrong;
    m.folder.put("tuned/config.json", config.dump());
    check_refused([&] { find_model(m.folder.folder, m.folder / "tuned"); },
                  "its config.json: found 'lora_rank': ");
  }
}

TEST_CASE("a published model takes TTT layers on top, which keep what they were initialised with", "[io]") {
  Model m;
  m.put(kyutai_config());
  write(m.folder / "model.safetensors", tensors_of(*m.moshi));
  write(m.folder / "mimi.safetensors", tensors_of(*m.mimi));
  Store<TttParams<2>, B> params(m.be);
  number(*params, 7);
  const auto before = tensors_of(*params);
  const auto files = find_model(m.folder.folder);
  check_refused([&] { load_moshi<with_ttt(2)>(files, m.be, params); },
                "missing tensor 'transformer.layers.1.ttt.wq.weight' of shape [16, 16]");
  LoadOptions options;
  options.may_be_missing = is_ttt_name;
  load_moshi<with_ttt(2)>(files, m.be, params, options);
  auto expected = tensors_of(*m.moshi);
  for (const auto& [name, stored] : before) {
    if (is_ttt_name(name)) expected[name] = stored;
  }
  for (const auto& [name, stored] : tensors_of(*params)) {
    INFO(name);
    CHECK(stored.values == expected.at(name).values);
  }
}

namespace {
/// What the fine-tuning program of the earlier attempt saved: wrapped layers, registered twice, a gate too
/// many.
template <class P>
Tensors attempt(const Store<P, B>& params, bool list_of_layers) {
  Tensors out;
  for (auto& [name, stored] : tensors_of(*params)) {
    const std::string layer = "transformer.layers.1.";
    const std::string rest = name.starts_with(layer) ? name.substr(layer.size()) : "";
    if (rest.empty()) {
      out[name] = stored;
    } else if (rest == "ttt.base_lr") {
    } else if (rest == "gating_alpha") {
      out[layer + "seq_modeling_block.forward_ssm_gating.gating_alpha"] = stored;
      out[layer + "seq_modeling_block.backward_ssm_gating.gating_alpha"] = stored;
    } else if (rest.starts_with("ttt.")) {
      std::string inner = rest;
      if (list_of_layers && (rest.starts_with("ttt.W") || rest.starts_with("ttt.b")))
        inner = (rest[4] == 'W' ? "ttt.weights." : "ttt.biases.") + std::to_string(rest[5] - '1');
      out[layer + "seq_modeling_block.ttt_layer." + inner] = stored;
    } else {
      out[layer + "original_layer." + rest] = out[layer + "seq_modeling_block.original_layer." + rest] =
          stored;
    }
  }
  return out;
}

template <Index inner_layers>
void load_attempt(bool list_of_layers) {
  Model m;
  Store<TttParams<inner_layers>, B> params(m.be), back(m.be);
  number(*params, 3);
  params->transformer.learning[0].ttt.inner.base_lr(0) = 0.25f;
  const Tensors theirs = attempt(params, list_of_layers);
  REQUIRE(theirs.contains("transformer.layers.1.seq_modeling_block.ttt_layer.ttt." +
                          std::string(list_of_layers ? "weights.0" : "W1")));
  m.put(kyutai_config());
  write(m.folder / "model.safetensors", theirs, DType::BF16);
  write(m.folder / "mimi.safetensors", tensors_of(*m.mimi));

  // All in one file; its learning rate is in the configuration of the training.
  auto files = find_model(m.folder.folder);
  check_refused([&] { load_moshi<with_ttt(inner_layers)>(files, m.be, back); },
                "1 problem:\n  - missing tensor 'transformer.layers.1.ttt.base_lr' of shape [1]");
  files.base_lr = 0.25;
  load_moshi<with_ttt(inner_layers)>(files, m.be, back);
  CHECK(same(params, back));

  // Or what was trained alone, beside the published model.
  std::memset(back.data(), 0, static_cast<std::size_t>(back.bytes()));
  Tensors trained, base;
  for (const auto& [name, stored] : theirs) {
    if (name.find("seq_modeling_block.ttt_layer") != name.npos || name.find("gating_alpha") != name.npos)
      trained[name] = stored;
  }
  for (const auto& [name, stored] : tensors_of(*params)) {
    if (!is_ttt_name(name)) base[name] = stored;
  }
  write(m.folder / "model.safetensors", base, DType::BF16);
  std::filesystem::create_directory(m.folder / "tuned");
  write(m.folder / "tuned/lora.safetensors", trained);
  m.folder.put("tuned/training_config.json", R"({"ttt": {"enable": true, "layers": "1", "base_lr": 0.25}})");
  load_moshi<with_ttt(inner_layers)>(find_model(m.folder.folder, m.folder / "tuned"), m.be, back);
  CHECK(same(params, back));
}
}  // namespace

TEST_CASE("checkpoints of the earlier TTT attempt: two inner layers", "[io]") { load_attempt<2>(false); }
TEST_CASE("checkpoints of the earlier TTT attempt: a list of inner layers", "[io]") { load_attempt<3>(true); }
