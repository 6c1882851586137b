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
constexpr Index n_q = Codec::n_q,
                settled = 12;  // frames of silence after which a codec has forgotten its start

/// Of `offset` samples of silence and the sentence.
std::vector<std::int32_t> encode_with(const Codec::Params& params, const Codec::Codebooks& books,
                                      Index offset, std::span<const std::int16_t> samples) {
  B be(1);
  const Index frames = Codec::frames_of(offset + static_cast<Index>(samples.size())),
              lead = settled * Codec::frame_size + offset;
  const auto pcm = be.make<float, mttt::dyn, mttt::dyn, 1>(1, lead + static_cast<Index>(samples.size()));
  be.fill(pcm.data(), lead, 0.0f);
  for (std::size_t i = 0; i < samples.size(); ++i)
    pcm.data()[lead + static_cast<Index>(i)] = static_cast<float>(samples[i]) / 32768;
  const auto codes = be.make<std::int32_t, mttt::dyn, mttt::dyn, mttt::dyn>(1, n_q, settled + frames);
  Codec::encode_recording(be, params, books, pcm, codes);
  std::vector<std::int32_t> by_frame;
  for (Index t = settled; t < settled + frames; ++t)
    for (Index q = 0; q < n_q; ++q) by_frame.push_back(codes(0, q, t));
  return by_frame;
}
}  // namespace

struct Coder::Impl {
  B be;
  mttt::Store<Codec::Params, B> params;
  mttt::Store<Codec::Codebooks, B> books;
  mttt::TextTokenizer tokenizer;
  std::string id;
  std::vector<std::int32_t> silence;

  Impl(const std::filesystem::path& codec, const std::filesystem::path& text)
      : params(be),
        books(be),
        tokenizer(mttt::TextTokenizer::load(text)),
        id(mttt::content_id(std::vector{codec, text})) {
    mttt::load_params(codec, be, params);
    Codec::derive(be, *params, *books);
    silence = encode_with(*params, *books, 0, std::vector<std::int16_t>(Codec::frame_size));
  }
};

Coder::Coder(const std::filesystem::path& codec, const std::filesystem::path& tokenizer)
    : impl_(std::make_unique<const Impl>(codec, tokenizer)) {}
Coder::~Coder() = default;

double Coder::frame_rate() const { return Codec::config.frame_rate(); }
std::size_t Coder::codebooks() const { return n_q; }
const std::vector<std::int32_t>& Coder::silence() const { return impl_->silence; }

std::vector<std::vector<std::int32_t>> Coder::encode(std::span<const std::int16_t> samples) const {
  std::vector<std::vector<std::int32_t>> by_phase;
  for (std::size_t phase = 0; phase < phases; ++phase)
    by_phase.push_back(encode_with(*impl_->params, *impl_->books,
                                   static_cast<Index>(phase * Codec::frame_size / phases), samples));
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
    while (static_cast<Index>(voice->size()) < frames * n_q)
      voice->insert(voice->end(), silence().begin(), silence().end());
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
const std::vector<std::int32_t>& Coder::silence() const {
  static const std::vector<std::int32_t> none;
  return none;
}
mttt::CodedRecording Coder::recording(const std::vector<mttt::Word>&, std::vector<std::int32_t>,
                                      std::vector<std::int32_t>) const {
  return {};
}

#endif
