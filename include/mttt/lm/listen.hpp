// Listening: a model follows a recording as it would in a stream, and is asked at every frame what comes
// next.
//
// Formula: text_loss_t = -log p(text code of frame t), audio_loss_t = mean over the spoken codebooks of
//          -log p(code of frame t), each given all that the stream has read before, the delays as in
//          training. The sums over a recording are those of train/moshi_loss.hpp with weights of 1.
// Shapes:  codes (1 + n_q, frames); losses and likeliest words a number a frame.
// Units:   nats; frames. NaN where nothing was to be predicted: codes of -1, and what a delay moves past the
//          end.
// Errors:  codes of another number of streams; a probe or resets in one pass.
// Not supported: several recordings at a time.
// Source:  none.
#pragma once

#include <limits>
#include <optional>

#include "mttt/lm/probes.hpp"

namespace mttt {

struct ListenOptions {
  Index chunk = 32;           // frames a step of the transformer; the numbers do not depend on it
  Index reset_ttt_every = 0;  // frames after which the fast weights are W_0 again; 0: never
  bool probe = false;         // watch the TTT layers
  bool offline = false;       // one pass over the recording, as in training, instead of steps
};

struct Listened {
  std::vector<double> text_loss, audio_loss;
  std::vector<std::int32_t> likeliest_word;  // of all text codes but the two of padding; -1: none
  std::vector<LayerCurves> layers;           // if watched
};

namespace detail {

/// loss[row] = log sum exp(x) - x[target]; -1 where there is no target.
template <class T, class A>
struct RowLoss {
  const T* logits;
  const std::int32_t* targets;
  A* loss;
  Index card;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T* x = logits + row * card;
    const std::int32_t target = targets[row];
    const bool known = target >= 0 && target < card;
    const A most = team.template max<A>(card, [=](Index i) { return wide(x[i]); });
    const A sum = team.template sum<A>(card, [=](Index i) { return std::exp(wide(x[i]) - most); });
    if (team.leader()) loss[row] = known ? std::log(sum) + most - wide(x[target]) : A(-1);
  }
};

/// word[row] = argmax x, paddings left out; of equals the first.
template <class T>
struct LikeliestWord {
  const T* logits;
  std::int32_t* word;
  Index card;
  std::int32_t padding, end_of_padding;
  MTTT_HD void operator()(Index row) const {
    const T* x = logits + row * card;
    std::int32_t best = -1;
    for (std::int32_t i = 0; i < card; ++i) {
      if (i == padding || i == end_of_padding) continue;
      if (best < 0 || wide(x[i]) > wide(x[best])) best = i;
    }
    word[row] = best;
  }
};

/// Stands where a model has no TTT layers.
struct NoProbe {
  explicit NoProbe(auto&) {}
  void step(const auto&, auto&, const auto&, const auto&) {}
  std::vector<LayerCurves> curves = {};
};

/// The learned start back into the fast weights; attention stays.
template <class Transformer, class B>
void reset_ttt(B& be, const typename Transformer::Params& p, typename Transformer::State& state) {
  if constexpr (Transformer::with_ttt > 0) {
    using Learner = typename TemporalLayer<Transformer::config, true, B>::Learner;
    for (std::size_t i = 0; i < Transformer::with_ttt; ++i)
      Learner::reset(be, p.learning[i].ttt.inner, state.learning[i].ttt, Mask{});
  }
}

}  // namespace detail

