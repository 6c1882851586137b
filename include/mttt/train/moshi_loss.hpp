// The training loss of Moshi, with its gradient in one call.
//
// Formula: total = text_loss + audio_loss, each a weighted mean of cross-entropies (train/loss.hpp), over the
//          rows for which the delays leave a prediction. With several ranks, a rank's share of both.
// Shapes:  codes (B, 1 + n_q, T).
// Units:   nats.
// Errors:  those of Moshi::forward and cross_entropy, after all work was queued: *grad is then of no use.
// Not supported: gradients of the two losses apart; a frame that a stream's delay moves past a segment's end
//          counts in no segment.
// Source:  kyutai-labs/moshi-finetune train.py, finetune/loss.py.
#pragma once

#include "mttt/lm/moshi.hpp"
#include "mttt/train/loss.hpp"

namespace mttt {

struct MoshiLoss {
  double text_loss, audio_loss;

  double total() const { return text_loss + audio_loss; }
};

/// What links the codes to the segments of the same recordings before and after them; see Moshi::forward.
///
/// Segments in order, each from the state of the one before it, train on long recordings with gradients that
/// end at the segments' borders. To take them further back, run the segments in order without gradients, keep
/// the states between them, then run them again in reverse order with gradients of those states: what is held
/// at a time is one segment, for one more forward pass.
template <class Model>
struct MoshiSegment {
  Carry<typename Model::Carried> carry = {};
  CarryGradient<typename Model::CarriedGradient> gradient = {};
  Streams<const std::int32_t> before = {};
  UnitHooks hooks = {};  // Trainer::hooks, where several ranks train
};

namespace detail {
/// What the host fetches after a loss, all of it in one go.
struct MoshiLossSums {
  Index bad_code;
  CrossEntropySums text, audio;
};

/// The weighted mean of each `n` rows; 0 where they weigh nothing.
template <class B, class A>
std::vector<double> stream_losses(B& be, Tensor<A, dyn> losses, Tensor<float, dyn> weights, Index n) {
  std::vector<A> loss(static_cast<std::size_t>(losses.size()));
  std::vector<float> weight(loss.size());
  be.to_host(losses.data(), loss.data(), losses.size());
  be.to_host(weights.data(), weight.data(), weights.size());
  std::vector<double> means;
  for (std::size_t row = 0; row < loss.size();) {
    double sum = 0, all = 0;
    for (Index i = 0; i < n; ++i, ++row)
      sum += static_cast<double>(weight[row]) * static_cast<double>(loss[row]), all += weight[row];
    means.push_back(all > 0 ? sum / all : 0);
  }
  return means;
}
}  // namespace detail

/// `Model` is a Moshi<C, B>. Adds to *grad, Params of the same model that may hold the type to compute in,
/// unless it is null. The padding ids come from the model's config. The host waits once, when all work is
/// queued. `by_stream`, where not null, receives the weighted mean of each stream of this rank's codes, text first.
template <class Model, class B, class Grad = typename Model::Params, class R = OneRank>
MoshiLoss moshi_loss(B& be, const typename Model::Params& params, Streams<const std::int32_t> codes,
                     LossConfig weights = {}, Grad* grad = nullptr, const MoshiSegment<Model>& segment = {},
                     const R& ranks = {}, std::vector<double>* by_stream = nullptr) {
  const auto scope = be.scope();
  weights.text_padding = Model::config.existing_text_padding_id;
  weights.end_of_text_padding = Model::config.existing_text_end_padding_id;
  auto* sums = be.template make<detail::MoshiLossSums, 1>().data();
  typename Model::Saved saved;
  const auto out =
      Model::forward(be, params, codes, saved, &sums->bad_code, segment.carry, segment.before, segment.hooks);
  const Index n = codes.extent(0) * codes.extent(2);
  const auto targets = be.template make<std::int32_t, dyn>((1 + Model::K) * n);
  const auto row_weights = be.template make<float, dyn>((1 + Model::K) * n);
  const auto rows = [&](Index stream, Streams<const std::uint8_t> mask) {  // mask (B, 1, T)
    loss_rows(be, weights, codes, mask, stream, 1, RowOrder::time_major,
              Tensor<std::int32_t, dyn>(targets.data() + stream * n, {n}),
              Tensor<float, dyn>(row_weights.data() + stream * n, {n}));
  };
  const auto one = [&](Streams<std::uint8_t> masks, Index k) {
    return Streams<const std::uint8_t>(masks[k].data(), {codes.extent(0), 1, codes.extent(2)});
  };
  rows(0, one(out.text_mask, 0));
  for (Index k = 0; k < Model::K; ++k) rows(1 + k, one(out.mask, k));

  const auto part = [](const auto& all, Index from, Index count) {
    using Tens = std::remove_cvref_t<decltype(all)>;
    return Tensor<const typename Tens::value_type, dyn>(all.data() + from, {count});
  };
  const auto dtext = grad == nullptr ? decltype(out.text_logits){} : out.text_logits;  // in their own place
  const auto daudio = grad == nullptr ? decltype(out.logits){} : out.logits;
  using A = typename B::Accum;
  const auto row_losses =
      by_stream == nullptr ? Tensor<A, dyn>{} : be.template make<A, dyn>((1 + Model::K) * n);
  const auto losses = [&](Index from, Index count) {
    return by_stream == nullptr ? row_losses : Tensor<A, dyn>(row_losses.data() + from, {count});
  };
  queue_cross_entropy(be, out.text_logits, part(targets, 0, n), part(row_weights, 0, n), &sums->text, dtext,
                      1, losses(0, n), ranks);
  queue_cross_entropy(be, out.logits, part(targets, n, Model::K * n), part(row_weights, n, Model::K * n),
                      &sums->audio, daudio, 1, losses(n, Model::K * n), ranks);
  if (grad != nullptr)
    Model::backward(be, params, saved, dtext, daudio, *grad, segment.gradient, segment.hooks);

  detail::MoshiLossSums host;
  be.to_host(sums, &host, Index{1});
  refuse_bad_code(be, "Moshi: codes", codes, 0, Model::codes_known, host.bad_code);
  if (by_stream != nullptr) *by_stream = detail::stream_losses(be, row_losses, row_weights, n);
  return {host.text.result(Model::config.text_card).loss, host.audio.result(Model::config.card).loss};
}

}  // namespace mttt
