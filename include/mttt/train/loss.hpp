// Cross-entropy over rows of logits with its gradient, and the rule that weighs text and audio rows.
//
// Formula: l_r = log sum_i exp(x_ri) - x_r[target_r];  loss = sum_r w_r l_r / sum_r w_r;
//          dx_r = scale w_r (softmax(x_r) - onehot(target_r)) / sum_r w_r.  All 0 when the weights sum to 0.
//          The loss of a language model is the loss of its text rows plus that of its audio rows.
//          Where each of several ranks has some of the rows, sum_r w_r is over those of all, and what a rank gets
//          is its share: the shares add up to the loss, and the gradient, of all rows.
// Shapes:  logits (..., card) are rows = all extents but the last; targets, weights, row losses (rows);
//          codes (B, K, T): stream 0 is text, stream 1 the first codebook; mask (B, count, T).
// Units:   nats.
// Errors:  a target outside [0, card) or a weight below 0 or not finite, where the weight is not 0.
//          A row of weight 0 is not read: neither its target nor its logits need mean anything.
// Not supported: label smoothing.
// Source:  kyutai-labs/moshi-finetune, finetune/loss.py, compute_loss_with_mask.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "mttt/backend/backend.hpp"
#include "mttt/math/scalar.hpp"
#include "mttt/train/chunks.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

struct CrossEntropy {
  double loss;    // the weighted mean, not scaled, or a rank's share of it
  double weight;  // the sum of the weights, of all ranks: 0 when no row took part
};

namespace detail {

/// Whether a row takes part in the loss; false for an erroneous one too, which check_rows counts.
MTTT_HD inline bool good_row(float weight, std::int32_t target, Index card) {
  return weight > 0 && weight <= 3.4028234e38f && target >= 0 && target < card;
}

/// Sums over rows, each over parts of this length first: many cores work on them, and the order is fixed.
inline constexpr Index loss_rows_a_part = 1 << 12;
inline Index loss_parts(Index rows) { return (rows + loss_rows_a_part - 1) / loss_rows_a_part; }

/// parts[p] = sum of weights, parts[count + p] = number of erroneous rows, of part p
struct WeightParts {
  const std::int32_t* targets;
  const float* weights;
  double* parts;
  Index rows, card, count;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const Index first = p * loss_rows_a_part,
                n = loss_rows_a_part < rows - first ? loss_rows_a_part : rows - first;
    const auto* t = targets + first;
    const auto* w = weights + first;
    const Index classes = card;
    const double weight = team.template sum<double>(
        n, [=](Index r) { return good_row(w[r], t[r], classes) ? static_cast<double>(w[r]) : 0.0; });
    const double bad = team.template sum<double>(
        n, [=](Index r) { return w[r] == 0 || good_row(w[r], t[r], classes) ? 0.0 : 1.0; });
    if (team.leader()) parts[p] = weight, parts[count + p] = bad;
  }
};

/// parts[p] = weighted sum of the losses of part p
template <class A>
struct LossParts {
  const float* weights;
  const A* losses;
  double* parts;
  Index rows;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const Index first = p * loss_rows_a_part,
                n = loss_rows_a_part < rows - first ? loss_rows_a_part : rows - first;
    const auto* w = weights + first;
    const A* l = losses + first;
    const double loss = team.template sum<double>(
        n, [=](Index r) { return w[r] > 0 ? static_cast<double>(w[r]) * static_cast<double>(l[r]) : 0.0; });
    if (team.leader()) parts[p] = loss;
  }
};

/// totals[i] = sum of parts[i, .]
struct JoinLossParts {
  const double* parts;
  double* totals;
  Index count;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const double* x = parts + i * count;
    const double sum = team.template sum<double>(count, [=](Index p) { return x[p]; });
    if (team.leader()) totals[i] = sum;
  }
};

template <class A>
struct RowSum {
  A top, sum;  // the largest logit, and the sum of exp(x - top)
};

/// On a GPU one pass over memory, 16 bytes at a time: each member sums below its own maximum so far, and the
/// members' sums are brought to the common one. On a CPU, whose caches hold the row, two passes are faster.
template <class A, class Team, class T>
MTTT_HD RowSum<A> sum_row(Team team, const T* x, Index card) {
#ifdef __CUDA_ARCH__
  constexpr Index W = 16 / sizeof(T);
  const Index packs = reinterpret_cast<std::uintptr_t>(x) % 16 == 0 ? card / W : 0;
  const Index members = blockDim.x, member = threadIdx.x;
  A top = -std::numeric_limits<A>::max(), part = 0;
  const auto raise = [&](A value) {
    if (!(value > top)) return;
    part *= math::exp(top - value);
    top = value;
  };
  for (Index k = member; k < packs; k += members) {
    const auto pack = load_lanes<W>(x + k * W);
    A high = wide(pack.of[0]);
    for (Index j = 1; j < W; ++j) high = high < wide(pack.of[j]) ? wide(pack.of[j]) : high;
    raise(high);
    for (Index j = 0; j < W; ++j) part += math::exp(wide(pack.of[j]) - top);
  }
  for (Index i = packs * W + member; i < card; i += members) {
    raise(wide(x[i]));
    part += math::exp(wide(x[i]) - top);
  }
  const A all = team.template max<A>(members, [=](Index) { return top; });  // one a member
  return {all, team.template sum<A>(members, [=](Index) { return part * math::exp(top - all); })};
#else
  const A top = team.template max<A>(card, [=](Index i) { return static_cast<A>(x[i]); });
  return {top, team.template sum<A>(card, [=](Index i) { return math::exp(static_cast<A>(x[i]) - top); })};
#endif
}

