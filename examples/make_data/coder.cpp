#include "coder.hpp"

#ifdef MTTT_HAS_TEXT

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/data/interleaver.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/text.hpp"
#include "mttt/presets/mimi.hpp"

using mttt::Index;

namespace {
using B = mttt::Cpu<float>;
using Codec = mttt::Mimi<mttt::presets::mimi_small, B>;
using Frames = std::vector<std::int32_t>;  // (frames, codebooks)
constexpr Index n_q = Codec::n_q,
                settling = 12;  // frames of silence after which a codec has forgotten its start
}  // namespace

struct Coder::Impl {
  B be;
  mttt::Store<Codec::Params, B> params;
  mttt::Store<Codec::Codebooks, B> books;
  mttt::TextTokenizer tokenizer;
  std::string id;
  mttt::Store<Codec::EncoderState, B> settled;  // a session for every phase
  Frames silence;

  Impl(const std::filesystem::path& codec, const std::filesystem::path& text)
      : params(be),
        books(be),
        tokenizer(mttt::TextTokenizer::load(text)),
        id(mttt::content_id(std::vector{codec, text})),
        settled(be, phases) {
    mttt::load_params(codec, be, params);
    Codec::derive(be, *params, *books);
    Codec::reset_encoder(be, *params, *settled);
    step(be, *settled, {}, settling);
    silence = step(be, *settled, {}, 1)[0];
  }

  /// Of the next `frames`, in each phase: the samples, later by its part of a frame, and then silence.
  std::vector<Frames> step(B& b, Codec::EncoderState& state, std::span<const std::int16_t> samples,
                           Index frames) const {
    const auto scope = b.scope();
    const auto pcm = b.make<float, mttt::dyn, mttt::dyn, 1>(phases, frames * Codec::frame_size);
    const auto codes = b.make<std::int32_t, mttt::dyn, mttt::dyn, mttt::dyn>(phases, n_q, frames);
    b.fill(pcm.data(), pcm.size(), 0.0f);
    for (Index phase = 0; phase < static_cast<Index>(phases); ++phase)
      std::transform(samples.begin(), samples.end(), &pcm(phase, offset_of(phase), 0),
                     [](std::int16_t sample) { return static_cast<float>(sample) / 32768; });
    Codec::encode_step(b, *params, *books, state, pcm, codes);
    std::vector<Frames> by_phase(phases);
    for (Index phase = 0; phase < static_cast<Index>(phases); ++phase)
      for (Index t = 0; t < frames; ++t)
        for (Index q = 0; q < n_q; ++q)
          by_phase[static_cast<std::size_t>(phase)].push_back(codes(phase, q, t));
    return by_phase;
  }

  static Index offset_of(Index phase) { return phase * Codec::frame_size / static_cast<Index>(phases); }
};

Coder::Coder(const std::filesystem::path& codec, const std::filesystem::path& tokenizer)
    : impl_(std::make_unique<const Impl>(codec, tokenizer)) {}
Coder::~Coder() = default;

double Coder::frame_rate() const { return Codec::config.frame_rate(); }
std::size_t Coder::codebooks() const { return n_q; }
void Coder::silence_until(std::size_t frames, std::vector<std::int32_t>& codes) const {
  while (codes.size() < frames * codebooks())
    codes.insert(codes.end(), impl_->silence.begin(), impl_->silence.end());
}

std::vector<Frames> Coder::encode(std::span<const std::int16_t> samples) const {
  thread_local B be(1);
  const auto frames_in = [&](std::size_t phase) {
    return Codec::frames_of(Impl::offset_of(static_cast<Index>(phase)) + static_cast<Index>(samples.size()));
  };
  mttt::Store<Codec::EncoderState, B> state(be, impl_->settled);
  auto by_phase = impl_->step(be, *state, samples, frames_in(phases - 1));
  for (std::size_t phase = 0; phase < phases; ++phase)
    by_phase[phase].resize(static_cast<std::size_t>(frames_in(phase) * n_q));
  return by_phase;
}

mttt::CodedRecording Coder::recording(const std::vector<mttt::Word>& words, std::vector<std::int32_t> model,
                                      std::vector<std::int32_t> user) const {
  const auto frames = static_cast<Index>(std::max(model.size(), user.size())) / n_q;
  const auto encode_word = [&](const std::string& word) { return impl_->tokenizer.encode(word); };
  mttt::CodedRecording coded{
      1 + 2 * n_q,
      frames,
      mttt::text_stream(words, frames, frame_rate(), encode_word, {.keep_main_only = true}),
      frame_rate(),
      impl_->tokenizer.vocab_size(),
      Codec::card,
      impl_->id,
      "composed"};
  for (auto* voice : {&model, &user}) {
    silence_until(static_cast<std::size_t>(frames), *voice);
    for (Index q = 0; q < n_q; ++q)
      for (Index t = 0; t < frames; ++t)
        coded.codes.push_back((*voice)[static_cast<std::size_t>(t * n_q + q)]);
  }
  return coded;
}

#else

struct Coder::Impl {};
Coder::Coder(const std::filesystem::path&, const std::filesystem::path&) {
  mttt::fail("this program", "no sentencepiece when it was compiled", "it, to write codes",
             "make recordings, and encode them");
}
Coder::~Coder() = default;
double Coder::frame_rate() const { return 0; }
std::size_t Coder::codebooks() const { return 0; }
std::vector<std::vector<std::int32_t>> Coder::encode(std::span<const std::int16_t>) const { return {}; }
void Coder::silence_until(std::size_t, std::vector<std::int32_t>&) const {}
mttt::CodedRecording Coder::recording(const std::vector<mttt::Word>&, std::vector<std::int32_t>,
                                      std::vector<std::int32_t>) const {
  return {};
}

#endif
