// Streams a recording through a model, frame by frame, as if it were spoken to it.
//
//   stream --checkpoint runs/tiny/model.safetensors --codec build/mimi.safetensors
//          --tokenizer assets/tokenizer.model --json timings.json question.flac reply.wav
//
// It writes the reply as a sound file, prints its text, and can keep the state of the conversation, to go on
// later.
#include <CLI/CLI.hpp>

#include "../program.hpp"
#include "mttt/io/json.hpp"
#include "mttt/io/safetensors.hpp"
#include "options.hpp"

namespace {

/// Which preset a checkpoint was made with: its metadata say so.
std::string preset_of(const std::filesystem::path& checkpoint) {
  const mttt::SafetensorsFile file(checkpoint);
  const auto found = file.metadata().find("config");
  const auto config =
      found == file.metadata().end() ? nlohmann::json() : mttt::detail::parse_json(found->second);
  const auto named = config.is_object() ? config.find("preset") : config.end();
  std::string preset = named != config.end() && named->is_string() ? named->get<std::string>() : "";
  if (preset != "tiny" && preset != "tiny_without_ttt") {
    mttt::fail(checkpoint.string(),
               preset.empty() ? "no preset in its metadata" : "the preset '" + preset + "'",
               "tiny or tiny_without_ttt", "choose a checkpoint that the program train has written");
  }
  return preset;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  double alpha = 0;
  CLI::App app("Streams a recording through a model, frame by frame.");
  app.option_defaults()->always_capture_default();
  app.add_option("input", options.input, "recording to be heard: wav or flac, any rate, any channels")
      ->required();
  app.add_option("output", options.output, "the reply: wav or flac, 24 kHz mono")->required();
  app.add_option("--checkpoint", options.checkpoint, "weights of the language model")->required();
  app.add_option("--codec", options.codec, "weights of Mimi")->required();
  app.add_option("--tokenizer", options.tokenizer, "sentencepiece model of the text stream")->required();
#ifdef MTTT_EXAMPLES_CUDA
  app.add_option("--dtype", options.dtype, "what the language model stores; Mimi stores f32")
      ->check(CLI::IsMember({"f32", "bf16"}));
#endif
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

  return run_program("stream", [&] {
    const bool with_ttt = preset_of(options.checkpoint) == "tiny" && !options.without_ttt;
#ifdef MTTT_EXAMPLES_CUDA
    if (options.dtype == "bf16")
      return with_ttt ? stream_tiny_bf16(options) : stream_tiny_without_ttt_bf16(options);
#endif
    return with_ttt ? stream_tiny(options) : stream_tiny_without_ttt(options);
  });
}
