// Under which names and in which pieces other programs store the tensors that this library names.
//
// Names here are those of kyutai-labs/moshi today, split into steps:
// transformer.layers.0.self_attn.in_projs.0.weight. A table for each other form says, name by name, where the
// same numbers lie; spellings() gives all candidates for one tensor, likeliest first.
//
// Formula: a rule is {ours, theirs}. In ours, # is a number and * any text. In theirs, $1, $2 ... are what
//          these stood for, $1+1 and $1-1 its neighbours; " + " puts matrices one below the other; [$2] takes
//          one of several: place $2 on a leading axis, or block $2 of rows; [] takes all of a list
//          in_projs.0, in_projs.1, ...; ~ marks queries and keys whose rotary halves lie apart.
//          Rotary halves: row h D + 2 i + j of ours is row h D + j D / 2 + i of theirs, D the width of a
//          head.
// Shapes:  none.   Units: none.
// Errors:  none.
// Not supported: GGUF files.
// Source:  kyutai-labs/moshi modules/transformer.py `_load_hook`, scripts/import_rust.py,
//          scripts/import_mlx.py, moshi_mlx/models/lm.py `load_pytorch_weights`; huggingface/transformers
//          models/moshi and models/mimi, the conversion scripts; AlufRon/claude-web
//          moshi_ttt/hybrid_layer.py.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/io/tensor_files.hpp"

