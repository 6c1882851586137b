// TrainConfig: a training as a YAML file describes it, with the keys and defaults of moshi-finetune, those of
// the earlier TTT attempt under `ttt`, and ours.
//
// Keys that decide shapes are part of the preset that a program was compiled for. A file may leave them out;
// where it gives them they must agree, see expect_preset.
//
// Shapes:  none.
// Units:   duration_sec in seconds, contexts in frames (12.5 a second), learning rates as AdamW takes them.
// Errors:  those of yaml.hpp; keys that contradict each other or the preset, all in one message, with lines.
// Not supported: keys of evaluations (paper_metrics) and of Weights & Biases: taken, and said to have no
//          effect.
// Source:  kyutai-labs/moshi-finetune finetune/args.py; the earlier attempt's finetune/args.py.
#pragma once

#include "mttt/io/manifest.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/yaml.hpp"
#include "mttt/train/loss.hpp"
#include "mttt/train/param_groups.hpp"
#include "mttt/train/trainer.hpp"

namespace mttt {

/// Layers by name: "all", "middle" (the middle half), "none", "29,30,31", or a list [29, 30, 31].
struct LayerChoice {
  static constexpr bool joins_lists = true;  // for yaml.hpp
  std::string text = "none";

  /// Nothing where the text is no choice among `num_layers` layers.
  std::optional<LayerSet> among(Index num_layers) const {
    if (text == "all") return LayerSet::range(0, num_layers - 1);
    if (text == "middle") return LayerSet::range(num_layers / 4, 3 * num_layers / 4 - 1);
    LayerSet set;
    if (text == "none" || text.empty()) return set;
    for (std::size_t at = 0; at <= text.size();) {
      const std::size_t end = std::min(text.find(',', at), text.size());
      std::string_view number = std::string_view(text).substr(at, end - at);
      while (!number.empty() && number.front() == ' ') number.remove_prefix(1);
      while (!number.empty() && number.back() == ' ') number.remove_suffix(1);
      Index layer = -1;
      const auto read = std::from_chars(number.data(), number.data() + number.size(), layer);
      if (read.ec != std::errc() || read.ptr != number.data() + number.size() || layer < 0 ||
          layer >= num_layers || set.contains(layer))
        return std::nullopt;
      set.bits |= std::uint64_t{1} << layer;
      at = end + 1;
    }
    return set;
  }
};

struct TrainConfig {
  /// From a step on, segments of another length.
  struct Stage {
    std::int64_t first_step = 0;
    double duration_sec = 0;
    static void visit(auto&& f, auto& c) {
      f("first_step", c.first_step, at_least(1));
      f("duration_sec", c.duration_sec, above(0));
    }
  };
  struct Filter : RecordingFilter {
    static void visit(auto&& f, auto& c) {
      f("min_duration_sec", c.min_duration_sec, at_least(0));
      f("max_duration_sec", c.max_duration_sec, above(0));
      f("max_silence", c.max_silence, between(0, 1));
      f("max_dominance", c.max_dominance, between(0.5, 1));
    }
  };
  struct Data {
    std::string train_data;  // manifests, or folders of them: "a.jsonl:0.7,b.jsonl:0.3"
    std::string eval_data;
    bool shuffle = false;  // random segments; otherwise recordings from their start to their end
    Filter filter;
    std::vector<Stage> stages;
    static void visit(auto&& f, auto& c) {
      f("train_data", c.train_data);
      f("eval_data", c.eval_data);
      f("shuffle", c.shuffle);
      f("filter", c.filter);
      f("stages", c.stages);
    }
  };
  struct Paths {
    std::optional<std::string> hf_repo_id, moshi_path, mimi_path, tokenizer_path, config_path;
    static void visit(auto&& f, auto& c) {
      f("hf_repo_id", c.hf_repo_id);
      f("moshi_path", c.moshi_path);
      f("mimi_path", c.mimi_path);
      f("tokenizer_path", c.tokenizer_path);
      f("config_path", c.config_path);
    }
  };
  struct Optim {
    double lr = 1e-4, weight_decay = 0.1, pct_start = 0.05;
    static void visit(auto&& f, auto& c) {
      f("lr", c.lr, above(0));
      f("weight_decay", c.weight_decay, at_least(0));
      f("pct_start", c.pct_start, between(0, 1));
    }
  };
  struct Lora {
    bool enable = false;
    Index rank = 64;
    double scaling = 2;
    bool ft_embed = false;
    static void visit(auto&& f, auto& c) {
      f("enable", c.enable);
      f("rank", c.rank, between(1, 4096));
      f("scaling", c.scaling, above(0));
      f("ft_embed", c.ft_embed);
    }
  };
  struct Ttt {
    bool enable = false;
    bool persistent_states = true;  // fast weights go on from segment to segment of a recording
    double weight_lr_multiplier = 10, alpha_lr_multiplier = 100;
    std::string gating = "learned";  // or fixed: gates keep what they start with
    double alpha_pull = 0;           // towards initial_gating_alpha, see pull_gates; 0: none
    bool override_gating_alpha_on_resume = false;
    LayerChoice unfrozen_attention_layers;
    bool log_inner_loop_losses = false, enable_training_diagnostics = false;          // one or the other
    std::int64_t inner_loop_log_interval = 100, training_diagnostic_frequency = 100;  // steps between looks
    // What the preset decides.
    std::optional<LayerChoice> layers;
    std::optional<std::string> placement, variant;
    std::optional<double> base_lr, initial_gating_alpha, ttt_mlp_expansion_factor, rope_theta, inner_clip;
    std::optional<Index> mini_batch_size, ttt_layer_context, non_ttt_layer_context, ttt_mlp_layers;
    std::optional<std::vector<Index>> ttt_mlp_hidden_dims;
    std::optional<bool> normalize_ttt_output, use_rope;

