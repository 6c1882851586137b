// What a command reads and hears: the checkpoint, of one of the presets that are compiled; recordings; what
// was said, as words and as sound.
#include <algorithm>
#include <array>

#include "../words.hpp"
#include "commands.hpp"
#include "mttt/data/interleaver.hpp"
#include "mttt/io/alignment.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/published.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/presets/moshi_small.hpp"
#include "mttt/presets/tiny.hpp"
#ifdef MTTT_HAS_AUDIO
#include "../encode/recordings.hpp"
using B = mttt::Cpu<float>;
using Codec = mttt::Mimi<mttt::presets::mimi_tiny, B>;
#endif

namespace fs = std::filesystem;

namespace {

struct Preset {
  const char* name;
  const char* dtype;
  nlohmann::json config;
  std::unique_ptr<Subject> (*load)(const fs::path&);
};
template <mttt::MoshiConfig C>
Preset preset(const char* name, const char* dtype, decltype(Preset::load) load) {
  return {name, dtype, mttt::config_json<C>(name), load};
}
const std::array presets{
    preset<mttt::presets::tiny>("tiny", "f32", subject_tiny),
    preset<mttt::presets::tiny_without_ttt>("tiny_without_ttt", "f32", subject_tiny_without_ttt),
#ifdef MTTT_ALL_PRESETS
    preset<mttt::presets::moshi_small>("moshi_small", "f32", subject_moshi_small),
#endif
#ifdef MTTT_EXAMPLES_CUDA
    preset<mttt::presets::tiny>("tiny", "bf16", subject_tiny_bf16),
    preset<mttt::presets::moshi_small>("moshi_small", "bf16", subject_moshi_small_bf16),
#endif
};

fs::path checkpoint_of(const fs::path& model) {
  if (!fs::is_directory(model)) return model;
  if (fs::exists(model / "model.safetensors")) return model / "model.safetensors";
  if (const auto newest = mttt::RunFolder::newest_in(model)) return *newest;
  mttt::fail(model.string(), "no checkpoint",
             "the folder of a run of the program train, or a checkpoint of one");
}

}  // namespace

std::unique_ptr<Subject> load_subject(const fs::path& model, const std::string& dtype) {
  const fs::path checkpoint = checkpoint_of(model);
  const mttt::TensorFiles file(checkpoint);
  const auto& metadata = file.first().metadata();
  const auto found = metadata.find("config");
  const auto config = found == metadata.end() ? nlohmann::json(nlohmann::json::value_t::discarded)
                                              : mttt::detail::parse_json(found->second);
  std::string names;
  for (const Preset& preset : presets) {
    if (dtype == preset.dtype && !config.is_discarded() &&
        mttt::detail::config_problems(config, preset.config).count() == 0)
      return preset.load(checkpoint);
    names += (names.empty() ? "" : ", ") + std::string(preset.name) + " in " + preset.dtype;
  }
  mttt::fail(checkpoint.string(),
             config.is_discarded() ? "a file without the metadata of the program train"
                                   : "a model of another configuration, or " + dtype,
             "a checkpoint of one of the compiled presets: " + names,
             "compile its preset: a file beside examples/diagnose/tiny.cpp and a line in "
             "examples/diagnose/files.cpp");
}

