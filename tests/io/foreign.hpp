// A small Moshi and a small Mimi, and files of their weights as other programs write them. What is written
// here comes from the conversion scripts of those programs, not from the tables that read it.
#pragma once

#include <list>
#include <map>

#include "mttt/io/published.hpp"
#include "scratch.hpp"

namespace mttt::testing {

inline constexpr MoshiConfig foreign_moshi{
    .n_q = 4,
    .dep_q = 3,
    .card = 6,
    .text_card = 9,
    .delays = {0, 0, 1, 1, 1},
    .temporal = {.dim = 16, .num_heads = 2, .num_layers = 2, .hidden = gating_hidden(16, 66), .context = 4},
    .depformer = {.dim = 8, .num_heads = 2, .num_layers = 2, .hidden = gating_hidden(8, 33)}};
inline constexpr MimiConfig foreign_mimi{
    .sample_rate = 1200,
    .seanet = {.dimension = 8, .n_filters = 2, .kernel_size = 3, .ratios = {3, 2}},
    .transformer = {.d_model = 8, .num_heads = 2, .num_layers = 2, .dim_feedforward = 12, .context = 5},
    .quantizer = {.dim = 8, .codebook_dim = 4, .card = 9, .n_q = 3}};

using B = Cpu<float>;
using MoshiParams = Moshi<foreign_moshi, B>::Params;
using MimiParams = Mimi<foreign_mimi, B>::Params;

/// A tensor as a file holds it.
struct Stored {
  std::vector<std::int64_t> shape;
  std::vector<float> values;

  std::int64_t rows() const { return shape.at(0); }
  std::size_t row_size() const { return values.size() / static_cast<std::size_t>(rows()); }
  /// Rows [first, first + count).
  Stored part(std::int64_t first, std::int64_t count) const {
    Stored out{shape, {}};
    out.shape[0] = count;
    const auto at = values.begin() + first * static_cast<std::ptrdiff_t>(row_size());
    out.values.assign(at, at + count * static_cast<std::ptrdiff_t>(row_size()));
    return out;
  }
};
using Tensors = std::map<std::string, Stored>;

/// One below the other; or on a new leading axis.
inline Stored stacked(const std::vector<Stored>& parts, bool new_axis) {
  Stored out = parts.at(0);
  for (std::size_t i = 1; i < parts.size(); ++i)
    out.values.insert(out.values.end(), parts[i].values.begin(), parts[i].values.end());
  if (new_axis) {
    out.shape.insert(out.shape.begin(), static_cast<std::int64_t>(parts.size()));
  } else {
    out.shape[0] *= static_cast<std::int64_t>(parts.size());
  }
  return out;
}

/// All tensors of an aggregate under our names, in published shapes.
template <class P>
Tensors tensors_of(const P& params) {
  Tensors all;
  for_each_tensor(
      [&](std::string_view name, const auto& tensor) {
        Stored stored{detail::shape_of(tensor), std::vector<float>(static_cast<std::size_t>(tensor.size()))};
        to_published(tensor, stored.values.data());
        all[std::string(name)] = std::move(stored);
      },
      params);
  return all;
}

/// Different numbers everywhere, exact in bf16.
template <class P>
void number(P& params, int seed = 0) {
  int i = seed;
  for_each_tensor(
      [&](std::string_view, auto& tensor) {
        for (Index k = 0; k < tensor.size(); ++k)
          tensor.data()[k] = float(bf16(0.01f * static_cast<float>((i = (i * 73 + 11) % 2003) - 1000)));
      },
      params);
}

inline void write(const std::filesystem::path& path, const Tensors& tensors,
                  std::optional<DType> dtype = {}) {
  SafetensorsWriter writer;
  for (const auto& [name, stored] : tensors) {
    if (dtype) {
      writer.add_rounded(name, *dtype, stored.shape, std::span<const float>(stored.values));
    } else {
      writer.add(name, stored.shape, std::span<const float>(stored.values));
    }
  }
  writer.write(path);
}

template <class P>
bool same(const Store<P, B>& a, const Store<P, B>& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

/// Moves a tensor to another name.
inline Stored take(Tensors& from, const std::string& name) {
  const auto at = from.find(name);
  if (at == from.end()) throw std::runtime_error("no tensor " + name);
  Stored out = std::move(at->second);
  from.erase(at);
  return out;
}
inline std::string at(const std::string& text, Index i) {
  return text.substr(0, text.find('#')) + std::to_string(i) + text.substr(text.find('#') + 1);
}

/// transformers' `permute`: w.view(heads, D / 2, 2, columns).transpose(1, 2).
inline Stored rotary_halves(const Stored& w, std::int64_t heads) {
  Stored out{w.shape, {}};
  const std::int64_t half = w.rows() / heads / 2;
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t j = 0; j < 2; ++j) {
      for (std::int64_t i = 0; i < half; ++i) {
        const Stored row = w.part((h * half + i) * 2 + j, 1);
        out.values.insert(out.values.end(), row.values.begin(), row.values.end());
      }
    }
  }
  return out;
}