    static void visit(auto&& f, auto& c) {
      f("enable", c.enable);
      f("persistent_states", c.persistent_states);
      f("weight_lr_multiplier", c.weight_lr_multiplier, at_least(0));
      f("alpha_lr_multiplier", c.alpha_lr_multiplier, at_least(0));
      f("gating", c.gating, OneOf{{"learned", "fixed"}});
      f("alpha_pull", c.alpha_pull, at_least(0));
      f("override_gating_alpha_on_resume", c.override_gating_alpha_on_resume);
      f("unfrozen_attention_layers", c.unfrozen_attention_layers);
      f("layers", c.layers);
      f("placement", c.placement,
        OneOf{{"parallel", "after_attention", "before_attention", "instead_of_attention"}});
      f("variant", c.variant, OneOf{{"lm", "video"}});
      f("base_lr", c.base_lr, above(0));
      f("mini_batch_size", c.mini_batch_size, at_least(1));
      f("initial_gating_alpha", c.initial_gating_alpha);
      f("ttt_layer_context", c.ttt_layer_context, at_least(1));
      f("non_ttt_layer_context", c.non_ttt_layer_context, at_least(1));
      f("ttt_mlp_layers", c.ttt_mlp_layers, between(1, 5));
      f("ttt_mlp_hidden_dims", c.ttt_mlp_hidden_dims, at_least(1));
      f("ttt_mlp_expansion_factor", c.ttt_mlp_expansion_factor, above(0));
      f("normalize_ttt_output", c.normalize_ttt_output);
      f("use_rope", c.use_rope);
      f("rope_theta", c.rope_theta, above(0));
      f("inner_clip", c.inner_clip, at_least(0));
      f("target_output_norm", Elsewhere{"post_norm and the gate set how loud TTT is"});
      f("log_inner_loop_losses", c.log_inner_loop_losses);
      f("inner_loop_log_interval", c.inner_loop_log_interval, at_least(1));
      f("enable_training_diagnostics", c.enable_training_diagnostics);
      f("training_diagnostic_frequency", c.training_diagnostic_frequency, at_least(1));
      for (const char* key : {"save_inner_loop_plots", "inner_loop_plot_dir"})
        f(key, Elsewhere{"inner losses are in metrics.jsonl, and `report` draws them"});
      for (const char* key : {"optimize_chunk_size", "chunk_size", "max_chunk_size", "prefer_efficiency"})
        f(key, Elsewhere{"a stream is the same function in any chunks"});
    }
  };

  std::string preset;  // of those compiled; empty: as the command line says
  std::string run_dir;
  Data data;
  Paths moshi_paths;
  Optim optim;
  Lora lora;
  Ttt ttt;
  double first_codebook_weight_multiplier = 1, text_padding_weight = 0.5;
  double duration_sec = 10, max_norm = 1;
  Index batch_size = 1;
  int num_microbatches = 1;
  std::int64_t max_steps = 100, log_freq = 1, ckpt_freq = 0, seed = 0;
  bool do_ckpt = true, save_adapters = true, overwrite_run_dir = false;
  std::optional<int> num_ckpt_keep = 3;  // null: all
  std::string sharding = "optimizer";    // what several processes share out, train/sharding.hpp
  bool full_finetuning = false, gradient_checkpointing = true;
  std::string param_dtype = "bfloat16";
  bool rope_continuous = false, rope_reset_on_new_file = true;
  std::optional<std::string> resume_from;
  bool reset_optimizer = false, reset_step = false;

