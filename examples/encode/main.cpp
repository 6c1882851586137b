// Encodes recordings for training: sound and words become the codes that the language model reads.
//
//   encode --codec build/mimi.safetensors --init-codec 1 --tokenizer assets/tokenizer.model
//          --output build/codes assets/train/*.flac
//
//   encode ... --data dailytalk.jsonl      recordings of a manifest, their codes in dailytalk.codes/
//   encode --codec mimi.safetensors --reply --output back a.wav    what the codec makes of it, as sound
//
// A recording is a stereo file, the model's voice left and the user's right, with the words of the model
// beside it (NAME.flac, NAME.json). OUTPUT/NAME.safetensors receives text, the model's codes and the user's
// codes. What the same codec has made of the same files before is left as it is: a run that was stopped may
// be repeated. With --mono, recordings of one voice without words are taken as well: the text stream then is
// "nothing here". Recordings of a manifest that are broken are named, counted and left out.
#include <CLI/CLI.hpp>
#include <set>

#include "../program.hpp"
#include "mttt/io/safetensors.hpp"
#include "options.hpp"

namespace {

/// The preset that the codec's file names, if it is there and names one.
std::string preset_of(const Options& options) {
  if (!options.preset.empty()) return options.preset;
  if (!std::filesystem::exists(options.codec)) return "mimi_tiny";
  const mttt::SafetensorsFile file(options.codec);
  const auto config = file.metadata().find("config");
  if (config == file.metadata().end()) return "mimi_tiny";
  const auto json = nlohmann::json::parse(config->second, nullptr, false);
  return json.is_object() ? json.value("preset", "mimi_tiny") : "mimi_tiny";
}

void check(const Options& options) {
  std::set<std::filesystem::path> names;
  for (const auto& path : options.recordings) {
    if (!names.insert(path.stem()).second)
      mttt::fail(path.string(), "two recordings of that name", "each name once",
                 "rename one, or use two folders");
  }
  if (options.recordings.empty() == options.data.empty() ||
      options.recordings.empty() != options.output.empty())
    mttt::fail("what to encode", "neither or both of --data and recordings, or recordings without --output",
               "--data SOURCES, or --output FOLDER RECORDING...", "see encode --help");
  if (options.reply && !options.data.empty())
    mttt::fail("--reply", "--data", "--output FOLDER RECORDING...", "name the recordings");
  if (!options.reply && options.tokenizer.empty())
    mttt::fail("encode", "no --tokenizer", "a sentencepiece model for the text stream",
               "add --tokenizer, or --reply for sounds instead of codes");
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Encodes recordings for training: sound and words become codes.");
  app.add_option("--codec", options.codec, "weights of Mimi, of the preset that they name")->required();
  app.add_option("--preset", options.preset, "what the codec is, if its file does not say so")
      ->check(CLI::IsMember({"mimi_tiny", "mimi_small"}));
  app.add_option("--init-codec", options.init_codec, "seed: where there is no codec, write an untrained one");
  app.add_option("--tokenizer", options.tokenizer, "sentencepiece model of the text stream");
  app.add_option("--output", options.output, "folder for the codes of recordings that are named here");
  app.add_option("--data", options.data, "manifests or folders of recordings: a.jsonl,librilight/small");
  app.add_flag("--mono", options.mono, "take recordings of one voice, with or without words, as well");
  app.add_flag("--reply", options.reply,
               "write what the codec makes of each recording, wav files instead of codes");
  app.add_option("--silence-level", options.silence_level, "dB of full scale under which nobody speaks")
      ->capture_default_str();
  app.add_option("--jobs", options.jobs, "recordings at once; 0: one a core")->check(CLI::NonNegativeNumber);
  app.add_option("recordings", options.recordings, "stereo sound files, a .json beside each");
  CLI11_PARSE(app, argc, argv);
  return run_program("encode", [&] {
    check(options);
    options.preset = preset_of(options);
    if (options.preset == "mimi_tiny") return encode_mimi_tiny(options);
    if (options.preset == "mimi_small") return encode_mimi_small(options);
    mttt::fail(options.codec.string(), "the preset '" + options.preset + "'", "mimi_tiny or mimi_small",
               "choose a codec that encode is compiled for");
  });
}
