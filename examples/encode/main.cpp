// Encodes recordings for training: sound and words become the codes that the language model reads.
//
//   encode --codec build/mimi.safetensors --init-codec 1 --tokenizer assets/tokenizer.model
//          --output build/codes assets/train/*.flac
//
// A recording is a stereo file, the model's voice left and the user's right, with the words of the model
// beside it (NAME.flac, NAME.json). OUTPUT/NAME.safetensors receives text, the model's codes and the user's
// codes. What the same codec has made of the same files before is left as it is: a run that was stopped may
// be repeated.
#include <CLI/CLI.hpp>
#include <chrono>
#include <optional>
#include <set>

#include "../program.hpp"
#include "mttt/data/interleaver.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/text.hpp"
#include "recordings.hpp"

using namespace mttt;
namespace fs = std::filesystem;

namespace {

struct Options {
  fs::path codec, tokenizer, output;
  std::vector<fs::path> recordings;
  std::optional<std::uint64_t> init_codec;
};

/// What was made of this very recording by this very codec, if it is there and whole.
std::optional<CodedRecording> find_codes(const fs::path& path, const std::string& codec,
                                         const std::string& source) {
  if (!fs::exists(path)) return std::nullopt;
  try {
    auto codes = load_codes(path);
    if (codes.codec == codec && codes.source == source) return codes;
  } catch (const Error& error) {
    std::printf("%s; it is made again\n", error.what());
  }
  return std::nullopt;
}

/// Bits a code of every stream: a codec that has collapsed onto a few codes shows here.
void print_entropy(const std::vector<std::vector<std::int32_t>>& streams, int text_card) {
  std::printf("entropy, bits a code\n  text            %.2f of at most %.2f", entropy(streams[0]),
              std::log2(text_card));
  for (std::size_t k = 1; k < streams.size(); ++k) {
    if (k % Codec::n_q == 1) std::printf("\n  %s  ", k == 1 ? "model's voice" : "user's voice ");
    std::printf(" %.2f", entropy(streams[k]));
  }
  std::printf(" of at most %.2f\n", std::log2(Codec::card));
}

void encode(const Options& options) {
  constexpr Index n_q = Codec::n_q;
  B be;
  Store<Codec::Params, B> params(be);
  load_params(options.codec, be, params);
  Store<Codec::Codebooks, B> books(be);
  Codec::derive(be, *params, *books);
  const auto tokenizer = TextTokenizer::load(options.tokenizer);
  const auto encode_word = [&](const std::string& word) { return tokenizer.encode(word); };

  const auto about = SafetensorsFile(options.codec).metadata();
  if (const auto training = about.find("training"); training != about.end())
    std::printf("%s: training of this codec: %s\n", options.codec.c_str(), training->second.c_str());
  const std::string codec_id = content_id(std::vector{options.codec, options.tokenizer});
  make_folders(options.output);

  std::vector<std::vector<std::int32_t>> streams(1 + 2 * n_q);  // of all recordings
  double seconds = 0;
  for (std::size_t i = 0; i < options.recordings.size(); ++i) {
    const fs::path& path = options.recordings[i];
    const fs::path target = options.output / path.stem().concat(".safetensors");
    const std::string source = content_id(std::vector{path, sidecar_of(path)});
    std::printf("%3zu/%zu %s: ", i + 1, options.recordings.size(), target.c_str());
    std::fflush(stdout);
    const auto start = std::chrono::steady_clock::now();

    auto recording = find_codes(target, codec_id, source);
    if (recording) {
      std::printf("%td frames, unchanged\n", recording->frames);
    } else {
      const auto voices = read_voices(path);
      const auto words = read_alignment(sidecar_of(path));
      const Index samples = static_cast<Index>(voices.size()) / 2, frames = Codec::frames_of(samples);
      const auto scope = be.scope();
      const auto codes = be.make<std::int32_t, dyn, dyn, dyn>(2, n_q, frames);
      const Tensor<const float, dyn, dyn, 1> pcm(voices.data(), {2, samples, 1});
      Codec::encode_recording(be, *params, *books, pcm, codes);

      constexpr double rate = Codec::config.frame_rate();
      recording = {1 + 2 * n_q,
                   frames,
                   text_stream(words, frames, rate, encode_word, {.keep_main_only = true}),
                   rate,
                   tokenizer.vocab_size(),
                   Codec::card,
                   codec_id,
                   source};
      recording->codes.insert(recording->codes.end(), codes.data(), codes.data() + codes.size());
      save_codes(target, *recording);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      std::printf("%td frames, %zu words, %.2f s\n", frames, words.size(), took.count());
    }

    seconds += static_cast<double>(recording->frames) / recording->frame_rate;
    for (Index k = 0; k < recording->streams; ++k) {
      const auto codes = recording->stream(k);
      auto& stream = streams[static_cast<std::size_t>(k)];
      stream.insert(stream.end(), codes.begin(), codes.end());
    }
  }
  std::printf("%.0f s of conversation\n", seconds);
  print_entropy(streams, tokenizer.vocab_size());
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app("Encodes recordings for training: sound and words become codes.");
  app.add_option("--codec", options.codec, "weights of Mimi, of the preset mimi_tiny")->required();
  app.add_option("--init-codec", options.init_codec, "seed: where there is no codec, write an untrained one");
  app.add_option("--tokenizer", options.tokenizer, "sentencepiece model of the text stream")->required();
  app.add_option("--output", options.output, "folder for the codes")->required();
  app.add_option("recordings", options.recordings, "stereo sound files, a .json beside each")->required();
  CLI11_PARSE(app, argc, argv);
  return run_program("encode", [&] {
    std::set<fs::path> names;
    for (const auto& path : options.recordings) {
      if (!names.insert(path.stem()).second)
        fail(path.string(), "two recordings of that name", "each name once",
             "rename one, or use two folders");
    }
    if (options.init_codec && !fs::exists(options.codec))
      write_untrained_codec(options.codec, *options.init_codec, options.recordings);
    encode(options);
    return 0;
  });
}
