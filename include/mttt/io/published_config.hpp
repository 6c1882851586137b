// The config.json of a published Moshi against the configuration that was compiled.
//
// Formula: hidden width of a gated layer from a feed-forward width f over d channels: 21 d / 8 where f = 4 d,
//          else 2 f / 3, rounded down; hidden_scale f / d.
// Shapes:  none.   Units: contexts and delays in frames.
// Errors:  every field that differs, with the value found and the value expected, in one message: of shapes,
//          of facts that this library fixes (norm, gating, ...), and fields that are not known and not empty.
// Not supported: reading a config into a type: shapes are compile time, a file can only agree or not. Of a
//                config of
//          transformers, which spells out defaults by the dozen, only the fields that decide shapes,
//          attention and RoPE are looked at. The context of a model with TTT layers is its own.
// Source:  kyutai-labs/moshi models/loaders.py `_lm_kwargs`, `get_moshi_lm`; huggingface/transformers
//          models/moshi/configuration_moshi.py.
#pragma once

#include "mttt/io/config.hpp"
#include "mttt/lm/moshi.hpp"

namespace mttt {
namespace detail {

class ConfigFields {
 public:
  explicit ConfigFields(const nlohmann::json& config) : config_(config) {}

  /// Must be there.
  void expect(const std::string& name, const nlohmann::json& expected) {
    known_.insert(name);
    const auto found = at(name);
    if (found.is_discarded()) {
      problems_.add("config field '", name, "': found nothing, expected ", expected.dump());
    } else if (found != expected) {
      problems_.add("config field '", name, "': found ", found.dump(), ", expected ", expected.dump());
    }
  }
  /// May be absent.
  void allow(const std::string& name, const nlohmann::json& expected) {
    known_.insert(name);
    if (!at(name).is_discarded()) expect(name, expected);
  }
  void ignore(const std::string& name) { known_.insert(name); }

  /// A width, or a factor of `dim`, from which the hidden width of gating follows.
  void expect_hidden(const std::string& name, Index dim, bool factor, Index hidden) {
    known_.insert(name);
    auto found = at(name);
    const std::string wanted = cat("what makes a hidden width of ", hidden);
    if (found.is_discarded())
      return problems_.add("config field '", name, "': found nothing, expected ", wanted);
    if (!found.is_array() || found.empty()) found = nlohmann::json::array({found});
    for (const auto& one : found) {  // one for each step, perhaps
      const double width = one.is_number() ? one.get<double>() * (factor ? static_cast<double>(dim) : 1) : -1;
      const auto feed_forward = static_cast<Index>(std::clamp(width, -1.0, 1e9));
      const Index makes = feed_forward == 4 * dim ? 21 * dim / 8 : 2 * feed_forward / 3;
      if (makes == hidden) continue;
      return problems_.add("config field '", name, "': found ", at(name).dump(), ", which makes ", makes,
                           ", expected ", wanted);
    }
  }

  void refuse_unknown() {
    for (const auto& [name, value] : config_.items()) {
      if (known_.contains(name) || value.empty() || value == false) continue;  // null is empty too
      problems_.add("config field '", name, "': found ", value.dump(), ", expected no such field");
    }
  }
  const Problems& problems() const { return problems_; }

 private:
  /// By a dotted name; discarded where there is none.
  nlohmann::json at(const std::string& name) const {
    const nlohmann::json* value = &config_;
    for (std::size_t from = 0; from <= name.size();) {
      const std::size_t dot = std::min(name.find('.', from), name.size());
      const auto key = name.substr(from, dot - from);
      if (!value->is_object() || !value->contains(key)) return nlohmann::json::value_t::discarded;
      value = &(*value)[key];
      from = dot + 1;
    }
    return *value;
  }