namespace {

#ifdef MTTT_HAS_AUDIO

/// Mimi, with its weights.
struct Voices {
  explicit Voices(const fs::path& path) {
    mttt::load_params(path, be, params);
    Codec::derive(be, *params, *books);
  }
  B be;
  mttt::Store<Codec::Params, B> params{be};
  mttt::Store<Codec::Codebooks, B> books{be};
};

/// The words of a recording, where a file beside it has them; "nothing here" elsewhere.
std::vector<std::int32_t> text_of(const fs::path& path, [[maybe_unused]] const fs::path& tokenizer,
                                  mttt::Index frames) {
  std::vector<std::int32_t> text(static_cast<std::size_t>(frames), mttt::zero_code);
#ifdef MTTT_HAS_TEXT
  if (!tokenizer.empty() && fs::exists(mttt::sidecar_of(path))) {
    const auto loaded = mttt::TextTokenizer::load(tokenizer);
    text = mttt::text_stream(mttt::read_alignment(mttt::sidecar_of(path)), frames, Codec::config.frame_rate(),
                             [&](const std::string& word) { return loaded.encode(word); },
                             {.keep_main_only = true});
  }
#endif
  return text;
}

mttt::CodedRecording encode(const fs::path& path, const Options& options, const Facts& facts) {
  using namespace mttt;
  if (options.codec.empty())
    fail(path.string(), "sound, and no codec", "the weights of Mimi",
         "add --codec, or give the codes that encode makes");
  Voices voices(options.codec);
  const auto pcm = read_voices(path, true);
  const auto samples = static_cast<Index>(pcm.size()) / 2, frames = Codec::frames_of(samples);
  const auto codes = voices.be.make<std::int32_t, dyn, dyn, dyn>(2, Codec::n_q, frames);
  Codec::encode_recording(voices.be, *voices.params, *voices.books, {pcm.data(), {2, samples, 1}}, codes);
  CodedRecording recording{1 + 2 * Codec::n_q,
                           frames,
                           text_of(path, options.tokenizer, frames),
                           Codec::config.frame_rate(),
                           facts.order.text_card,
                           Codec::card,
                           {},
                           {}};
  recording.codes.insert(recording.codes.end(), codes.data(), codes.data() + codes.size());
  return recording;
}

#else

mttt::CodedRecording encode(const fs::path& path, const Options&, const Facts&) {
  mttt::fail(path.string(), "a sound file, for a program that was built without libsndfile and soxr",
             "codes that the program encode has made", "give these, or build with both libraries");
}

#endif

mttt::CodedRecording shortened(mttt::CodedRecording recording, mttt::Index frames) {
  if (frames <= 0 || frames >= recording.frames) return recording;
  std::vector<std::int32_t> codes;
  for (mttt::Index k = 0; k < recording.streams; ++k) {
    const auto stream = recording.stream(k);
    codes.insert(codes.end(), stream.begin(), stream.begin() + frames);
  }
  recording.codes = std::move(codes);
  recording.frames = frames;
  return recording;
}

}  // namespace

std::vector<Recording> load_recordings(const Options& options, const Facts& facts) {
  std::vector<fs::path> paths;
  for (const auto& path : options.recordings) {
    if (!fs::is_directory(path)) {
      paths.push_back(path);
      continue;
    }
    const std::size_t before = paths.size();
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
    std::sort(paths.begin() + static_cast<std::ptrdiff_t>(before), paths.end());
  }
  std::vector<Recording> all;
  for (const auto& path : paths) {
    auto codes = path.extension() == ".safetensors" ? mttt::load_codes(path) : encode(path, options, facts);
    const auto& order = facts.order;
    if (codes.streams != order.streams || codes.text_card > order.text_card || codes.card > order.card)
      mttt::fail(
          path.string(),
          mttt::detail::cat(codes.streams, " streams, text_card ", codes.text_card, ", card ", codes.card),
          mttt::detail::cat(order.streams, " streams, text_card ", order.text_card, ", card ", order.card,
                            ", as the model has"),
          "encode the recording with the codec and the tokenizer of the model");
    all.push_back({path, shortened(std::move(codes), options.max_frames)});
  }
  if (all.empty())
    mttt::fail("the recordings", "none", "at least one", "name sounds, coded recordings or folders of these");
  return all;
}

std::string words_of(const std::vector<int>& tokens, [[maybe_unused]] const fs::path& tokenizer) {
#ifdef MTTT_HAS_TEXT
  if (!tokenizer.empty()) return mttt::TextTokenizer::load(tokenizer).decode(tokens);
#endif
  std::string text;
  for (const int token : tokens) text += (text.empty() ? "" : " ") + std::to_string(token);
  return text;
}

std::optional<double> share_of_silence([[maybe_unused]] const std::vector<std::int32_t>& voice,
                                       [[maybe_unused]] mttt::Index codebooks, const fs::path& codec) {
  if (codec.empty()) return std::nullopt;
#ifdef MTTT_HAS_AUDIO
  using namespace mttt;
  const Index frames = static_cast<Index>(voice.size()) / codebooks;
  if (frames == 0) return std::nullopt;
  Voices voices(codec);
  const auto codes = voices.be.make<std::int32_t, dyn, dyn, dyn>(1, codebooks, frames);
  for (Index t = 0; t < frames; ++t)
    for (Index k = 0; k < codebooks; ++k)
      codes(0, k, t) = std::max(0, voice[static_cast<std::size_t>(t * codebooks + k)]);
  const auto pcm = voices.be.make<float, dyn, dyn, 1>(1, frames * Codec::frame_size);
  Codec::decode_recording(voices.be, *voices.params, *voices.books, codes, pcm);
  double silent = 0;
  for (Index t = 0; t < frames; ++t) {
    double power = 0;
    for (Index i = 0; i < Codec::frame_size; ++i) {
      const double sample = pcm.data()[t * Codec::frame_size + i];
      power += sample * sample / static_cast<double>(Codec::frame_size);
    }
    silent += power < 1e-5;  // -50 dB
  }
  return silent / static_cast<double>(frames);
#else
  return std::nullopt;
#endif
}