  static void visit(auto&& f, auto& c) {
    f("preset", c.preset);
    f("run_dir", c.run_dir);
    f("data", c.data);
    f("moshi_paths", c.moshi_paths);
    f("optim", c.optim);
    f("lora", c.lora);
    f("ttt", c.ttt);
    f("first_codebook_weight_multiplier", c.first_codebook_weight_multiplier, at_least(0));
    f("text_padding_weight", c.text_padding_weight, at_least(0));
    f("duration_sec", c.duration_sec, above(0));
    f("batch_size", c.batch_size, at_least(1));
    f("num_microbatches", c.num_microbatches, at_least(1));
    f("max_steps", c.max_steps, at_least(1));
    f("max_norm", c.max_norm, at_least(0));
    f("log_freq", c.log_freq, at_least(1));
    f("ckpt_freq", c.ckpt_freq, at_least(0));
    f("seed", c.seed, at_least(0));
    f("do_ckpt", c.do_ckpt);
    f("save_adapters", c.save_adapters);
    f("overwrite_run_dir", c.overwrite_run_dir);
    f("num_ckpt_keep", c.num_ckpt_keep, at_least(1));
    f("sharding", c.sharding, OneOf{sharding_names});
    f("full_finetuning", c.full_finetuning);
    f("gradient_checkpointing", c.gradient_checkpointing);
    f("param_dtype", c.param_dtype, OneOf{{"bfloat16", "float32"}});
    f("rope_continuous", c.rope_continuous);
    f("rope_reset_on_new_file", c.rope_reset_on_new_file);
    f("resume_from", c.resume_from);
    f("reset_optimizer", c.reset_optimizer);
    f("reset_step", c.reset_step);
    for (const char* key : {"do_eval", "eval_freq", "paper_metrics"})
      f(key, Elsewhere{"a training here does not evaluate"});
    f("wandb", Elsewhere{"curves are in metrics.jsonl, and `report` draws them"});
  }