  const nlohmann::json& config_;
  std::set<std::string> known_;
  Problems problems_;
};

template <MoshiConfig C>
void expect_kyutai_config(ConfigFields& fields) {
  nlohmann::json delays = nlohmann::json::array();
  for (Index k = 0; k < C.streams(); ++k) delays.push_back(C.delays.of[k]);
  fields.expect("n_q", C.n_q);
  fields.expect("dep_q", C.dep_q);
  fields.expect("card", C.card);
  fields.expect("text_card", C.text_card);
  fields.expect("delays", delays);
  fields.expect("dim", C.temporal.dim);
  fields.expect("num_heads", C.temporal.num_heads);
  fields.expect("num_layers", C.temporal.num_layers);
  fields.expect_hidden("hidden_scale", C.temporal.dim, true, C.temporal.hidden);
  C.temporal.num_ttt_layers() == 0 ? fields.expect("context", C.temporal.context) : fields.ignore("context");
  fields.expect("max_period", C.temporal.max_period);
  fields.expect("depformer_dim", C.depformer.dim);
  fields.expect("depformer_num_heads", C.depformer.num_heads);
  fields.expect("depformer_num_layers", C.depformer.num_layers);
  fields.expect_hidden("depformer_dim_feedforward", C.depformer.dim, false, C.depformer.hidden);
  fields.expect("gating", "silu");
  fields.expect("norm", "rms_norm_f32");
  fields.expect("positional_embedding", "rope");
  fields.expect("depformer_gating", "silu");
  fields.expect("depformer_pos_emb", "none");
  fields.expect("depformer_multi_linear", true);
  fields.expect("depformer_weights_per_step", true);
  fields.allow("existing_text_padding_id", C.existing_text_padding_id);
  fields.allow("existing_text_end_padding_id", C.existing_text_end_padding_id);
  fields.allow("causal", true);
  fields.allow("kv_repeat", C.temporal.kv_repeat);
  fields.allow("text_card_out", C.text_card);
  fields.allow("model_type", "moshi");
  fields.allow("extra_heads_num_heads", 0);
  // Without a meaning for the weights, or without one where the fields above hold.
  for (const char* name :
       {"moshi_name", "mimi_name", "tokenizer_name", "lora_name", "mimi_config_name", "quantize", "lora",
        "lora_rank", "lora_scaling", "lm_gen_config", "model_id", "depformer_causal", "depformer_context",
        "depformer_max_period", "extra_heads_dim", "gradient_checkpointing"})
    fields.ignore(name);
  fields.refuse_unknown();
}

template <MoshiConfig C>
void expect_transformers_config(ConfigFields& fields, const nlohmann::json& config) {
  const std::string depth = "depth_decoder_config.";
  fields.expect("vocab_size", C.text_card);
  fields.expect("num_codebooks", C.dep_q);
  fields.expect("hidden_size", C.temporal.dim);
  fields.expect("num_attention_heads", C.temporal.num_heads);
  fields.expect("num_hidden_layers", C.temporal.num_layers);
  fields.expect("ffn_dim", 2 * C.temporal.hidden);
  if (C.temporal.num_ttt_layers() == 0) fields.expect("sliding_window", C.temporal.context);
  fields.expect(config.contains("rope_parameters") ? "rope_parameters.rope_theta" : "rope_theta",
                C.temporal.max_period);
  fields.allow("num_key_value_heads", C.temporal.num_heads / C.temporal.kv_repeat);
  fields.allow("head_dim", C.temporal.dim / C.temporal.num_heads);
  fields.allow("audio_vocab_size", C.card);
  fields.allow("hidden_act", "silu");
  fields.allow("rms_norm_eps", C.temporal.norm_eps);
  fields.expect(depth + "hidden_size", C.depformer.dim);
  fields.expect(depth + "num_attention_heads", C.depformer.num_heads);
  fields.expect(depth + "num_hidden_layers", C.depformer.num_layers);
  fields.expect(depth + "ffn_dim", 2 * C.depformer.hidden);
  fields.allow(depth + "num_key_value_heads", C.depformer.num_heads);
  fields.allow(depth + "hidden_act", "silu");
}

}  // namespace detail

/// Every field of a config.json in which it differs from the configuration that was compiled.
template <MoshiConfig C>
detail::Problems published_config_problems(const nlohmann::json& config) {
  detail::ConfigFields fields(config);
  config.contains("depth_decoder_config") ? detail::expect_transformers_config<C>(fields, config)
                                          : detail::expect_kyutai_config<C>(fields);
  return fields.problems();
}

/// Refuses the config.json of another model. `subject` is the file's name.
template <MoshiConfig C>
void expect_published_config(std::string_view subject, const nlohmann::json& config) {
  if (!config.is_object()) fail(subject, "no JSON object", "the configuration of a model");
  published_config_problems<C>(config).stop(
      subject, "the configuration that this program was compiled for",
      "compile the program with the preset of the file, or choose another file");
}

}  // namespace mttt