inline void split_qkv(Tensors& to, const std::string& stem, const std::string& end, const Stored& w,
                      std::int64_t heads) {
  const std::int64_t rows = w.rows() / 3;
  to[stem + "q_proj" + end] = rotary_halves(w.part(0, rows), heads);
  to[stem + "k_proj" + end] = rotary_halves(w.part(rows, rows), heads);
  to[stem + "v_proj" + end] = w.part(2 * rows, rows);
}

/// As MoshiForConditionalGeneration names its state.
inline Tensors moshi_in_transformers(Tensors ours) {
  constexpr auto C = foreign_moshi;
  Tensors out;
  const auto flat = [](Stored alpha) {
    alpha.shape = {alpha.shape.back()};
    return alpha;
  };
  const auto steps = [&](const std::string& name, std::int64_t first, std::int64_t parts) {
    std::vector<Stored> all;
    for (Index k = 0; k < C.dep_q; ++k) {
      const Stored& one = ours.at(at(name, k));
      all.push_back(parts == 1 ? one : one.part(first * one.rows() / parts, one.rows() / parts));
    }
    return stacked(all, true);
  };
  for (Index k = 0; k < C.n_q; ++k) out[at("embed_tokens.#.weight", k)] = ours.at(at("emb.#.weight", k));
  out["decoder.model.embed_tokens.weight"] = ours.at("text_emb.weight");
  out["decoder.model.norm.weight"] = flat(ours.at("out_norm.alpha"));
  out["decoder.lm_head.weight"] = ours.at("text_linear.weight");
  for (Index i = 0; i < C.temporal.num_layers; ++i) {
    const std::string from = at("transformer.layers.#.", i), to = at("decoder.model.layers.#.", i);
    split_qkv(out, to + "self_attn.", ".linear.weight", ours.at(from + "self_attn.in_projs.0.weight"),
              C.temporal.num_heads);
    out[to + "self_attn.o_proj.linear.weight"] = ours.at(from + "self_attn.out_projs.0.weight");
    out[to + "mlp.fc1.weight"] = ours.at(from + "gating.linear_in.weight");
    out[to + "mlp.fc2.weight"] = ours.at(from + "gating.linear_out.weight");
    out[to + "input_layernorm.weight"] = flat(ours.at(from + "norm1.alpha"));
    out[to + "post_attention_layernorm.weight"] = flat(ours.at(from + "norm2.alpha"));
  }
  out["depth_decoder.text_embed_tokens.weight"] = ours.at("depformer_text_emb.weight");
  for (Index k = 0; k + 1 < C.dep_q; ++k)
    out[at("depth_decoder.embed_tokens.#.weight", k)] = ours.at(at("depformer_emb.#.weight", k));
  out["depth_decoder.input_projections.weight"] = steps("depformer_in.#.weight", 0, 1);
  out["depth_decoder.lm_heads.weight"] = steps("linears.#.weight", 0, 1);
  for (Index i = 0; i < C.depformer.num_layers; ++i) {
    const std::string from = at("depformer.layers.#.", i), to = at("depth_decoder.layers.#.", i);
    for (const std::int64_t part : {0, 1, 2})
      out[to + "self_attn." + "qkv"[part] + "_proj.linear.weight"] =
          steps(from + "self_attn.in_projs.#.weight", part, 3);
    out[to + "self_attn.o_proj.linear.weight"] = steps(from + "self_attn.out_projs.#.weight", 0, 1);
    out[to + "mlp.fc1.weight"] = steps(from + "gating.#.linear_in.weight", 0, 1);
    out[to + "mlp.fc2.weight"] = steps(from + "gating.#.linear_out.weight", 0, 1);
    out[to + "input_layernorm.weight"] = flat(ours.at(from + "norm1.alpha"));
    out[to + "post_attention_layernorm.weight"] = flat(ours.at(from + "norm2.alpha"));
  }
  return out;
}

