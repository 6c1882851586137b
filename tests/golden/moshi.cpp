// Moshi against the published LMModel: teacher-forced logits and masks, the attention window shorter than the
// sequence.
#include "moshi_tiny.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;

/// Largest difference where the mask is set, relative to the largest value there; the rest of the file is
/// NaN.
struct Compared {
  double difference = 0, largest = 0;
  Index rows = 0;
  template <class T>
  void row(const T* ours, const float* theirs, Index n) {
    for (Index i = 0; i < n; ++i) {
      const double expected = theirs[i];
      const double error = std::abs(static_cast<double>(ours[i]) - expected);
      difference = error <= difference ? difference : error;  // takes NaN
      largest = std::max(largest, std::abs(expected));
    }
    ++rows;
  }
};

}  // namespace

TEST_CASE("Moshi's teacher-forced logits equal the published ones") {
  Cpu<float> be;
  using Model = Moshi<moshi_golden, Cpu<float>>;
  constexpr Index batch = 2, steps = 24, K = Model::K;
  const SafetensorsFile file = open_golden("moshi_tiny");
  const auto params = golden_params(be);
  const auto codes = read_golden<std::int32_t>(file, "in.codes");
  const auto text_logits = read_golden<float>(file, "out.text_logits");
  const auto logits = read_golden<float>(file, "out.logits");
  const auto text_mask = read_golden<std::uint8_t>(file, "out.text_mask");
  const auto mask = read_golden<std::uint8_t>(file, "out.mask");
  REQUIRE(text_logits.size() == batch * steps * moshi_golden.text_card);
  REQUIRE(logits.size() == batch * K * steps * moshi_golden.card);

  const auto scope = be.scope();
  Model::Saved saved;
  const auto out = Model::forward(be, *params, streams(codes, batch, moshi_golden.streams(), steps), saved);
  Compared text, audio;
  bool masks_equal = true;
  const auto one = [](const auto& values, Index row, Index width) { return values.data() + row * width; };
  for (Index b = 0; b < batch; ++b) {
    for (Index t = 0; t < steps; ++t) {
      const Index row = b * steps + t;
      masks_equal = masks_equal && out.text_mask(0, b, t) == *one(text_mask, row, 1);
      if (out.text_mask(0, b, t))
        text.row(&out.text_logits(b, t, 0), one(text_logits, row, moshi_golden.text_card),
                 moshi_golden.text_card);
      for (Index k = 0; k < K; ++k) {
        const Index theirs = (b * K + k) * steps + t;  // published: (B, K, T, card)
        masks_equal = masks_equal && out.mask(k, b, t) == *one(mask, theirs, 1);
        if (out.mask(k, b, t))
          audio.row(&out.logits(k, row, 0), one(logits, theirs, moshi_golden.card), moshi_golden.card);
      }
    }
  }
  CHECK(masks_equal);
  CHECK(text.rows > 0);
  CHECK(audio.rows > 0);
  CHECK(audio.rows < batch * K * steps);  // the delays take some
  CHECK(text.difference <= 1e-4 * text.largest);
  CHECK(audio.difference <= 1e-4 * audio.largest);
}
