// Trains a model on coded recordings (made by the program `encode`).
//
//   train --preset tiny --data build/codes --output runs/tiny --max-steps 300
//
//   train --config examples/train/tiny.yaml
//
//   mpirun -n 8 train --config examples/train/tiny.yaml     (one process a GPU; on a CPU as many as you like)
//
// A configuration has the keys of moshi-finetune and those of the TTT layers (docs/train.md); it then says
// all that the options of a training say otherwise. The output folder gets metrics.jsonl, a line every
// --log-freq steps; the newest few training checkpoints, from which --resume goes on to the same bits; and at
// the end model.safetensors, which the program `stream` loads.
#include <CLI/CLI.hpp>
#include <set>

#include "../processes.hpp"
#include "options.hpp"

namespace {

struct Way {
  const char *preset, *dtype;
  int (*train)(const Options&);
};
constexpr Way ways[] = {{"tiny", "f32", train_tiny},
                        {"tiny_without_ttt", "f32", train_tiny_without_ttt},
                        {"tiny_lora", "f32", train_tiny_lora},
#ifdef MTTT_EXAMPLES_CUDA
                        {"tiny", "bf16", train_tiny_bf16},
                        {"tiny_without_ttt", "bf16", train_tiny_without_ttt_bf16},
                        {"moshi_small", "bf16", train_moshi_small_bf16},
                        {"moshi_7b_lora", "bf16", train_moshi_7b_lora_bf16},
                        {"moshi_7b_ttt", "bf16", train_moshi_7b_ttt_bf16}
#endif
};

/// Keys that are right and that this program does not heed: said, lest somebody wait for what they do.
void tell_unheeded(const std::string& path, const mttt::YamlKeys& keys) {
  constexpr std::pair<const char*, const char*> unheeded[] = {
      {"data.eval_data", "a training here does not evaluate"},
      {"moshi_paths.hf_repo_id", "nothing is downloaded; name moshi_path"},
      {"moshi_paths.mimi_path", "the program encode has made the codes"},
      {"moshi_paths.tokenizer_path", "the program encode has made the codes"},
      {"moshi_paths.config_path", "the preset is compiled"},
      {"gradient_checkpointing", "the preset decides it; the numbers are the same"},
      {"overwrite_run_dir", "a training without --resume starts anew in its folder"},
#ifndef MTTT_EXAMPLES_CUDA
      {"param_dtype", "on a CPU trainings are in float32"},
#endif
      {"rope_continuous", "attention turns by distances, from wherever positions are counted"},
      {"rope_reset_on_new_file", "attention turns by distances, from wherever positions are counted"}};
  for (const auto& note : keys.notes) std::fprintf(stderr, "%s: %s\n", path.c_str(), note.c_str());
  for (const auto& [key, why] : unheeded)
    if (keys.given(key))
      std::fprintf(stderr, "%s: %s has no effect: %s\n", path.c_str(), keys.place(key).c_str(), why);
}

/// What the file says instead of the command line; --output and --preset may say it still.
void take_config(const std::string& path, Options& options, bool preset_given) {
  options.config = mttt::read_train_config(path);
  const mttt::TrainConfig& c = options.config->config;
  if (Processes().rank() == 0) tell_unheeded(path, options.config->keys);
#ifdef MTTT_EXAMPLES_CUDA
  if (options.config->keys.given("param_dtype")) options.dtype = c.param_dtype == "float32" ? "f32" : "bf16";
#endif
  if (!preset_given && !c.preset.empty()) options.preset = c.preset;
  if (options.output.empty()) options.output = c.run_dir;
  options.data = c.data.train_data;
  options.segments = {.batch = c.batch_size,
                      .frames = 1,  // by the frame rate of the data
                      .order = c.data.shuffle ? mttt::Order::random : mttt::Order::sequential};
  options.train = c.options();
  options.loss = c.loss();
  options.inner_loss_freq = c.inner_loss_freq();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a model on coded recordings.");
  app.option_defaults()->always_capture_default();
  std::string config;
  auto* const by_config = app.add_option("--config", config, "YAML file that describes the training");
  std::set<std::string> names;
  for (const Way& way : ways) names.insert(way.preset);
  const CLI::IsMember presets(names);
  auto* const preset = app.add_option("--preset", options.preset, "what the model is")->check(presets);
#ifdef MTTT_EXAMPLES_CUDA
  app.add_option("--dtype", options.dtype, "what the model stores; bf16 is trained beside weights in f32")
      ->check(CLI::IsMember({"f32", "bf16"}));
#endif
  app.add_option("--data", options.data, "manifests, or folders of coded recordings")->excludes(by_config);
  app.add_option("--output", options.output, "folder of this run");
  app.add_flag("--resume", options.resume, "go on from the newest checkpoint in the output folder");

  const auto training = [&](const char* name, auto& value, const char* about) {
    app.add_option(name, value, about)->excludes(by_config);
  };
  training("--max-steps", options.train.max_steps, "steps of the optimiser");
  training("--batch-size", options.segments.batch, "segments a micro-batch");
  training("--segment-frames", options.segments.frames, "frames a segment, 12.5 a second");
  training("--num-microbatches", options.train.num_microbatches,
           "micro-batches a step, their gradients averaged");
  training("--lr", options.train.lr, "highest learning rate of the one-cycle schedule");
  training("--pct-start", options.train.pct_start, "share of the steps that warm up");
  training("--weight-decay", options.train.adam.weight_decay,
           "of AdamW; norms, biases and gates do not decay");
  training("--max-norm", options.train.max_norm, "gradients longer than this are shortened to it; 0: never");
  training("--first-codebook-weight", options.loss.first_codebook_weight_multiplier, "in the audio loss");
  training("--text-padding-weight", options.loss.text_padding_weight, "in the text loss");
  training("--log-freq", options.train.log_freq, "steps between two lines of metrics.jsonl");
  training(
      "--inner-loss-freq", options.inner_loss_freq,
      "steps between two looks at the inner losses of the TTT layers; 0: as their guard needs, 20 or more");
  training("--ckpt-freq", options.train.ckpt_freq, "steps between two checkpoints; 0: at the end only");
  training("--num-ckpt-keep", options.train.num_ckpt_keep, "checkpoints that are kept; 0: all");
  const auto shard = [&](const std::string& name) {
    options.train.sharding = mttt::sharding_named(name).value();
  };
  app.add_option_function<std::string>("--sharding", shard,
                                       "what several processes share out: none, optimizer, gradients or full")
      ->check(CLI::IsMember(mttt::sharding_names))
      ->default_str("optimizer")
      ->excludes(by_config);
  training("--seed", options.train.seed, "of the first weights and of the order of the data");
  CLI11_PARSE(app, argc, argv);

  return run_processes("train", [&] {
    if (!config.empty()) take_config(config, options, preset->count() > 0);
    if (options.data.empty() || options.output.empty())
      mttt::fail("the training", options.data.empty() ? "no data" : "no folder for the run", "both",
                 config.empty() ? "add --data and --output" : "add data.train_data and run_dir to the file");
    if (const std::string problem = presets(options.preset); !problem.empty())
      mttt::fail("preset", problem, "one that is compiled", "choose one, or compile another");
    options.segments.seed = options.train.seed;
    const Processes processes;
    options.segments = mttt::share_of(options.segments, processes.rank(), processes.size());
    std::string compiled;
    for (const Way& way : ways) {
      if (options.preset != way.preset) continue;
      if (options.dtype == way.dtype) return way.train(options);
      compiled += (compiled.empty() ? "" : ", ") + std::string(way.dtype);
    }
    mttt::fail(options.preset, "--dtype " + options.dtype, "one that is compiled for it: " + compiled,
               "choose one");
  });
}
