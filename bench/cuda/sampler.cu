// Sampling of one frame's codes: the text row and eight audio rows of the 7B model, one session and 64.
#include "mttt/lm/sampler.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;

struct Draw {
  float* to;
  MTTT_HD void operator()(Index i) const {
    const auto random = philox(7, static_cast<std::uint64_t>(i), 0);
    to[i] = 4 * static_cast<float>(uniform_from(random.word[0]));
  }
};

template <Index card>
void time(Cuda<float>& be, const char* name, Index rows, const SampleOptions& options) {
  const auto scope = be.scope();
  const auto logits = be.make<float, dyn, card>(rows);
  const auto seeds = be.make<std::int64_t, dyn>(rows), frames = be.make<std::int64_t, dyn>(rows);
  const auto codes = be.make<std::int32_t, dyn>(rows);
  be.for_each(logits.size(), Draw{logits.data()});
  be.fill(seeds.data(), rows, std::int64_t{1});
  be.fill(frames.data(), rows, std::int64_t{1});
  char text[64];
  std::snprintf(text, sizeof text, "%s, %td rows", name, rows);
  const double ms = bench::milliseconds(
      be, [&] { sample(be, logits, options, seeds.data(), frames.data(), 1, codes.data()); });
  bench::report(text, ms, 0, static_cast<double>(logits.size()) * 4);
}
}  // namespace

int main() {
  Cuda<float> be;
  std::printf("%s\n", mttt::detail::device_name().c_str());
  for (const Index rows : {1, 64}) {
    time<32000>(be, "text, 25 of 32000", rows, {.temperature = 0.7, .top_k = 25});
    time<2048>(be, "audio, 250 of 2048", rows, {.temperature = 0.8, .top_k = 250});
    time<2048>(be, "audio, greedy", rows, {.greedy = true});
  }
  return 0;
}
