// What rounding the weights to 8 and 4 bits changes in what a Moshi predicts: KL from the model in float32,
// and how often the most likely code stays the same, under teacher forcing. Of the preset moshi_100m without
// TTT with random weights and codes; or of a `tiny` that scripts/demo trained, on one of its recordings:
//   cd build/demo; MTTT_MODEL=with_ttt MTTT_CODES=codes/dialogue-1.safetensors bench_quantised_accuracy
#include <memory>

#include "harness.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/core/quantise.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/presets/moshi_100m.hpp"
#include "mttt/presets/tiny.hpp"
#include "mttt/train/divergence.hpp"

namespace {
using namespace mttt;

struct Predictions {
  std::vector<float> text, audio;
  std::vector<std::uint8_t> text_mask, mask;
};
template <MoshiConfig C, class B>
Predictions predict(B& be, const typename Moshi<C, B>::Params& params, Streams<const std::int32_t> codes) {
  const auto scope = be.scope();
  typename Moshi<C, B>::Saved saved;
  const auto out = Moshi<C, B>::forward(be, params, codes, saved);
  const auto all = [](const auto& t) { return std::vector(t.data(), t.data() + t.size()); };
  return {all(out.text_logits), all(out.logits), all(out.text_mask), all(out.mask)};
}

template <class Format, MoshiConfig C, class Params>
void compare(bench::Suite& suite, const std::string& name, const Params& trained,
             Streams<const std::int32_t> codes, const Predictions& exact) {
  using B = WithWeights<Format, Cpu<float>>;
  B be;
  Store<typename Moshi<C, B>::Params, B> params(be);
  const double start = bench::now();
  quantise(trained, params);
  const double seconds = bench::now() - start;
  const auto found = predict<C>(be, *params, codes);
  const auto line = [&](const char* stream, const auto& a, const auto& b, const auto& mask, Index card) {
    const auto d = divergence(a.data(), b.data(), static_cast<Index>(a.size()) / card, card, mask.data());
    char text[160];
    std::snprintf(text, sizeof text, "%s, %d bits, %s: KL %.2e nats, greedy agreement %.1f %% of %ld",
                  name.c_str(), Format::bits, stream, d.kl, 100 * d.agreement, static_cast<long>(d.rows));
    suite.note(text);
  };
  line("text ", exact.text, found.text, exact.text_mask, C.text_card);
  line("audio", exact.audio, found.audio, exact.mask, C.card);
  char text[160];
  std::snprintf(text, sizeof text, "%s, %d bits: %.1f MB instead of %.1f, rounded in %.2f s", name.c_str(),
                Format::bits, static_cast<double>(params.bytes()) * 1e-6,
                static_cast<double>(trained.bytes()) * 1e-6, seconds);
  suite.note(text);
}

template <MoshiConfig C>
void measure(bench::Suite& suite, const std::string& name, const char* model, const char* recording,
             Index frames) {
  using B = Cpu<float>;
  B be;
  Store<typename Moshi<C, B>::Params, B> params(be);
  std::vector<std::int32_t> values;
  if (model != nullptr && recording != nullptr) {
    load_params(model, be, params);
    const auto coded = load_codes(recording);
    if (coded.streams != C.streams() || coded.card > C.card || coded.text_card > C.text_card)
      fail(recording, "codes of another model", "codes for " + name,
           "name a recording that the model was trained on");
    frames = coded.frames;
    values = coded.codes;
  } else {
    Rng rng(1);
    Moshi<C, B>::init(*params, rng);
    for (Index i = 0; i < C.streams() * frames; ++i)
      values.push_back(static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(C.card))));
  }
  const Streams<const std::int32_t> codes(values.data(), {1, C.streams(), frames});
  const auto exact = predict<C>(be, *params, codes);
  compare<Int8, C>(suite, name, params, codes, exact);
  compare<Int4, C>(suite, name, params, codes, exact);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("quantised_accuracy", argc, argv);
  const char *model = std::getenv("MTTT_MODEL"), *recording = std::getenv("MTTT_CODES");
  if (model != nullptr && recording != nullptr) {
    measure<presets::tiny>(suite, "tiny, trained", model, recording, 0);
  } else {
    measure<presets::tiny>(suite, "tiny, random", nullptr, nullptr, 100);
    if (!suite.quick())
      measure<presets::moshi_100m_without_ttt>(suite, "100m, random", nullptr, nullptr, 100);
  }
  return suite.finish();
}
