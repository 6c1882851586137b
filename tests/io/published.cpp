// Weights of Moshi and Mimi under the names of every program that publishes them, and what is said when they
// do not fit.
#include "foreign.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using mttt::test::contains;

struct Models {
  B be;
  Store<MoshiParams, B> moshi{be}, moshi_back{be};
  Store<MimiParams, B> mimi{be}, mimi_back{be};
  Models() { number(*moshi), number(*mimi, 5); }
};
LoadOptions heads(Index dim, Index count) {
  LoadOptions options;
  options.head_dim = dim / count;
  return options;
}
const LoadOptions moshi_heads = heads(16, 2), mimi_heads = heads(8, 2);
}  // namespace

TEST_CASE("Moshi in the names of each program gives the same weights", "[io]") {
  const Scratch folder;
  Models m;
  const auto ours = tensors_of(*m.moshi);
  const std::vector<std::pair<NameForm, Tensors>> forms{
      {NameForm::kyutai, ours},
      {NameForm::kyutai, moshi_fused(ours, "in_proj_weight")},
      {NameForm::kyutai, moshi_fused(ours, "in_proj.weight")},
      {NameForm::transformers, moshi_in_transformers(ours)},
      {NameForm::transformers, moshi_in_later_transformers(ours, false)},
      {NameForm::transformers, moshi_in_later_transformers(ours, true)},
      {NameForm::candle, moshi_in_steps(ours, false)},
      {NameForm::mlx, moshi_in_steps(ours, true)}};
  for (std::size_t i = 0; i < forms.size(); ++i) {
    INFO(name_of(forms[i].first) << ", " << i);
    std::memset(m.moshi_back.data(), 0, static_cast<std::size_t>(m.moshi_back.bytes()));
    write(folder / "m", forms[i].second, DType::BF16);
    CHECK(name_form(TensorFiles(folder / "m")) == forms[i].first);
    load_params(folder / "m", m.be, m.moshi_back, moshi_heads);
    CHECK(same(m.moshi, m.moshi_back));
    check_params<MoshiParams>(folder / "m", moshi_heads);

    // Nothing may be left out and nothing may go unnoticed.
    for (const auto& [name, stored] : forms[i].second) {
      auto less = forms[i].second;
      less.erase(name);
      const bool copy = detail::is_repeated_name(name) && name.find(".0.transformer") == name.npos;
      write(folder / "less", less, DType::BF16);
      INFO("without " << name);
      CHECK((error_of([&] {
               check_params<MoshiParams>(folder / "less", moshi_heads);
             }).find("missing tensor") != std::string::npos) == !copy);
      if (name.find("in_proj") != name.npos) break;  // one matrix of each form is enough
    }
    auto more = forms[i].second;
    more["condition_provider.x"] = {{2}, {1, 2}};
    write(folder / "more", more);
    check_refused([&] { load_params(folder / "more", m.be, m.moshi_back, moshi_heads); },
                  "1 problem:\n  - extra tensor 'condition_provider.x' of shape [2]");
  }
}

TEST_CASE("Mimi in the names of each program gives the same weights", "[io]") {
  const Scratch folder;
  Models m;
  const auto ours = tensors_of(*m.mimi);
  const std::string prefix = GENERATE("", "audio_encoder.");
  const Tensors theirs = prefix.empty() ? moshi_fused(ours, "in_proj_weight") : ours;
  write(folder / "k", theirs);
  load_params(folder / "k", m.be, m.mimi_back, mimi_heads);
  CHECK(same(m.mimi, m.mimi_back));

  const auto renamed = mimi_in_transformers(ours, prefix);
  CHECK(renamed.contains(prefix + "encoder_transformer.layers.1.self_attn.q_proj.weight"));
  CHECK(
      renamed.contains(prefix + "quantizer.acoustic_residual_vector_quantizer.layers.1.codebook.embed_sum"));
  write(folder / "t", renamed);
  std::memset(m.mimi_back.data(), 0, static_cast<std::size_t>(m.mimi_back.bytes()));
  auto options = mimi_heads;
  options.prefix = prefix;
  load_params(folder / "t", m.be, m.mimi_back, options);
  CHECK(same(m.mimi, m.mimi_back));
  check_params<MimiParams>(folder / "t", options);
}

TEST_CASE("a file whose rotary halves lie apart needs the width of a head", "[io]") {
  const Scratch folder;
  Models m;
  write(folder / "t", moshi_in_transformers(tensors_of(*m.moshi)));
  check_refused(
      [&] { load_params(folder / "t", m.be, m.moshi_back); },
      "tensor 'decoder.model.layers.0.self_attn.q_proj.linear.weight': found 16 rows in rotary halves, "
      "expected heads of 0 rows");
}

