// Causality: whether any prediction of a model depends on a code that comes later, found by changing later
// codes.
//
// Formula: in the order in which a model reads and says, the code of stream k at frame t has the place
//          (t + delay_k, k). A prediction may depend on codes of smaller places alone. Codes are changed from
//          some place on, one of them or all; every prediction up to that place must keep its bits. That
//          predictions beyond it do change is counted too: a check that changes nothing finds nothing.
// Shapes:  codes (streams, frames); logits of stream k (frames, card_k), aligned with the codes they predict.
// Units:   frames.
// Errors:  codes of another size; a recording shorter than 2 frames.
// Not supported: none.
// Source:  the causality law (laws.hpp), for a model in use and on its data.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/lm/delays.hpp"

namespace mttt {

/// Predictions of the streams that a model says, text first.
struct CodeLogits {
  Index frames = 0;
  std::vector<Index> cards = {};
  std::vector<std::vector<float>> of = {};  // stream k: (frames, cards[k])

  const float* row(std::size_t k, Index t) const { return of[k].data() + t * cards[k]; }
};

/// What a check may know of a model.
struct CodeOrder {
  Index streams;
  Delays delays;
  Index text_card, card;

  Index card_of(Index k) const { return k == 0 ? text_card : card; }
};

struct Leak {
  Index changed_stream, changed_frame;  // the first code that was changed
  Index stream, frame;                  // a prediction that comes before it, and is another
};

struct CausalityReport {
  Index trials = 0, live = 0;    // live: of so many trials, something after the change was another
  double compared = 0;           // numbers that had to keep their bits
  std::vector<Leak> leaks = {};  // the first of each trial
  bool causal() const { return leaks.empty() && live > 0; }
};

namespace detail {

/// Another code than `old`.
inline std::int32_t other_code(std::int32_t old, Index card, Rng& rng) {
  const auto n = static_cast<std::uint64_t>(card);
  const auto found = static_cast<std::int32_t>(rng.below(n));
  return found != old || card < 2 ? found : (found + 1) % static_cast<std::int32_t>(card);
}

}  // namespace detail

/// `logits_of(codes)` answers the CodeLogits of codes (streams, frames). Half of the trials change one code,
/// the others all codes from a place on.
template <class F>
CausalityReport check_causality(F&& logits_of, const std::vector<std::int32_t>& codes, const CodeOrder& order,
                                Index trials, std::uint64_t seed = 1) {
  const Index streams = order.streams, frames = static_cast<Index>(codes.size()) / streams;
  if (frames < 2 || frames * streams != static_cast<Index>(codes.size()))
    fail("check_causality",
         std::to_string(codes.size()) + " codes of " + std::to_string(streams) + " streams",
         "two whole frames or more", "choose a longer recording");
  const CodeLogits before = logits_of(codes);
  Rng rng(seed);
  CausalityReport report;
  for (Index trial = 0; trial < trials; ++trial) {
    const Index j = static_cast<Index>(rng.below(static_cast<std::uint64_t>(streams)));
    const Index p = 1 + static_cast<Index>(rng.below(static_cast<std::uint64_t>(frames - 1)));
    const auto place = [&](Index k, Index t) { return (t + order.delays.of[k]) * streams + k; };
    const Index first = place(j, p);
    auto changed = codes;
    for (Index k = 0; k < streams; ++k) {
      for (Index t = 0; t < frames; ++t) {
        auto& code = changed[static_cast<std::size_t>(k * frames + t)];
        const bool here = trial % 2 == 0 ? k == j && t == p : place(k, t) >= first;
        if (here) code = detail::other_code(code, order.card_of(k), rng);
      }
    }
    const CodeLogits after = logits_of(changed);
    bool leaked = false, lives = false;
    for (std::size_t k = 0; k < before.of.size(); ++k) {
      const auto bytes = static_cast<std::size_t>(before.cards[k]) * sizeof(float);
      for (Index t = 0; t < frames; ++t) {
        const bool same = std::memcmp(before.row(k, t), after.row(k, t), bytes) == 0;
        const bool earlier = place(static_cast<Index>(k), t) <= first;
        lives |= !earlier && !same;
        if (!earlier) continue;
        report.compared += static_cast<double>(before.cards[k]);
        if (!same && !leaked) report.leaks.push_back({j, p, static_cast<Index>(k), t});
        leaked |= !same;
      }
    }
    ++report.trials;
    report.live += lives;
  }
  return report;
}

/// How far two ways to the same logits are from each other, where a stream's delay leaves a prediction.
struct Agreement {
  double largest = 0, size = 0;  // largest difference; largest logit
  double same_choice = 1;        // share of predictions whose likeliest code is the same
  Index worst_stream = 0, worst_frame = 0;
};
inline Agreement agreement_of(const CodeLogits& a, const CodeLogits& b, const CodeOrder& order) {
  Agreement found;
  double rows = 0, same = 0;
  for (std::size_t k = 0; k < a.of.size(); ++k) {
    for (Index t = 0; t + order.delays.of[k] < a.frames; ++t, ++rows) {
      const float *x = a.row(k, t), *y = b.row(k, t);
      for (Index c = 0; c < a.cards[k]; ++c) {
        const double by = std::abs(static_cast<double>(x[c]) - static_cast<double>(y[c]));
        found.size = std::max(found.size, std::abs(static_cast<double>(x[c])));
        if (by <= found.largest) continue;
        found.largest = by, found.worst_stream = static_cast<Index>(k), found.worst_frame = t;
      }
      same += std::max_element(x, x + a.cards[k]) - x == std::max_element(y, y + a.cards[k]) - y;
    }
  }
  if (rows > 0) found.same_choice = same / rows;
  return found;
}

}  // namespace mttt
