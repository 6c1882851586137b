// Trains a codec on recordings.
//
//   train_codec --preset mimi_tiny --data assets/train --output runs/codec --max-steps 300
//
// Data are sound files, folders (every wav, flac, ogg and opus in them and below) and manifests (NAME.jsonl);
// each channel of a recording is a voice, resampled to the codec's rate once and kept in memory. The output
// folder gets metrics.jsonl, a line every --log-freq steps, which the program `report` draws; the newest few
// training checkpoints, from which --resume goes on to the same bits; and at the end, when it is stopped and
// every --model-freq steps, model.safetensors, under the published names, which the program `encode` takes as
// --codec. --adversarial and --features train a discriminator beside the codec and the codec against it.
#include <CLI/CLI.hpp>

#include "../program.hpp"
#include "options.hpp"
#include "recordings.hpp"

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Trains a codec on recordings.");
  app.option_defaults()->always_capture_default();
#ifdef MTTT_EXAMPLES_CUDA
  const CLI::IsMember presets({"mimi_tiny", "mimi_small", "mimi_24khz"});
#else
  const CLI::IsMember presets({"mimi_tiny", "mimi_small"});
#endif
  app.add_option("--preset", options.preset, "what the codec is")->check(presets);
  app.add_option("--data", options.data, "sound files, folders of them, manifests")->required()->take_all();
  app.add_option("--held-out", options.held_out, "the same, to measure on; nothing is learnt from these")
      ->take_all();
  app.add_option("--output", options.output, "folder of this run")->required();
  app.add_option("--from", options.from, "weights of a codec to start from, published or ours");
  app.add_flag("--resume", options.resume, "go on from the newest checkpoint in the output folder");

  app.add_option("--max-steps", options.train.max_steps, "steps of the optimiser");
  app.add_option("--batch-size", options.batch, "segments a micro-batch")->check(CLI::PositiveNumber);
  app.add_option("--segment-frames", options.segment_frames, "frames a segment, 12.5 a second; 2 or more")
      ->check(CLI::Range(2, 100000));
  app.add_option("--num-microbatches", options.train.num_microbatches,
                 "micro-batches a step, their gradients averaged");
  app.add_option("--lr", options.train.lr, "highest learning rate of the one-cycle schedule");
  app.add_option("--pct-start", options.train.pct_start, "share of the steps that warm up");
  app.add_option("--weight-decay", options.train.adam.weight_decay,
                 "of AdamW; norms and biases do not decay");
  app.add_option("--max-norm", options.train.max_norm, "gradients longer than this are shortened to it");

  auto& loss = options.loss;
  app.add_option("--spectral-weight", loss.spectral, "of the loss of mel spectrograms");
  app.add_option("--waveform-weight", loss.waveform, "of the mean distance of samples");
  app.add_option("--commitment-weight", loss.commitment, "of the distance of latents from their codes");
  app.add_option("--spectral-floor", loss.spectra.floor, "level below which spectra count as silence");
  app.add_option("--unquantised", loss.unquantised, "share of the segments that pass unquantised")
      ->check(CLI::Range(0.0, 1.0));
  app.add_flag("--dropout,!--no-dropout", loss.dropout, "random numbers of codebooks, that fewer serve too");
  app.add_option("--codebook-decay", loss.codebooks.decay, "of the codebooks' moving averages")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--codebook-restart", loss.codebooks.restart,
                 "codes used less than this share of the mean start anew");

  auto& adversary = options.adversary;
  app.add_option("--adversarial", adversary.adversarial, "weight of what a discriminator says of the reply")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--adversarial-share", adversary.share,
                 "of the gradient by the reply, that these two have; 0: as their weights have it")
      ->check(CLI::Range(0.0, 0.95));
  app.add_option("--features", adversary.features, "weight of the distance of the discriminator's features")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--adversarial-from-step", adversary.from_step, "the step that these two begin with")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--adversarial-every", adversary.every, "the discriminator learns every so many steps")
      ->check(CLI::PositiveNumber);
  app.add_option("--adversarial-lr", adversary.lr, "highest learning rate of the discriminator");
  app.add_option("--adversarial-seconds", options.adversarial_seconds,
                 "it judges so much of each segment; 0: all of it")
      ->check(CLI::NonNegativeNumber);

  app.add_option("--gain-db", options.gain_db, "segments get louder or softer by up to so much")
      ->check(CLI::Range(0.0, 60.0));
  app.add_option("--log-freq", options.train.log_freq, "steps between two lines of metrics.jsonl");
  app.add_option("--ckpt-freq", options.train.ckpt_freq, "steps between two checkpoints; 0: at the end only");
  app.add_option("--num-ckpt-keep", options.train.num_ckpt_keep, "checkpoints that are kept; 0: all");
  app.add_option("--model-freq", options.model_freq,
                 "steps between two versions of model.safetensors; 0: at the end only")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--model-dtype", options.model_dtype, "what model.safetensors holds")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}));
#ifdef MTTT_EXAMPLES_CUDA
  app.add_flag("--tf32,!--no-tf32", options.tf32, "products round their factors to TF32: several times faster");
#endif
  app.add_option("--seed", options.train.seed, "of the first weights and of all that is drawn");
  CLI11_PARSE(app, argc, argv);

  return run_program("train_codec", [&] {
    constexpr int sample_rate = 24000;  // of all presets
    options.voices = read_voices(options.data, sample_rate);
    if (!options.held_out.empty()) options.held_out_voices = read_voices(options.held_out, sample_rate);
    if (options.preset == "mimi_tiny") return train_mimi_tiny(options);
#ifdef MTTT_EXAMPLES_CUDA
    if (options.preset == "mimi_24khz") return train_mimi_24khz(options);
#endif
    return train_mimi_small(options);
  });
}
