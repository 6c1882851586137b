// Streams sound through a model, frame by frame, as if it were spoken to it.
//
//   stream --model moshiko-pytorch-bf16 question.flac reply.wav
//   arecord -q -t raw -f S16_LE -r 24000 -c 1 | stream --model moshiko-pytorch-bf16 - - |
//     aplay -q -t raw -f S16_LE -r 24000 -c 1
//   stream --model runs/tiny --codec build/mimi.safetensors --tokenizer assets/tokenizer.model
//          --json timings.json question.flac reply.wav
//
// It writes the reply as a sound file or as raw samples, prints its text, and can keep the state of the
// conversation, to go on later.
#include <CLI/CLI.hpp>

#include "../program.hpp"
#include "presets.hpp"

int main(int argc, char** argv) {
  Options options;
  double alpha = 0;
  CLI::App app("Streams sound through a model, frame by frame.");
  app.option_defaults()->always_capture_default();
  app.add_option("input", options.input,
                 "recording to be heard: wav or flac, any rate, any channels; -: raw samples, 24 kHz mono, "
                 "from standard input as they come")
      ->required();
  app.add_option("output", options.output,
                 "the reply: wav or flac, 24 kHz mono; -: raw samples to standard output, a frame for each "
                 "that was heard (its text then goes to standard error)")
      ->required();
  app.add_option(
         "--model", options.model,
         "folder of a published model (config.json, weights, Mimi, tokenizer), of a run of the program "
         "train, or a checkpoint of one")
      ->required();
  app.add_option("--codec", options.codec, "weights of Mimi, if not those of the model's folder");
  app.add_option("--tokenizer", options.tokenizer,
                 "sentencepiece model of the text, if not that of the model's folder");
  app.add_option("--adapter", options.adapter,
                 "LoRA of a fine-tuning: lora.safetensors or its folder; fused");
  app.add_option("--raw", options.raw, "how raw samples are stored: s16le or f32le")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, RawFormat>{{"s16le", RawFormat::s16le}, {"f32le", RawFormat::f32le}}))
      ->default_str("s16le");
  app.add_option(
         "--dtype", options.dtype,
         "what the language model's weights are stored in; Mimi's are f32, of the published Mimi on a CPU "
         "f16. auto: for moshi_7b bf16 on a GPU and int8 on a CPU, else f32")
      ->check(CLI::IsMember({"auto", "f32", "bf16", "int8", "int4"}));
  app.add_option("--temp", options.gen.audio.temperature, "temperature of the audio codes");
  app.add_option("--temp-text", options.gen.text.temperature, "temperature of the text codes");
  app.add_option("--top-k", options.gen.audio.top_k, "audio codes to draw among; 0: all");
  app.add_option("--top-k-text", options.gen.text.top_k, "text codes to draw among; 0: all");
  app.add_option("--seed", options.seed, "of the draws: the same seed, the same reply");
  app.add_flag("--greedy", options.greedy, "always the likeliest code");
  auto* force = app.add_option("--force-gating-alpha", alpha, "set every gate's alpha; 0 silences TTT");
  app.add_flag("--without-ttt", options.without_ttt, "leave the TTT layers of the checkpoint out");
  app.add_option("--context", options.context,
                 "frames that attention sees, if fewer than the preset's; 0: all");
  app.add_option("--save-state", options.save_state, "keep the conversation in this file");
  app.add_option("--load-state", options.load_state, "go on with the conversation in this file");
  app.add_option("--transcript", options.transcript, "write the text of the reply to this file");
  app.add_option("--json", options.json, "write timings, tokens and the contribution of TTT to this file");
  CLI11_PARSE(app, argc, argv);
  options.gen.text.greedy = options.gen.audio.greedy = options.greedy;
  if (force->count() > 0) options.gating_alpha = alpha;

  return run_program("stream", [&] { return stream_with_preset(options); });
}