template <class Model, class B>
Listened listen(B& be, const typename Model::Params& p, const std::vector<std::int32_t>& codes,
                const ListenOptions& options = {}) {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  using Transformer = typename Model::Transformer;
  constexpr MoshiConfig C = Model::config;
  constexpr Index streams = C.streams(), K = Model::K, dim = Model::dim;
  const Index frames = static_cast<Index>(codes.size()) / streams;
  if (frames < 1 || frames * streams != static_cast<Index>(codes.size()))
    fail("listen", std::to_string(codes.size()) + " codes",
         "whole frames of " + std::to_string(streams) + " streams",
         "choose codes that were made for this model");
  if (options.offline && (options.probe || options.reset_ttt_every > 0))
    fail("listen", "a probe or resets in one pass over the recording", "steps",
         "leave out ListenOptions::offline");
  const auto delayed = [&](Index k, Index t) {  // what the model says at t, and reads at t + 1
    const Index from = t - C.delays.of[k];
    return from < 0 ? C.initial().of(k) : codes[static_cast<std::size_t>(k * frames + from)];
  };

  Listened heard;
  heard.text_loss.assign(static_cast<std::size_t>(frames), std::numeric_limits<double>::quiet_NaN());
  heard.audio_loss = heard.text_loss;
  heard.likeliest_word.assign(heard.text_loss.size(), -1);
  std::vector<double> sum(heard.text_loss.size()), count(heard.text_loss.size());
  Store<typename Transformer::State, B> state(be, 1);
  Transformer::reset(be, p.transformer, *state, Mask{});
  using Probe = std::conditional_t<(Transformer::with_ttt > 0), StreamProbe<Transformer, B>, detail::NoProbe>;
  std::optional<Probe> probe;
  if (options.probe && Transformer::with_ttt > 0) probe.emplace(be);

  for (Index at = 0, n = 0; at < frames; at += n) {
    const auto scope = be.scope();
    n = options.offline ? frames : std::min(options.chunk, frames - at);
    if (const Index every = options.reset_ttt_every; every > 0) {
      if (at > 0 && at % every == 0) detail::reset_ttt<Transformer>(be, p.transformer, *state);
      n = std::min(n, every - at % every);
    }
    std::vector<std::int32_t> read, said;
    for (Index k = 0; k < streams; ++k) {
      for (Index t = at; t < at + n; ++t) {
        read.push_back(t == 0 ? C.initial().of(k) : delayed(k, t - 1));
        said.push_back(delayed(k, t));
      }
    }
    const auto on_device = [&](const std::vector<std::int32_t>& host) {
      const auto there = be.template make<std::int32_t, dyn, dyn, dyn>(1, streams, n);
      be.to_device(host.data(), there.data(), there.size());
      return there;
    };
    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(1, n); };
    const auto x = make(), h = make(), z = make();
    const auto targets = on_device(said);
    Model::embed(be, p, on_device(read), x);
    if (options.offline) {
      typename Transformer::Saved unused;
      Transformer::forward(be, p.transformer, x, h, unused);
    } else if (probe) {
      probe->step(p.transformer, *state, x, h);
    } else {
      Transformer::step(be, p.transformer, *state, x, h, Mask{});
    }
    NoState none;
    Model::OutNorm::step(be, p.out_norm, none, h, z, Mask{});

    const auto text_logits = be.template make<T, dyn, dyn, C.text_card>(1, n);
    const auto logits = be.template make<T, dyn, dyn, C.card>(K, n);
    const auto y = be.template make<T, dyn, dyn, Model::depth>(K, n);
    typename Model::Depth::Saved depth_saved;
    typename Model::Linears::Saved linears_saved;
    Model::TextLinear::step(be, p.text_linear, none, z, text_logits, Mask{});
    Model::Depth::forward(be, p.depformer, z, targets, y, depth_saved);
    Model::Linears::forward(be, p.linears, y, logits, linears_saved);
    const auto loss = be.template make<A, dyn, dyn>(1 + K, n);
    be.rows(n, detail::RowLoss<T, A>{text_logits.data(), targets.data(), loss.data(), C.text_card}, 0,
            4 * C.text_card);
    be.rows(K * n, detail::RowLoss<T, A>{logits.data(), targets.data() + n, loss.data() + n, C.card}, 0,
            4 * C.card);
    const auto words = be.template make<std::int32_t, dyn>(n);
    be.for_each(n, detail::LikeliestWord<T>{text_logits.data(), words.data(), C.text_card,
                                            C.existing_text_padding_id, C.existing_text_end_padding_id});
    const auto likeliest = detail::on_host(be, words);
    for (Index t = 0; t < n; ++t)
      if (const Index frame = at + t - C.delays.of[0]; frame >= 0)
        heard.likeliest_word[static_cast<std::size_t>(frame)] = likeliest[static_cast<std::size_t>(t)];
    const auto host = detail::on_host(be, loss);
    for (Index k = 0; k <= K; ++k) {
      for (Index t = 0; t < n; ++t) {
        const auto value = static_cast<double>(host[static_cast<std::size_t>(k * n + t)]);
        const Index frame = at + t - C.delays.of[k];
        if (value == -1 || frame < 0) continue;
        const auto i = static_cast<std::size_t>(frame);
        if (k == 0) heard.text_loss[i] = value;
        if (k > 0) sum[i] += value, count[i] += 1;
      }
    }
  }
  for (std::size_t i = 0; i < sum.size(); ++i)
    if (count[i] > 0) heard.audio_loss[i] = sum[i] / count[i];
  if (probe) heard.layers = std::move(probe->curves);
  return heard;
}

}  // namespace mttt