inline std::string replaced(std::string text, const std::string& old, const std::string& by) {
  for (std::size_t i = text.find(old); i != text.npos; i = text.find(old, i + by.size()))
    text.replace(i, old.size(), by);
  return text;
}

/// Versions that lift the decoder and, later, put the depth decoder's body below its heads.
inline Tensors moshi_in_later_transformers(const Tensors& ours, bool depth_body) {
  Tensors out;
  for (const auto& [name, stored] : moshi_in_transformers(ours)) {
    std::string later = name;
    if (name.starts_with("decoder.")) later = name.substr(8);
    if (depth_body) later = replaced(later, ".linear.weight", ".weight");
    if (depth_body && name.find("lm_heads") == name.npos)
      later = replaced(later, "depth_decoder.", "depth_decoder.model.");
    out[later] = stored;
  }
  return out;
}

/// As MimiModel names its state: the renaming of its conversion script, in its order.
inline Tensors mimi_in_transformers(const Tensors& ours, const std::string& prefix) {
  const std::vector<std::pair<std::string, std::string>> renamed{
      {"conv.conv.conv", "conv"},
      {"convtr.convtr.convtr", "conv"},
      {"conv.conv", "conv"},
      {"convtr.convtr", "conv"},
      {"quantizer.rvq_first.vq", "quantizer.semantic_residual_vector_quantizer"},
      {"quantizer.rvq_first", "quantizer.semantic_residual_vector_quantizer"},
      {"quantizer.rvq_rest.vq", "quantizer.acoustic_residual_vector_quantizer"},
      {"quantizer.rvq_rest", "quantizer.acoustic_residual_vector_quantizer"},
      {"_codebook", "codebook"},
      {"_initialized", "initialized"},
      {"embedding_sum", "embed_sum"},
      {"encoder.model", "encoder.layers"},
      {"decoder.model", "decoder.layers"},
      {"encoder_transformer.transformer", "encoder_transformer"},
      {"decoder_transformer.transformer", "decoder_transformer"},
      {"linear1", "mlp.fc1"},
      {"linear2", "mlp.fc2"},
      {"self_attn.out_projs.0", "self_attn.o_proj"},
      {"norm1", "input_layernorm"},
      {"norm2", "post_attention_layernorm"},
      {"layer_scale_1", "self_attn_layer_scale"},
      {"layer_scale_2", "mlp_layer_scale"}};
  Tensors out;
  for (const auto& [name, stored] : ours) {
    std::string theirs = name;
    for (const auto& [old, by] : renamed) theirs = replaced(theirs, old, by);
    theirs = prefix + theirs;
    const std::size_t in_proj = theirs.find("in_projs.0.weight");
    if (in_proj == theirs.npos) {
      out[theirs] = stored;
    } else {
      split_qkv(out, theirs.substr(0, in_proj), ".weight", stored, foreign_mimi.transformer.num_heads);
    }
  }
  return out;
}