template <class T, class A>
struct CrossEntropyRow {
  const T* logits;
  const std::int32_t* targets;
  const float* weights;
  const double* weight;  // of all rows
  T* dlogits;            // may be null, may be the logits
  A* losses;
  Index card;
  double scale;
  template <class Team>
  MTTT_HD void operator()(Team team, Index r) const {
    T* dx = dlogits == nullptr ? nullptr : dlogits + r * card;
    if (!good_row(weights[r], targets[r], card)) {
      if (team.leader()) losses[r] = A(0);
      if (dx != nullptr) team.for_each(card, [=](Index i) { dx[i] = T(0); });
      return;
    }
    const T* x = logits + r * card;
    const Index target = targets[r];
    const A hit = static_cast<A>(x[target]);
    const auto [top, sum] = sum_row<A>(team, x, card);
    if (team.leader()) losses[r] = std::log(sum) + (top - hit);
    if (dx == nullptr) return;
    const A share = static_cast<A>(scale * static_cast<double>(weights[r]) / *weight);
    const A factor = share / sum, largest = top;
    team.sync();  // all have read the target's logit before anyone overwrites it
    write(team, dx, x, [=](Index i, T logit) {
      const A p = factor * math::exp(static_cast<A>(logit) - largest);
      return static_cast<T>(i == target ? p - share : p);
    });
  }

 private:
  /// dx[i] = f(i, x[i])
  template <class Team, class F>
  MTTT_HD void write(Team team, T* dx, const T* x, const F& f) const {
#ifdef __CUDA_ARCH__
    if ((reinterpret_cast<std::uintptr_t>(x) | reinterpret_cast<std::uintptr_t>(dx)) % 16 == 0) {
      constexpr Index width = 16 / sizeof(T);
      for_each_lanes<width>(team, card, [&](Index at, auto neighbours) {
        constexpr Index W = decltype(neighbours)::value;
        auto pack = load_lanes<W>(x + at);
        for (Index j = 0; j < W; ++j) pack.of[j] = f(at + j, pack.of[j]);
        store_lanes(dx + at, pack);
      });
      return;
    }
#endif
    team.for_each(card, [&](Index i) { dx[i] = f(i, x[i]); });
  }
};

/// What a cross-entropy leaves in the backend's memory, for the host to fetch when it likes.
struct CrossEntropySums {
  double weight, bad_rows, loss;  // sum of weights, number of erroneous rows, sum of weighted losses

  /// Once in the host's memory: the result, or the error.
  CrossEntropy result(Index card) const {
    if (bad_rows != 0) {
      fail("cross_entropy", std::to_string(static_cast<Index>(bad_rows)) + " bad rows",
           "targets from 0 to " + std::to_string(card - 1) + " and finite weights, not below 0",
           "give weight 0 to rows that have no target");
    }
    return {weight > 0 ? loss / weight : 0, weight};
  }
};

}  // namespace detail

/// As cross_entropy, but the host waits for nothing: the result stays in `sums`, in the backend's memory.
template <class B, class R = OneRank, class T, Index... E>
void queue_cross_entropy(B& be, Tensor<T, E...> logits, Tensor<const std::int32_t, dyn> targets,
                         Tensor<const float, dyn> weights, detail::CrossEntropySums* sums,
                         std::type_identity_t<Tensor<std::remove_const_t<T>, E...>> dlogits = {},
                         double scale = 1, Tensor<typename B::Accum, dyn> row_losses = {},
                         const R& ranks = {}) {
  using Value = std::remove_const_t<T>;
  using A = typename B::Accum;
  const Index rows = logits.flat_rows().extent(0), card = logits.flat_rows().extent(1);
  const auto demand = [&](const char* what, Index found, Index expected) {
    if (found == expected) return;
    fail(std::string("cross_entropy: ") + what, std::to_string(found) + " elements", std::to_string(expected),
         "pass one for each row of the logits");
  };
  demand("targets", targets.size(), rows);
  demand("weights", weights.size(), rows);
  if (dlogits.data() != nullptr) demand("dlogits", dlogits.size(), logits.size());
  if (row_losses.data() != nullptr) demand("row_losses", row_losses.size(), rows);

  const auto scope = be.scope();
  A* losses = row_losses.data() != nullptr ? row_losses.data() : be.template make<A, dyn>(rows).data();
  const Index count = detail::loss_parts(rows), cost = 2 * detail::loss_rows_a_part;
  double* parts = be.template make<double, 2, dyn>(count).data();
  be.rows(count, detail::WeightParts{targets.data(), weights.data(), parts, rows, card, count}, 0, cost);
  be.rows(2, detail::JoinLossParts{parts, &sums->weight, count}, 0, count);
  ranks.all_reduce_sum(be, &sums->weight, Index{1});
  ranks.wait(be);
  be.rows(rows,
          detail::CrossEntropyRow<Value, A>{logits.data(), targets.data(), weights.data(), &sums->weight,
                                            dlogits.data(), losses, card, scale},
          0, 4 * card);
  be.rows(count, detail::LossParts<A>{weights.data(), losses, parts, rows}, 0, cost);
  be.rows(1, detail::JoinLossParts{parts, &sums->loss, count}, 0, count);
}