TEST_CASE("shards are one model", "[io]") {
  const Scratch folder;
  Models m;
  Tensors first = moshi_in_transformers(tensors_of(*m.moshi)), second;
  nlohmann::json map;
  for (auto it = first.begin(); it != first.end();) {
    const bool move = map.size() % 2 == 1;
    map[it->first] = move ? "model-2.safetensors" : "model-1.safetensors";
    if (move) second.insert(*it);
    it = move ? first.erase(it) : std::next(it);
  }
  write(folder / "model-1.safetensors", first), write(folder / "model-2.safetensors", second);
  const auto put = [&](const nlohmann::json& weights) {
    folder.put("model.safetensors.index.json", nlohmann::json{{"weight_map", weights}}.dump());
  };
  put(map);
  load_params(folder.folder, m.be, m.moshi_back, moshi_heads);
  CHECK(same(m.moshi, m.moshi_back));

  const auto load = [&] { load_params(folder.folder, m.be, m.moshi_back, moshi_heads); };
  auto wrong = map;
  wrong["decoder.lm_head.weight"] =
      map["decoder.lm_head.weight"] == "model-1.safetensors" ? "model-2.safetensors" : "model-1.safetensors";
  put(wrong);
  check_refused(load, "tensor 'decoder.lm_head.weight', which is not in 'model-");
  wrong["decoder.lm_head.weight"] = "../model-1.safetensors";
  put(wrong);
  check_refused(load, "in '\"../model-1.safetensors\"'");
  wrong["decoder.lm_head.weight"] = "model-3.safetensors";
  put(wrong);
  check_refused(load, "model-3.safetensors: found no such file");
  put(nlohmann::json::object());
  check_refused(load, "no 'weight_map'");
  put(map);
  second.insert(*first.begin());
  write(folder / "model-2.safetensors", second);
  check_refused(load, "which an earlier shard holds too");
  std::filesystem::remove(folder / "model.safetensors.index.json");
  check_refused(load, "neither model.safetensors nor model.safetensors.index.json");
}

TEST_CASE("what does not fit is told by both names, the first dozen of many", "[io]") {
  const Scratch folder;
  Models m;
  auto theirs = moshi_in_transformers(tensors_of(*m.moshi));
  theirs["decoder.model.layers.1.self_attn.v_proj.linear.weight"].shape = {8, 32};
  theirs["depth_decoder.lm_heads.weight"] = {{2, 6, 8}, std::vector<float>(96)};  // a step too few
  theirs["decoder.lm_head.weight"].shape = {16, 9};
  theirs.erase("depth_decoder.text_embed_tokens.weight");
  theirs["decoder.model.norm.weight"].values[3] = NAN;
  write(folder / "t", theirs);
  const std::string message = error_of([&] { load_params(folder / "t", m.be, m.moshi_back, moshi_heads); });
  CHECK_THAT(message, contains("found 5 problems:"));
  CHECK_THAT(message,
             contains("misshapen tensor 'transformer.layers.1.self_attn.in_projs.0.weight': found [] in "
                      "'decoder.model.layers.1.self_attn.q_proj.linear.weight + "));
  CHECK_THAT(message, contains("misshapen tensor 'linears.2.weight': found [2, 6, 8] in "
                               "'depth_decoder.lm_heads.weight', expected [6, 8]"));
  CHECK_THAT(message, contains("misshapen tensor 'text_linear.weight': found [16, 9] in "
                               "'decoder.lm_head.weight', expected [9, 16]"));
  CHECK_THAT(message, contains("missing tensor 'depformer_text_emb.weight' "
                               "('depth_decoder.text_embed_tokens.weight') of shape [10, 8]"));
  CHECK_THAT(message, contains("tensor 'decoder.model.norm.weight': found nan at index [3]"));

  write(folder / "empty", {{"decoder.lm_head.weight", {{9, 16}, std::vector<float>(144)}}});
  const std::string many = error_of([&] { check_params<MoshiParams>(folder / "empty", moshi_heads); });
  const std::string count = std::to_string(tensors_of(*m.moshi).size() - 1);
  CHECK_THAT(many, contains("found " + count + " problems:") &&
                       contains("  - and " + std::to_string(std::stoi(count) - 12) + " more"));
  std::size_t lines = 0;
  for (std::size_t i = many.find("\n  - "); i != many.npos; i = many.find("\n  - ", i + 1)) ++lines;
  CHECK(lines == 13);
}

TEST_CASE("files that are taken for safetensors are called by their name", "[io]") {
  const Scratch folder;
  const auto says = [&](const std::string& content, const std::string& words) {
    check_refused([&] { const SafetensorsFile file(folder.put("f", content)); }, words);
  };
  says("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "found a Git LFS pointer");
  says("GGUF" + std::string(100, '\1'), "found a GGUF file");
  says(std::string("PK\3\4\0\0\b\b", 8) + std::string(100, '\0'), "found a zip archive, as PyTorch saves");
  says("<!DOCTYPE html><html></html>", "found a web page");
}
