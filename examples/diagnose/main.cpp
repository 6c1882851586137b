// Tells what the TTT layers of a checkpoint have learned, and why: one web page a command.
//
//   diagnose figure5   --model runs/tiny build/codes        the inner losses of every layer, with a verdict
//   diagnose gates     --model runs/tiny build/codes        how far gates are open, and what comes through
//   diagnose sweep     --model runs/tiny build/codes        what it says with its gates forced to values
//   diagnose context   --model runs/tiny build/codes        the loss by position, and what memory is worth
//   diagnose recall    --model runs/tiny build/codes        whether it knows what it was told, by delay
//   diagnose stream    --model runs/tiny build/codes        a long conversation: time, memory, drift
//   diagnose causality --model runs/tiny build/codes        no prediction depends on what comes later
//
// Recordings are coded ones (*.safetensors of the program encode, or folders of them) or, with --codec,
// sounds. --output is a folder: COMMAND.html, its figures as SVG and PNG, its numbers as CSV. The status is 0
// where the work was done, whatever the verdict; of causality it is 1 where the model is not causal.
#include <CLI/CLI.hpp>

#include "../program.hpp"
#include "commands.hpp"

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Tells what the TTT layers of a checkpoint have learned, and why.");
  app.option_defaults()->always_capture_default();
  app.require_subcommand(1);
  int (*command)(Subject&, const std::vector<Recording>&, const Options&) = nullptr;

  const auto add = [&](const char* name, const char* about, auto function) {
    CLI::App* const one = app.add_subcommand(name, about);
    one->option_defaults()->always_capture_default();
    one->add_option("--model", options.model, "folder of a run of the program train, or a checkpoint of one")
        ->required();
    one->add_option("recordings", options.recordings, "coded recordings, folders of them, or sounds")
        ->required();
    one->add_option("--output", options.output, "folder for the page, its figures and its numbers");
    one->add_option("--codec", options.codec, "weights of Mimi, to read sounds and to hear silence");
    one->add_option("--tokenizer", options.tokenizer, "sentencepiece model of the text");
    one->add_option("--max-frames", options.max_frames, "frames of a recording, 12.5 a second; 0: all");
#ifdef MTTT_EXAMPLES_CUDA
    one->add_option("--dtype", options.dtype, "what the model stores")->check(CLI::IsMember({"f32", "bf16"}));
#endif
    one->callback([&command, function] { command = function; });
    return one;
  };
  const auto window = [&](CLI::App* one) {
    one->add_option("--window", options.window, "frames a point of a curve is the mean of; 0: by the length");
  };
  const auto speech = [&](CLI::App* one) {
    one->add_option("--temp-text", options.temperatures, "temperatures of the text codes");
    one->add_option("--temp", options.audio_temperature, "temperature of the audio codes");
    one->add_option("--seed", options.seed, "of the draws");
  };
  window(add("figure5", "the inner losses of every TTT layer, with a verdict", figure5));
  add("gates", "how far gates are open, and what comes through", gates);
  auto* one = add("sweep", "what the model says and predicts with its gates forced to values", sweep);
  one->add_option("--alpha", options.alphas, "values of alpha for all gates; the learned ones come last");
  speech(one);
  one = add("context", "the loss by position, and what memory is worth", context);
  one->add_option("--reset-every", options.reset_every,
                  "frames after which TTT is reset, in one of the curves")
      ->check(CLI::PositiveNumber);
  window(one);
  one = add("recall", "whether the model knows what it was told, by how long ago", recall);
  one->add_option("--questions", options.questions,
                  "folder of what make_data memory wrote beside the recordings; else beside the codes");
  speech(one);
  one = add("stream", "a long conversation with the user of the first recording", stream);
  one->add_option("--minutes", options.minutes, "how long; the recording is heard over and over")
      ->check(CLI::PositiveNumber);
  speech(one), window(one);
  one = add("causality", "no prediction depends on what comes later", causality);
  one->add_option("--trials", options.trials, "times that later codes are changed")
      ->check(CLI::Range(2, 100000));
  one->add_option("--frames", options.frames, "frames of the first recording")->check(CLI::Range(2, 100000));
  CLI11_PARSE(app, argc, argv);

  return run_program("diagnose", [&] {
    const auto subject = load_subject(options.model, options.dtype);
    const auto recordings = load_recordings(options, subject->facts);
    return command(*subject, recordings, options);
  });
}