  /// Steps between two looks at the inner losses; 0: the file does not say.
  std::int64_t inner_loss_freq() const {
    std::int64_t steps = 0;
    const auto add = [&](bool wanted, std::int64_t every) {
      if (wanted) steps = steps == 0 ? every : std::min(steps, every);
    };
    add(ttt.log_inner_loop_losses, ttt.inner_loop_log_interval);
    add(ttt.enable_training_diagnostics, ttt.training_diagnostic_frequency);
    return steps;
  }
  /// Checkpoints hold what trains, TTT layers and adapters, and the base is where moshi_path says.
  bool saves_adapters() const { return save_adapters && !full_finetuning; }
  /// Lengths of segments, as the data's frame rate has them.
  void set_lengths(double frame_rate, BatchOptions& segments) const {
    const auto frames = [=](double seconds) {
      return std::max<Index>(1, static_cast<Index>(std::llround(seconds * frame_rate)));
    };
    segments.frames = frames(duration_sec);
    for (const Stage& stage : data.stages)
      segments.stages.push_back({stage.first_step * num_microbatches, frames(stage.duration_sec)});
  }
  LossConfig loss() const {
    LossConfig loss;
    loss.first_codebook_weight_multiplier = static_cast<float>(first_codebook_weight_multiplier);
    loss.text_padding_weight = static_cast<float>(text_padding_weight);
    return loss;
  }
  TrainOptions options() const {
    TrainOptions o;
    o.max_steps = max_steps, o.lr = optim.lr, o.pct_start = optim.pct_start;
    o.adam.weight_decay = optim.weight_decay;
    o.max_norm = max_norm, o.num_microbatches = num_microbatches;
    o.log_freq = log_freq, o.ckpt_freq = do_ckpt ? ckpt_freq : 0;
    o.num_ckpt_keep = num_ckpt_keep.value_or(0);
    o.seed = static_cast<std::uint64_t>(seed);
    o.sharding = sharding_named(sharding).value();
    return o;
  }
};

/// A configuration and where its keys stand.
struct TrainFile {
  TrainConfig config;
  YamlKeys keys;
};

/// Refuses what no preset could make right.
inline TrainFile read_train_config(const std::filesystem::path& path) {
  TrainFile file;
  TrainConfig& c = file.config;
  file.keys = read_yaml(path, c);
  const YamlKeys& keys = file.keys;
  detail::Problems problems;
  if (c.full_finetuning && c.lora.enable)
    problems.add(keys.place("full_finetuning"), " is true and ", keys.place("lora.enable"),
                 " is true: expected one of them");
  if (c.full_finetuning && c.save_adapters && keys.given("save_adapters"))
    problems.add(keys.place("full_finetuning"), " is true and ", keys.place("save_adapters"),
                 " is true: all weights change; expected one of them");
  if (!c.full_finetuning && !c.lora.enable && !c.ttt.enable)
    problems.add(keys.place("full_finetuning"), ", ", keys.place("lora.enable"), " and ",
                 keys.place("ttt.enable"), " are false: expected something to train");
  if (c.ttt.alpha_pull > 0 && c.ttt.gating == "fixed")
    problems.add(keys.place("ttt.alpha_pull"), " is above 0 and ", keys.place("ttt.gating"),
                 " is fixed: fixed gates need no pull; expected one of them");
  if (c.ttt.enable && c.ttt.layers && c.ttt.layers->text == "none")
    problems.add(keys.place("ttt.enable"), " is true and ", keys.place("ttt.layers"),
                 " is none: expected layers, or enable: false");
  if (c.ttt.ttt_mlp_hidden_dims && c.ttt.ttt_mlp_layers &&
      static_cast<Index>(c.ttt.ttt_mlp_hidden_dims->size()) != *c.ttt.ttt_mlp_layers - 1)
    problems.add(keys.place("ttt.ttt_mlp_hidden_dims"), ": found ", c.ttt.ttt_mlp_hidden_dims->size(),
                 " widths, expected ", *c.ttt.ttt_mlp_layers - 1, ": one less than ",
                 keys.place("ttt.ttt_mlp_layers"));
  if (keys.given("ttt.persistent_states") && c.ttt.enable && c.ttt.persistent_states && c.data.shuffle)
    problems.add(keys.place("ttt.persistent_states"), " is true and ", keys.place("data.shuffle"),
                 " is true: random segments have nothing to go on from; expected one of them");
  for (std::size_t i = 0; i < c.data.stages.size(); ++i) {
    const auto& [first_step, duration_sec] = c.data.stages[i];
    const std::int64_t before = i == 0 ? 0 : c.data.stages[i - 1].first_step;
    if (duration_sec > 0 && first_step > before) continue;
    problems.add(keys.place("data.stages"), ": found stage ", i, " of ", duration_sec, " s from step ",
                 first_step, " on, expected a duration_sec above 0 and a first_step above ", before);
  }
  if (c.reset_step && !c.resume_from)
    problems.add(keys.place("reset_step"), " is true and ", keys.place("resume_from"),
                 " names nothing: expected a checkpoint to start from");
  if (c.reset_optimizer && !c.resume_from)
    problems.add(keys.place("reset_optimizer"), " is true and ", keys.place("resume_from"),
                 " names nothing: expected a checkpoint to start from");
  problems.stop(path.string(), "keys that agree with each other", "correct the file");
  return file;
}

/// Refuses keys that the compiled preset C contradicts.
template <MoshiConfig C>
void expect_preset(const TrainFile& file, std::string_view preset) {
  const auto& t = file.config.ttt;
  const YamlKeys& keys = file.keys;
  constexpr TemporalConfig transformer = C.temporal;
  constexpr TttConfig ttt = transformer.ttt_config();
  constexpr bool has_ttt = transformer.num_ttt_layers() > 0;
  const auto& lora = file.config.lora;
  constexpr bool adapted = C.lora.rank > 0;
  detail::Problems problems;
  const auto agree = [&](const char* key, const auto& found, const auto& expected) {
    if (found && !(*found == expected))
      problems.add(keys.place(key), ": found ", *found, ", the preset has ", expected);
  };
  const auto layers = [&](const char* key, const LayerChoice& choice) {
    const auto set = choice.among(transformer.num_layers);
    if (!set)
      problems.add(keys.place(key), ": found ", detail::quote(choice.text),
                   ", expected all, middle, none or different layers from 0 to ", transformer.num_layers - 1);
    return set;
  };
  if (lora.enable != adapted)
    problems.add(keys.place("lora.enable"), ": found ", lora.enable ? "true" : "false", ", the preset has ",
                 adapted ? "adapters" : "none");
  if (lora.enable && adapted) {
    if (keys.given("lora.rank")) agree("lora.rank", std::optional(lora.rank), C.lora.rank);
    if (keys.given("lora.scaling")) agree("lora.scaling", std::optional(lora.scaling), C.lora.scaling);
  }
  layers("ttt.unfrozen_attention_layers", t.unfrozen_attention_layers);
  if (t.enable != has_ttt && (has_ttt || keys.given("ttt.enable")))
    problems.add(keys.place("ttt.enable"), ": found ", t.enable ? "true" : "false", ", the preset has ",
                 has_ttt ? "TTT layers" : "none");
  if (t.enable && has_ttt) {
    if (t.layers) {
      const auto set = layers("ttt.layers", *t.layers);
      if (set && set->bits != transformer.ttt_layers.bits) {
        std::string have;
        for (Index i = 0; i < transformer.num_layers; ++i)
          if (transformer.has_ttt(i)) have += (have.empty() ? "" : ",") + std::to_string(i);
        problems.add(keys.place("ttt.layers"), ": found ", detail::quote(t.layers->text), ", the preset has ",
                     have);
      }
    }
    agree("ttt.placement", t.placement, std::string(name_of(transformer.placement)));
    agree("ttt.variant", t.variant, std::string(name_of(ttt.variant)));
    agree("ttt.mini_batch_size", t.mini_batch_size, ttt.mini_batch_size);
    agree("ttt.ttt_mlp_layers", t.ttt_mlp_layers, ttt.layers);
    if (ttt.layers > 1)
      agree("ttt.ttt_mlp_expansion_factor", t.ttt_mlp_expansion_factor, static_cast<double>(ttt.expansion));
    if (t.ttt_mlp_hidden_dims)
      for (const Index width : *t.ttt_mlp_hidden_dims)
        agree("ttt.ttt_mlp_hidden_dims", std::optional(width), ttt.expansion * ttt.head_dim());
    if (t.use_rope && *t.use_rope != ttt.rope)
      problems.add(keys.place("ttt.use_rope"), ": found ", *t.use_rope ? "true" : "false",
                   ", the preset has ", ttt.rope ? "true" : "false");
    if (ttt.rope) agree("ttt.rope_theta", t.rope_theta, ttt.rope_theta);
    agree("ttt.inner_clip", t.inner_clip, ttt.inner_clip);
    if (t.normalize_ttt_output && !*t.normalize_ttt_output)
      problems.add(keys.place("ttt.normalize_ttt_output"),
                   ": found false, the layer always ends in a LayerNorm");
    agree("ttt.ttt_layer_context", t.ttt_layer_context, transformer.attention(true).context);
  }
  agree("ttt.non_ttt_layer_context", t.non_ttt_layer_context, transformer.context);
  problems.stop(keys.path, detail::cat("what the compiled preset ", preset, " is"),
                "correct the file, or choose or compile a preset like it");
}

/// What a training changes and how fast: TTT and gates, attention in the chosen layers, adapters, or all.
template <MoshiConfig C>
std::vector<GroupRule> what_trains(const TrainConfig& config) {
  constexpr bool has_ttt = C.temporal.num_ttt_layers() > 0;
  const bool fixed_gates = config.ttt.gating == "fixed";
  std::vector<GroupRule> rules;
  if (!config.full_finetuning) {
    rules.push_back({.says = "the base", .matches = [](std::string_view) { return true; }, .frozen = true});
    const LayerSet open = config.ttt.unfrozen_attention_layers.among(C.temporal.num_layers).value();
    for (Index i = 0; i < C.temporal.num_layers; ++i)
      if (open.contains(i))
        rules.push_back(
            {.says = "attention of layer " + std::to_string(i),
             .matches = name_contains("transformer.layers." + std::to_string(i) + ".self_attn.")});
    if (config.lora.enable && config.lora.ft_embed)
      rules.push_back({.says = "embeddings", .matches = name_contains("emb")});
    if (config.lora.enable) rules.push_back({.says = "adapters", .matches = name_contains("lora_")});
  }
  if constexpr (has_ttt) {
    rules.push_back(
        {.says = "TTT", .matches = name_contains(".ttt."), .learning_rate = config.ttt.weight_lr_multiplier});
    if (C.temporal.placement != Placement::instead_of_attention)
      rules.push_back({.says = "gates",
                       .matches = name_contains("gating_alpha"),
                       .learning_rate = config.ttt.alpha_lr_multiplier,
                       .frozen = fixed_gates});
    rules.push_back(frozen_base_lr());
  }
  return rules;
}

}  // namespace mttt