/// The loss, and its gradient where `dlogits` is not empty; `dlogits` may be the logits themselves.
/// `row_losses`, where not empty, receives l_r (0 for rows of weight 0).
template <class B, class R = OneRank, class T, Index... E>
CrossEntropy cross_entropy(B& be, Tensor<T, E...> logits, Tensor<const std::int32_t, dyn> targets,
                           Tensor<const float, dyn> weights,
                           std::type_identity_t<Tensor<std::remove_const_t<T>, E...>> dlogits = {},
                           double scale = 1, Tensor<typename B::Accum, dyn> row_losses = {},
                           const R& ranks = {}) {
  const auto scope = be.scope();
  const auto sums = be.template make<detail::CrossEntropySums, 1>();
  queue_cross_entropy(be, logits, targets, weights, sums.data(), dlogits, scale, row_losses, ranks);
  detail::CrossEntropySums host;
  be.to_host(sums.data(), &host, Index{1});
  return host.result(logits.flat_rows().extent(1));
}

/// How rows are weighed. The defaults are those of moshi-finetune.
struct LossConfig {
  float text_padding_weight = 0.5f;               // of text rows whose target is one of the two padding ids
  float first_codebook_weight_multiplier = 1.0f;  // of audio rows of stream 1
  std::int32_t text_padding = 3, end_of_text_padding = 0;
  std::int32_t zero_token = -1;  // a code that stands for nothing: out
};

/// The order of the rows of the logits: (B, T, count) or (B, count, T).
enum class RowOrder { time_major, stream_major };

namespace detail {

struct LossRow {
  LossConfig config;
  const std::int32_t* codes;
  const std::uint8_t* mask;  // null: all
  Index streams, first, count, steps;
  bool time_major;
  std::int32_t* targets;
  float* weights;
  MTTT_HD void operator()(Index row) const {
    const Index t = time_major ? row / count % steps : row % steps;
    const Index k = time_major ? row % count : row / steps % count;
    const Index b = row / (steps * count), stream = first + k;
    const std::int32_t code = codes[(b * streams + stream) * steps + t];
    const bool in = code != config.zero_token && (mask == nullptr || mask[(b * count + k) * steps + t] != 0);
    float weight = in ? 1.0f : 0.0f;
    if (stream == 0 && (code == config.text_padding || code == config.end_of_text_padding))
      weight *= config.text_padding_weight;
    if (stream == 1) weight *= config.first_codebook_weight_multiplier;
    targets[row] = in ? code : 0;
    weights[row] = weight;
  }
};

}  // namespace detail

/// Targets and weights of the rows of streams [first, first + count): (0, 1) for text, (1, dep_q) for audio.
/// `mask` is 0 where the model has no logits for a position because of its delays; empty means "all".
template <class B>
void loss_rows(B& be, const LossConfig& config, Tensor<const std::int32_t, dyn, dyn, dyn> codes,
               Tensor<const std::uint8_t, dyn, dyn, dyn> mask, Index first, Index count, RowOrder order,
               Tensor<std::int32_t, dyn> targets, Tensor<float, dyn> weights) {
  const Index batch = codes.extent(0), streams = codes.extent(1), steps = codes.extent(2);
  const Index rows = batch * count * steps;
  if (first < 0 || count < 0 || first + count > streams) {
    fail("loss_rows", "streams " + std::to_string(first) + " to " + std::to_string(first + count - 1),
         "streams from 0 to " + std::to_string(streams - 1), "compare dep_q with the codes");
  }
  if (mask.data() != nullptr && mask.extents() != std::array<Index, 3>{batch, count, steps}) {
    fail("loss_rows: mask", std::to_string(mask.size()) + " elements", "one for each row",
         "pass a mask of shape (B, count, T)");
  }
  if (targets.size() != rows || weights.size() != rows) {
    fail("loss_rows: targets and weights",
         std::to_string(targets.size()) + " and " + std::to_string(weights.size()) + " elements",
         std::to_string(rows) + " each", "make room for one of each a row");
  }
  be.for_each(rows, detail::LossRow{config, codes.data(), mask.data(), streams, first, count, steps,
                                    order == RowOrder::time_major, targets.data(), weights.data()});
}

}  // namespace mttt