namespace mttt {

/// Who wrote a file, as its names tell.
enum class NameForm { kyutai, transformers, candle, mlx };

inline const char* name_of(NameForm form) {
  switch (form) {
    case NameForm::kyutai:
      return "kyutai-labs/moshi (PyTorch)";
    case NameForm::transformers:
      return "huggingface/transformers";
    case NameForm::candle:
      return "kyutai-labs/moshi (Rust)";
    case NameForm::mlx:
      return "kyutai-labs/moshi (MLX)";
  }
  return "";
}

namespace detail {

/// A stored tensor, or one of several that it holds.
struct TensorRef {
  std::string name;
  std::optional<std::size_t> block = {};
  bool rotary = false;  // rows in the order of rotary halves
  bool list = false;    // `name` is what stands before "0.weight", "1.weight", ...
};
/// Matrices one below the other.
using Spelling = std::vector<TensorRef>;

struct NameRule {
  std::string_view ours, theirs;
};

// Older files stack what weights per step split. The fine-tuning program of the earlier TTT attempt wraps
// layers.
inline constexpr NameRule kyutai_rules[] = {
    {"*in_projs.#.weight", "$1in_proj_weight[$2]"},
    {"*in_projs.#.weight", "$1in_proj.weight[$2]"},
    {"*out_projs.#.weight", "$1out_proj.weight[$2]"},
    {"*in_proj_weight", "$1in_proj.weight"},
    {"*in_proj.weight", "$1in_proj_weight"},
    {"*in_proj_weight", "$1in_projs.[]"},
    {"*in_proj.weight", "$1in_projs.[]"},
    {"*out_proj.weight", "$1out_projs.[]"},
    {"*layers.#.ttt.W#", "$1layers.$2.seq_modeling_block.ttt_layer.ttt.weights.$3-1"},
    {"*layers.#.ttt.b#", "$1layers.$2.seq_modeling_block.ttt_layer.ttt.biases.$3-1"},
    {"*layers.#.ttt.*", "$1layers.$2.seq_modeling_block.ttt_layer.ttt.$3"},
    {"*layers.#.gating_alpha", "$1layers.$2.seq_modeling_block.forward_ssm_gating.gating_alpha"},
    {"*layers.#.*", "$1layers.$2.seq_modeling_block.original_layer.$3"},
    {"*layers.#.*", "$1layers.$2.original_layer.$3"},
};

inline constexpr NameRule transformers_rules[] = {
    {"emb.#.weight", "embed_tokens.$1.weight"},
    {"text_emb.weight", "decoder.model.embed_tokens.weight"},
    {"out_norm.alpha", "decoder.model.norm.weight"},
    {"text_linear.weight", "decoder.lm_head.weight"},
    {"transformer.layers.#.self_attn.in_projs.0.weight",
     "decoder.model.layers.$1.self_attn.q_proj.linear.weight~ + "
     "decoder.model.layers.$1.self_attn.k_proj.linear.weight~ + "
     "decoder.model.layers.$1.self_attn.v_proj.linear.weight"},
    {"transformer.layers.#.self_attn.out_projs.0.weight",
     "decoder.model.layers.$1.self_attn.o_proj.linear.weight"},
    {"transformer.layers.#.gating.linear_in.weight", "decoder.model.layers.$1.mlp.fc1.weight"},
    {"transformer.layers.#.gating.linear_out.weight", "decoder.model.layers.$1.mlp.fc2.weight"},
    {"transformer.layers.#.norm1.alpha", "decoder.model.layers.$1.input_layernorm.weight"},
    {"transformer.layers.#.norm2.alpha", "decoder.model.layers.$1.post_attention_layernorm.weight"},
    {"depformer_in.#.weight", "depth_decoder.input_projections.weight[$1]"},
    {"depformer_emb.#.weight", "depth_decoder.embed_tokens.$1.weight"},
    {"depformer_text_emb.weight", "depth_decoder.text_embed_tokens.weight"},
    {"depformer.layers.#.self_attn.in_projs.#.weight",
     "depth_decoder.layers.$1.self_attn.q_proj.linear.weight[$2] + "
     "depth_decoder.layers.$1.self_attn.k_proj.linear.weight[$2] + "
     "depth_decoder.layers.$1.self_attn.v_proj.linear.weight[$2]"},
    {"depformer.layers.#.self_attn.out_projs.#.weight",
     "depth_decoder.layers.$1.self_attn.o_proj.linear.weight[$2]"},
    {"depformer.layers.#.gating.#.linear_in.weight", "depth_decoder.layers.$1.mlp.fc1.weight[$2]"},
    {"depformer.layers.#.gating.#.linear_out.weight", "depth_decoder.layers.$1.mlp.fc2.weight[$2]"},
    {"depformer.layers.#.norm1.alpha", "depth_decoder.layers.$1.input_layernorm.weight"},
    {"depformer.layers.#.norm2.alpha", "depth_decoder.layers.$1.post_attention_layernorm.weight"},
    {"linears.#.weight", "depth_decoder.lm_heads.weight[$1]"},
    // Mimi
    {"*coder.model.#.conv.conv.*", "$1coder.layers.$2.conv.$3"},
    {"*coder.model.#.convtr.convtr.*", "$1coder.layers.$2.conv.$3"},
    {"*coder.model.#.block.#.conv.conv.*", "$1coder.layers.$2.block.$3.conv.$4"},
    {"downsample.conv.conv.conv.weight", "downsample.conv.weight"},
    {"upsample.convtr.convtr.convtr.weight", "upsample.conv.weight"},
    {"*coder_transformer.transformer.layers.#.self_attn.in_projs.0.weight",
     "$1coder_transformer.layers.$2.self_attn.q_proj.weight~ + "
     "$1coder_transformer.layers.$2.self_attn.k_proj.weight~ + "
     "$1coder_transformer.layers.$2.self_attn.v_proj.weight"},
    {"*coder_transformer.transformer.layers.#.self_attn.out_projs.0.weight",
     "$1coder_transformer.layers.$2.self_attn.o_proj.weight"},
    {"*coder_transformer.transformer.layers.#.linear1.weight",
     "$1coder_transformer.layers.$2.mlp.fc1.weight"},
    {"*coder_transformer.transformer.layers.#.linear2.weight",
     "$1coder_transformer.layers.$2.mlp.fc2.weight"},
    {"*coder_transformer.transformer.layers.#.norm1.*", "$1coder_transformer.layers.$2.input_layernorm.$3"},
    {"*coder_transformer.transformer.layers.#.norm2.*",
     "$1coder_transformer.layers.$2.post_attention_layernorm.$3"},
    {"*coder_transformer.transformer.layers.#.layer_scale_1.scale",
     "$1coder_transformer.layers.$2.self_attn_layer_scale.scale"},
    {"*coder_transformer.transformer.layers.#.layer_scale_2.scale",
     "$1coder_transformer.layers.$2.mlp_layer_scale.scale"},
    {"quantizer.rvq_first.vq.layers.#._codebook.embedding_sum",
     "quantizer.semantic_residual_vector_quantizer.layers.$1.codebook.embed_sum"},
    {"quantizer.rvq_first.vq.layers.#._codebook.cluster_usage",
     "quantizer.semantic_residual_vector_quantizer.layers.$1.codebook.cluster_usage"},
    {"quantizer.rvq_first.vq.layers.#._codebook._initialized",
     "quantizer.semantic_residual_vector_quantizer.layers.$1.codebook.initialized"},
    {"quantizer.rvq_first.*", "quantizer.semantic_residual_vector_quantizer.$1"},
    {"quantizer.rvq_rest.vq.layers.#._codebook.embedding_sum",
     "quantizer.acoustic_residual_vector_quantizer.layers.$1.codebook.embed_sum"},
    {"quantizer.rvq_rest.vq.layers.#._codebook.cluster_usage",
     "quantizer.acoustic_residual_vector_quantizer.layers.$1.codebook.cluster_usage"},
    {"quantizer.rvq_rest.vq.layers.#._codebook._initialized",
     "quantizer.acoustic_residual_vector_quantizer.layers.$1.codebook.initialized"},
    {"quantizer.rvq_rest.*", "quantizer.acoustic_residual_vector_quantizer.$1"},
};

/// What later versions of transformers call what the table calls by its first name.
inline constexpr std::pair<std::string_view, std::string_view> transformers_versions[] = {
    {"decoder.model.", "model."},
    {"decoder.lm_head.weight", "lm_head.weight"},
    {"depth_decoder.", "depth_decoder.model."},
    {".linear.weight", ".weight"}};

// A depformer for each step. Norms, which the steps share, are stored with each: the first counts.
inline constexpr NameRule candle_rules[] = {
    {"depformer_in.#.weight", "depformer.$1.linear_in.weight"},
    {"linears.#.weight", "depformer.$1.linear_out.weight"},
    {"depformer_text_emb.weight", "depformer.0.emb.weight"},
    {"depformer_emb.#.weight", "depformer.$1+1.emb.weight"},
    {"depformer.layers.#.self_attn.in_projs.#.weight",
     "depformer.$2.transformer.layers.$1.self_attn.in_proj_weight"},
    {"depformer.layers.#.self_attn.out_projs.#.weight",
     "depformer.$2.transformer.layers.$1.self_attn.out_proj.weight"},
    {"depformer.layers.#.gating.#.*", "depformer.$2.transformer.layers.$1.gating.$3"},
    {"depformer.layers.#.norm#.alpha", "depformer.0.transformer.layers.$1.norm$2.alpha"},
};
inline constexpr NameRule mlx_rules[] = {
    {"emb.#.weight", "audio_embs.$1.weight"},
    {"out_norm.alpha", "out_norm.weight"},
    {"transformer.layers.#.norm#.alpha", "transformer.layers.$1.norm$2.weight"},
    {"depformer_in.#.weight", "depformer.slices.$1.linear_in.weight"},
    {"linears.#.weight", "depformer.slices.$1.linear_out.weight"},
    {"depformer_text_emb.weight", "depformer.slices.0.emb.weight"},
    {"depformer_emb.#.weight", "depformer.slices.$1+1.emb.weight"},
    {"depformer.layers.#.self_attn.in_projs.#.weight",
     "depformer.slices.$2.transformer.layers.$1.self_attn.in_proj.weight"},
    {"depformer.layers.#.self_attn.out_projs.#.weight",
     "depformer.slices.$2.transformer.layers.$1.self_attn.out_proj.weight"},
    {"depformer.layers.#.gating.#.*", "depformer.slices.$2.transformer.layers.$1.gating.$3"},
    {"depformer.layers.#.norm#.alpha", "depformer.slices.0.transformer.layers.$1.norm$2.weight"},
};

/// Names that a form repeats or adds, of which the model needs no second one. As the left side of a rule.
inline constexpr std::string_view repeated_names[] = {
    "depformer.#.transformer.layers.#.norm#.alpha",                   // candle: the steps share them
    "depformer.slices.#.transformer.layers.#.norm#.weight",           // mlx
    "*layers.#.original_layer.*",                                     // the TTT attempt: registered twice
    "*layers.#.seq_modeling_block.backward_ssm_gating.gating_alpha",  // the TTT attempt: never used
};

inline std::span<const NameRule> rules_of(NameForm form) {
  switch (form) {
    case NameForm::transformers:
      return transformers_rules;
    case NameForm::candle:
      return candle_rules;
    case NameForm::mlx:
      return mlx_rules;
    case NameForm::kyutai:
      break;
  }
  return {};
}

inline std::size_t digits_at_start(std::string_view text) {
  std::size_t n = 0;
  while (n < text.size() && text[n] >= '0' && text[n] <= '9') ++n;
  return n;
}

/// Whether `pattern` is all of `name`; `found` receives what # and * stand for. * is as long as it can be.
inline bool matches(std::string_view pattern, std::string_view name, std::vector<std::string_view>& found) {
  while (!pattern.empty() && pattern[0] != '*' && pattern[0] != '#') {
    if (name.empty() || name[0] != pattern[0]) return false;
    pattern.remove_prefix(1), name.remove_prefix(1);
  }
  if (pattern.empty()) return name.empty();
  const bool number = pattern[0] == '#';
  const std::size_t longest = number ? digits_at_start(name) : name.size(), shortest = number ? 1 : 0;
  for (std::size_t n = longest + 1; n-- > shortest;) {
    found.push_back(name.substr(0, n));
    if (matches(pattern.substr(1), name.substr(n), found)) return true;
    found.pop_back();
    if (number) break;  // numbers are whole
  }
  return false;
}

/// The right side of a rule, filled in.
inline Spelling filled_in(std::string_view theirs, std::span<const std::string_view> found) {
  const auto number = [](std::string_view digits) {
    std::size_t value = 0;
    for (const char c : digits) value = 10 * value + static_cast<std::size_t>(c - '0');
    return value;
  };
  Spelling spelling(1);
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    const std::string_view rest = theirs.substr(i);
    auto& ref = spelling.back();
    if (rest.starts_with(" + ")) {
      spelling.emplace_back(), i += 2;
    } else if (rest[0] == '~') {
      ref.rotary = true;
    } else if (rest.starts_with("[]")) {
      ref.list = true, ++i;
    } else if (rest[0] == '[') {  // [$2]
      ref.block = number(found[static_cast<std::size_t>(rest[2] - '1')]), i += 3;
    } else if (rest[0] == '$') {
      const auto value = found[static_cast<std::size_t>(rest[1] - '1')];
      const auto step = rest.substr(2, 2);
      ref.name += step == "+1"   ? std::to_string(number(value) + 1)
                  : step == "-1" ? std::to_string(number(value) - 1)
                                 : std::string(value);
      i += step == "+1" || step == "-1" ? 3 : 1;
    } else {
      ref.name += rest[0];
    }
  }
  return spelling;
}

/// Puts `by` for `old`, which starts or ends the name.
inline bool replace_once(std::string& name, std::string_view old, std::string_view by) {
  const bool starts = name.starts_with(old);
  if (!starts && !name.ends_with(old)) return false;
  name.replace(starts ? 0 : name.size() - old.size(), old.size(), by);
  return true;
}

/// All ways to find a tensor in a file of this form, likeliest first.
inline std::vector<Spelling> spellings(NameForm form, const std::string& name) {
  std::vector<Spelling> all;
  std::vector<std::string_view> found;
  for (const auto& rule : rules_of(form)) {
    found.clear();
    if (matches(rule.ours, name, found)) all.push_back(filled_in(rule.theirs, found));
  }
  if (form == NameForm::transformers) {  // versions nest the same modules in different ways
    for (const auto& [old, by] : transformers_versions) {
      for (std::size_t i = 0, n = all.size(); i < n; ++i) {
        Spelling other = all[i];
        bool differs = false;
        for (auto& ref : other) differs = replace_once(ref.name, old, by) || differs;
        if (differs) all.push_back(std::move(other));
      }
    }
  }
  std::vector<std::string> plain{name};
  std::set<std::string> seen{name};
  const auto by_name = [&](std::size_t i) {  // of what a name has, or a name within a wrapped layer
    for (const auto& rule : kyutai_rules) {
      found.clear();
      if (!matches(rule.ours, plain[i], found)) continue;
      auto next = filled_in(rule.theirs, found);
      const auto& ref = next.front();
      if (ref.block || ref.list) {
        all.push_back(std::move(next));
      } else if (plain[i].find("original_layer") == std::string::npos && seen.insert(ref.name).second) {
        plain.push_back(ref.name);
      }
    }
  };
  for (std::size_t i = 0; i < plain.size(); ++i) {
    all.push_back({{plain[i]}});
    by_name(i);
  }
  return all;
}

inline bool is_repeated_name(std::string_view name) {
  std::vector<std::string_view> found;
  return std::any_of(std::begin(repeated_names), std::end(repeated_names), [&](std::string_view pattern) {
    found.clear();
    return matches(pattern, name, found);
  });
}

}  // namespace detail

/// Of the names that start with `prefix`.
inline NameForm name_form(const TensorFiles& files, const std::string& prefix = "") {
  const auto has = [&](std::string_view name) { return files.contains(prefix + std::string(name)); };
  if (has("decoder.lm_head.weight") || has("lm_head.weight") || has("encoder.layers.0.conv.weight"))
    return NameForm::transformers;
  if (has("depformer.slices.0.linear_in.weight")) return NameForm::mlx;
  if (has("depformer.0.linear_in.weight")) return NameForm::candle;
  return NameForm::kyutai;
}

}  // namespace mttt
