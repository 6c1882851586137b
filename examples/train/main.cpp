// Trains a model on coded recordings (made by the program `encode`).
//
//   train --preset tiny --data build/codes --output runs/tiny --max-steps 300
//
// The output folder gets metrics.jsonl, a line every --log-freq steps; the newest few training checkpoints,
// from which --resume goes on to the same bits; and at the end model.safetensors, which the program `stream`
// loads.
#include <CLI/CLI.hpp>

#include "../program.hpp"
#include "options.hpp"

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a model on coded recordings.");
  app.option_defaults()->always_capture_default();
  app.add_option("--preset", options.preset, "what the model is")
      ->check(CLI::IsMember({"tiny", "tiny_without_ttt"}));
#ifdef MTTT_EXAMPLES_CUDA
  app.add_option("--dtype", options.dtype, "what the model stores; bf16 is trained beside weights in f32")
      ->check(CLI::IsMember({"f32", "bf16"}));
#endif
  app.add_option("--data", options.data, "folder of coded recordings")->required();
  app.add_option("--output", options.output, "folder of this run")->required();
  app.add_flag("--resume", options.resume, "go on from the newest checkpoint in the output folder");

  app.add_option("--max-steps", options.train.max_steps, "steps of the optimiser");
  app.add_option("--batch-size", options.segments.batch, "segments a micro-batch");
  app.add_option("--segment-frames", options.segments.frames, "frames a segment, 12.5 a second");
  app.add_option("--num-microbatches", options.train.num_microbatches,
                 "micro-batches a step, their gradients averaged");
  app.add_option("--lr", options.train.lr, "highest learning rate of the one-cycle schedule");
  app.add_option("--pct-start", options.train.pct_start, "share of the steps that warm up");
  app.add_option("--weight-decay", options.train.adam.weight_decay,
                 "of AdamW; norms, biases and gates do not decay");
  app.add_option("--max-norm", options.train.max_norm,
                 "gradients longer than this are shortened to it; 0: never");
  app.add_option("--first-codebook-weight", options.loss.first_codebook_weight_multiplier,
                 "in the audio loss");
  app.add_option("--text-padding-weight", options.loss.text_padding_weight, "in the text loss");
  app.add_option("--log-freq", options.train.log_freq, "steps between two lines of metrics.jsonl");
  app.add_option("--ckpt-freq", options.train.ckpt_freq, "steps between two checkpoints; 0: at the end only");
  app.add_option("--num-ckpt-keep", options.train.num_ckpt_keep, "checkpoints that are kept; 0: all");
  app.add_option("--seed", options.train.seed, "of the first weights and of the order of the data");
  CLI11_PARSE(app, argc, argv);
  options.segments.seed = options.train.seed;

  return run_program("train", [&] {
    const bool with_ttt = options.preset == "tiny";
#ifdef MTTT_EXAMPLES_CUDA
    if (options.dtype == "bf16")
      return with_ttt ? train_tiny_bf16(options) : train_tiny_without_ttt_bf16(options);
#endif
    return with_ttt ? train_tiny(options) : train_tiny_without_ttt(options);
  });
}
