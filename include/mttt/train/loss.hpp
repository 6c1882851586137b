// Cross-entropy over rows of logits with its gradient, and the rule that weighs text and audio rows.
//
// Formula: l_r = log sum_i exp(x_ri) - x_r[target_r];  loss = sum_r w_r l_r / sum_r w_r;
//          dx_r = scale w_r (softmax(x_r) - onehot(target_r)) / sum_r w_r.  All 0 when the weights sum to 0.
//          The loss of a language model is the loss of its text rows plus that of its audio rows.
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
#include <string>

#include "mttt/backend/backend.hpp"
#include "mttt/math/scalar.hpp"

namespace mttt {

struct CrossEntropy {
  double loss;    // the weighted mean, not scaled
  double weight;  // the sum of the weights: 0 when no row took part
};

namespace detail {

/// Whether a row takes part in the loss; false for an erroneous one too, which check_rows counts.
MTTT_HD inline bool good_row(float weight, std::int32_t target, Index card) {
  return weight > 0 && weight <= 3.4028234e38f && target >= 0 && target < card;
}

/// totals[0] = sum of weights, totals[1] = number of erroneous rows
struct WeightTotals {
  const std::int32_t* targets;
  const float* weights;
  double* totals;
  Index rows, card;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const auto* t = targets;
    const auto* w = weights;
    const Index classes = card;
    const double weight = team.template sum<double>(
        rows, [=](Index r) { return good_row(w[r], t[r], classes) ? static_cast<double>(w[r]) : 0.0; });
    const double bad = team.template sum<double>(
        rows, [=](Index r) { return w[r] == 0 || good_row(w[r], t[r], classes) ? 0.0 : 1.0; });
    if (team.leader()) totals[0] = weight, totals[1] = bad;
  }
};

/// totals[2] = weighted sum of the losses
template <class A>
struct LossTotal {
  const float* weights;
  const A* losses;
  double* totals;
  Index rows;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const auto* w = weights;
    const A* l = losses;
    const double loss = team.template sum<double>(rows, [=](Index r) {
      return w[r] > 0 ? static_cast<double>(w[r]) * static_cast<double>(l[r]) : 0.0;
    });
    if (team.leader()) totals[2] = loss;
  }
};

template <class T, class A>
struct CrossEntropyRow {
  const T* logits;
  const std::int32_t* targets;
  const float* weights;
  const double* totals;
  T* dlogits;  // may be null, may be the logits
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
    const A top = team.template max<A>(card, [=](Index i) { return static_cast<A>(x[i]); });
    const A sum = team.template sum<A>(card, [=](Index i) { return math::exp(static_cast<A>(x[i]) - top); });
    if (team.leader()) losses[r] = std::log(sum) + (top - hit);
    if (dx == nullptr) return;
    const A share = static_cast<A>(scale * static_cast<double>(weights[r]) / totals[0]);
    const A factor = share / sum;
    team.sync();  // all have read the target's logit before anyone overwrites it
    team.for_each(card, [=](Index i) {
      const A p = factor * math::exp(static_cast<A>(x[i]) - top);
      dx[i] = static_cast<T>(i == target ? p - share : p);
    });
  }
};

}  // namespace detail

/// The loss, and its gradient where `dlogits` is not empty; `dlogits` may be the logits themselves.
/// `row_losses`, where not empty, receives l_r (0 for rows of weight 0).
template <class B, class T, Index... E>
CrossEntropy cross_entropy(B& be, Tensor<T, E...> logits, Tensor<const std::int32_t, dyn> targets,
                           Tensor<const float, dyn> weights,
                           std::type_identity_t<Tensor<std::remove_const_t<T>, E...>> dlogits = {},
                           double scale = 1, Tensor<typename B::Accum, dyn> row_losses = {}) {
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
  if (rows == 0) return {0, 0};

  const auto scope = be.scope();
  A* losses = row_losses.data() != nullptr ? row_losses.data() : be.template make<A, dyn>(rows).data();
  double* totals = be.template make<double, 3>().data();
  be.rows(1, detail::WeightTotals{targets.data(), weights.data(), totals, rows, card}, 0, rows);
  be.rows(rows,
          detail::CrossEntropyRow<Value, A>{logits.data(), targets.data(), weights.data(), totals,
                                            dlogits.data(), losses, card, scale},
          0, 16 * card);
  be.rows(1, detail::LossTotal<A>{weights.data(), losses, totals, rows}, 0, rows);
  double host[3];
  be.to_host(totals, host, Index{3});
  if (host[1] != 0) {
    fail("cross_entropy", std::to_string(static_cast<Index>(host[1])) + " bad rows",
         "targets from 0 to " + std::to_string(card - 1) + " and finite weights, not below 0",
         "give weight 0 to rows that have no target");
  }
  return {host[0] > 0 ? host[2] / host[0] : 0, host[0]};
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
