// Moshi against the published LMModel: teacher-forced logits and masks, the attention window shorter than the
// sequence.
#pragma once

#include "moshi_tiny.hpp"

namespace mttt::testing {

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

template <class B>
void logits_equal_published() {
  B be;
  Cpu<float> host;
  using Model = Moshi<moshi_golden, B>;
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
  typename Model::Saved saved;
  const auto out =
      Model::forward(be, *params, send(be, streams(codes, batch, moshi_golden.streams(), steps)), saved);
  const auto our_text_logits = fetch(host, be, out.text_logits);
  const auto our_text_mask = fetch(host, be, out.text_mask);
  const auto our_logits = fetch(host, be, out.logits);
  const auto our_mask = fetch(host, be, out.mask);
  Compared text, audio;
  bool masks_equal = true;
  const auto one = [](const auto& values, Index row, Index width) { return values.data() + row * width; };
  for (Index b = 0; b < batch; ++b) {
    for (Index t = 0; t < steps; ++t) {
      const Index row = b * steps + t;
      masks_equal = masks_equal && our_text_mask(0, b, t) == *one(text_mask, row, 1);
      if (our_text_mask(0, b, t))
        text.row(&our_text_logits(b, t, 0), one(text_logits, row, moshi_golden.text_card),
                 moshi_golden.text_card);
      for (Index k = 0; k < K; ++k) {
        const Index theirs = (b * K + k) * steps + t;  // published: (B, K, T, card)
        masks_equal = masks_equal && our_mask(k, b, t) == *one(mask, theirs, 1);
        if (our_mask(k, b, t))
          audio.row(&our_logits(k, row, 0), one(logits, theirs, moshi_golden.card), moshi_golden.card);
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

}  // namespace mttt::testing