/// As import_rust.py and import_mlx.py cut the depformer into steps.
template <MoshiConfig C = foreign_moshi>
Tensors moshi_in_steps(Tensors ours, bool mlx) {
  Tensors out;
  const auto alpha = [&](const std::string& from, const std::string& to) {
    Stored stored = ours.at(from + ".alpha");
    if (mlx) stored.shape = {stored.shape.back()};
    out[to + (mlx ? ".weight" : ".alpha")] = stored;
  };
  const std::string in_proj = mlx ? "in_proj.weight" : "in_proj_weight";
  for (Index k = 0; k < C.n_q; ++k)
    out[at(mlx ? "audio_embs.#.weight" : "emb.#.weight", k)] = ours.at(at("emb.#.weight", k));
  for (const std::string name : {"text_emb.weight", "text_linear.weight"}) out[name] = ours.at(name);
  alpha("out_norm", "out_norm");
  for (Index i = 0; i < C.temporal.num_layers; ++i) {
    const std::string layer = at("transformer.layers.#.", i);
    alpha(layer + "norm1", layer + "norm1"), alpha(layer + "norm2", layer + "norm2");
    out[layer + "self_attn." + in_proj] = ours.at(layer + "self_attn.in_projs.0.weight");
    out[layer + "self_attn.out_proj.weight"] = ours.at(layer + "self_attn.out_projs.0.weight");
    for (const std::string half : {"in", "out"})
      out[layer + "gating.linear_" + half + ".weight"] = ours.at(layer + "gating.linear_" + half + ".weight");
  }
  for (Index k = 0; k < C.dep_q; ++k) {
    const std::string step = at(mlx ? "depformer.slices.#." : "depformer.#.", k);
    out[step + "linear_in.weight"] = ours.at(at("depformer_in.#.weight", k));
    out[step + "linear_out.weight"] = ours.at(at("linears.#.weight", k));
    out[step + "emb.weight"] =
        k == 0 ? ours.at("depformer_text_emb.weight") : ours.at(at("depformer_emb.#.weight", k - 1));
    for (Index i = 0; i < C.depformer.num_layers; ++i) {
      const std::string from = at("depformer.layers.#.", i), to = step + at("transformer.layers.#.", i);
      out[to + "self_attn." + in_proj] = ours.at(from + at("self_attn.in_projs.#.weight", k));
      out[to + "self_attn.out_proj.weight"] = ours.at(from + at("self_attn.out_projs.#.weight", k));
      for (const std::string half : {"in", "out"})
        out[to + "gating.linear_" + half + ".weight"] =
            ours.at(from + at("gating.#.linear_" + half + ".weight", k));
      alpha(from + "norm1", to + "norm1"), alpha(from + "norm2", to + "norm2");
    }
  }
  return out;
}

/// Older files of kyutai-labs/moshi: weights per step below each other.
inline Tensors moshi_fused(const Tensors& ours, const std::string& in_proj) {
  Tensors out;
  std::map<std::string, std::map<int, Stored>> lists;
  for (const auto& [name, stored] : ours) {
    const std::size_t list = name.find("_projs.");
    if (list == name.npos) {
      out[name] = stored;
    } else {
      lists[name.substr(0, list)][std::stoi(name.substr(list + 7))] = stored;
    }
  }
  for (const auto& [stem, parts] : lists) {
    std::vector<Stored> all;
    for (const auto& [k, stored] : parts) all.push_back(stored);
    const bool in = stem.ends_with(".in");
    out[in ? stem.substr(0, stem.size() - 2) + in_proj : stem + "_proj.weight"] = stacked(all, false);
  }
  return out;
}

}  // namespace mttt::testing
