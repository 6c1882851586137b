// An hour of conversation: 48,000 frames of `tiny` with its TTT layers always learning. Printed are the time of
// a frame, the memory of the process and the size of the fast weights along the way, and how many of the codes
// that were said a pass over the whole stream at once, on the same codes, says as well.
//
// That pass keeps what a gradient would need: 140 kB a frame, 7 GB. Of the arguments of the other programs only
// --quick means something here.
#include <sys/resource.h>

#include "harness.hpp"
#include "mttt/lm/lm_gen.hpp"
#include "mttt/presets/tiny.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;
constexpr MoshiConfig config = presets::tiny;
using Model = Moshi<config, B>;
using Gen = LMGen<config, B>;
const GenOptions options{.text = {.temperature = 0.7, .top_k = 25},
                         .audio = {.temperature = 0.8, .top_k = 250}};
constexpr std::int64_t seed = 1;

/// Memory of the process now.
double resident_megabytes() {
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*s %ld", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return static_cast<double>(pages) * static_cast<double>(sysconf(_SC_PAGESIZE)) * 1e-6;
}

/// Root of the mean square of the fast weights of all layers, and the largest of them.
std::pair<double, double> fast_weights(const Gen::State& state) {
  double squares = 0, largest = 0, n = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if (!name.ends_with("ttt.weights")) return;
        for (Index i = 0; i < t.size(); ++i) {
          const double w = static_cast<double>(t.data()[i]);
          squares += w * w;
          largest = std::max(largest, std::abs(w));
        }
        n += static_cast<double>(t.size());
      },
      state);
  return {std::sqrt(squares / n), largest};
}

/// The codes (1, streams, T) of a stream of random users' codes, with what the model said to them.
std::vector<std::int32_t> converse(B& be, const Model::Params& params, Index frames) {
  std::vector<std::int32_t> codes(static_cast<std::size_t>(config.streams() * frames), zero_code);
  const auto at = [&](Index k, Index t) -> std::int32_t& {
    return codes[static_cast<std::size_t>(k * frames + t)];
  };
  Rng rng(3);
  Store<Gen::State, B> state(be, 1);
  Gen::reset(be, params, *state, Mask{}, Tensor<const std::int64_t, dyn>(&seed, {1}));
  const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(1);
  const auto said = be.make<std::int32_t, dyn, Gen::spoken>(1);
  const Index window = std::max<Index>(1, frames / 12);
  std::vector<double> seconds;
  std::printf("%8s %9s %9s %11s %18s %12s\n", "frame", "p50 ms", "p99 ms", "memory MB", "fast weights, rms",
              "largest");
  for (Index t = 0; t < frames; ++t) {
    for (Index j = 0; j < Gen::heard_streams; ++j) {  // heard now, at the time before
      heard(0, j) = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(config.card)));
      if (t > 0) at(Gen::spoken + j, t - 1) = heard(0, j);
    }
    const double start = bench::now();
    Gen::step(be, params, *state, heard, said, options);
    seconds.push_back(bench::now() - start);
    const Index done = t - config.max_delay();
    for (Index k = 0; k < Gen::spoken && done >= 0; ++k) at(k, done) = said(0, k);
    if ((t + 1) % window != 0) continue;
    const auto [size, largest] = fast_weights(*state);
    std::printf("%8td %9.3f %9.3f %11.1f %18.5f %12.4f\n", t + 1, 1e3 * bench::median(seconds),
                1e3 * bench::quantile(seconds, 0.99), resident_megabytes(), size, largest);
    seconds.clear();
  }
  return codes;
}

/// Codes drawn from the logits of a pass over the stream, against those that were said.
void compare(B& be, const Model::Params& params, const std::vector<std::int32_t>& codes, Index frames) {
  const auto scope = be.scope();
  Model::Saved saved;
  const double start = bench::now();
  const auto out = Model::forward(be, params, {codes.data(), {1, config.streams(), frames}}, saved);
  std::printf("the whole stream at once: %.1f s\n", bench::now() - start);
  const auto seeds = be.make<std::int64_t, dyn>(frames), drawn_at = be.make<std::int64_t, dyn>(frames);
  const auto drawn = be.make<std::int32_t, dyn>(frames);
  const Index known =
      frames - 2 * config.max_delay() - 1;  // times whose codes and whose text after are known
  Index same = 0;
  for (Index k = 0; k < Gen::spoken; ++k) {
    for (Index t = 0; t < frames; ++t) seeds(t) = seed, drawn_at(t) = t + config.delays.of[k];
    if (k == 0) {
      sample(be, Tensor<float, dyn, config.text_card>(out.text_logits.data(), {frames, config.text_card}),
             options.text, seeds.data(), drawn_at.data(), k, drawn.data());
    } else {
      sample(be,
             Tensor<float, dyn, config.card>(out.logits.data() + (k - 1) * frames * config.card,
                                             {frames, config.card}),
             options.audio, seeds.data(), drawn_at.data(), k, drawn.data());
    }
    for (Index t = 0; t < known; ++t) same += drawn(t) == codes[static_cast<std::size_t>(k * frames + t)];
  }
  std::printf("%td of %td codes are the same\n", same, known * Gen::spoken);
}
}  // namespace

int main(int argc, char** argv) {
  std::string json;  // there are no rows to write
  const bool quick = bench::read_arguments(argc, argv, json);
  B be(1);  // a frame of a model this small is not worth a second thread
  const Index frames = quick ? 600 : 48000;
  Store<Model::Params, B> params(be);
  Rng rng(1);
  Model::init(*params, rng);
  compare(be, *params, converse(be, *params, frames), frames);
  return 0;
}
