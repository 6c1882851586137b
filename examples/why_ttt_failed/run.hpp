// One variant, from its start to its figures: trained on streams of one length, then asked, as it was trained and
// token by token. Models are compiled in files of their own, beside this one.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "../backend.hpp"
#include "model.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/lm/probes.hpp"
#include "offline_only.hpp"
#include "variants.hpp"

namespace why {

#ifdef MTTT_EXAMPLES_CUDA
using Plain = Device<bf16>;
inline constexpr Index width = 256;  // heads of 64: the TTT kernels take them
#else
using Plain = Device<float>;
inline constexpr Index width = 32;
#endif

/// The facts that the variants change.
struct Facts {
  LayerSet layers = LayerSet::range(1, 3);
  Placement placement = Placement::parallel;
  Index window = 16, mini_batch = 16, inner_layers = 1;
  TttVariant variant = TttVariant::lm;
};

consteval TemporalConfig recaller(Facts f) {
  return {.dim = width,
          .num_heads = 4,
          .num_layers = 4,
          .hidden = gating_hidden(width, 4 * width),
          .context = f.window,
          .ttt_layers = f.layers,
          .placement = f.placement,
          .ttt = {.dim = 0,
                  .num_heads = 0,
                  .mini_batch_size = f.mini_batch,
                  .layers = f.inner_layers,
                  .variant = f.variant}};
}

using Clock = std::chrono::steady_clock;
inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A start that is drawn on the host, the same one on every backend, with the variant's gates and inner rate.
template <TemporalConfig C, class B, class Trainer>
void start(B& be, Trainer& trainer, const Variant& variant) {
  Host host;
  Store<typename Recaller<C, Host>::Params, Host> drawn(host);
  Rng rng(variant.seed);
  Recaller<C, Host>::init(*drawn, rng);
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        if (name.ends_with("base_lr")) init_constant(t, variant.base_lr);
        if (name.ends_with("gating_alpha")) init_constant(t, variant.gate);
      },
      *drawn);
  upload(be, drawn, trainer.weights());
  trainer.weights_changed();
}

/// Trains until the last step, or until the guard of the trainer stops it.
template <class Model, class B, class Trainer>
void train(B& be, const typename Model::Params& params, Trainer& trainer, const Variant& variant,
           const Settings& s, Result& result) {
  const auto begin = Clock::now();
  auto timed = begin;
  try {
    while (trainer.adam.step < trainer.options.max_steps) {
      const auto report = trainer.step([&](std::int64_t i, auto& grad) {
        const auto scope = be.scope();
        const auto first = static_cast<std::uint64_t>(i * s.batch);
        return Model::loss_and_gradient(be, params, draw(be, variant.seed, first, s.batch, s.length), grad);
      });
      result.losses.push_back(report.loss);
      if (report.step == 5) timed = Clock::now();  // memory has been found, kernels are loaded
      if (report.step != 15 || s.seconds <= 0) continue;
      const double fit = s.seconds / (seconds_since(timed) / 10);
      trainer.options.max_steps = std::clamp<std::int64_t>(static_cast<std::int64_t>(fit), 16, s.steps);
      trainer.schedule = OneCycle({trainer.options.max_steps, s.lr});
    }
  } catch (const std::exception& error) {
    result.says = error.what();
  }
  result.seconds = seconds_since(begin);
  result.steps = trainer.adam.step;
  const auto last = std::min<std::ptrdiff_t>(20, std::ssize(result.losses));
  result.loss = 0;
  for (auto loss = result.losses.end() - last; loss != result.losses.end(); ++loss)
    result.loss += *loss / static_cast<double>(last);
}

inline constexpr std::uint64_t unseen = 1u << 30;  // the first stream that no training reaches

/// f(streams) until `sessions` were asked, at most `batch` at a time.
template <class B, class F>
void ask(B& be, Index sessions, Index batch, Index steps, const F& f) {
  for (Index done = 0; done < sessions; done += batch) {
    const auto scope = be.scope();
    f(draw(be, 0, unseen + static_cast<std::uint64_t>(done), std::min(batch, sessions - done), steps));
  }
}

template <class Transformer, class B>
std::vector<InnerLoss> inner_losses_of(B& be, const typename Transformer::Params& params,
                                       const typename Transformer::Saved& saved, std::size_t steps) {
  std::vector<InnerLoss> all;
  for (const LayerCurves& c : inner_curves<Transformer>(be, params, saved)) {
    const InnerLosses sum = summary_of(c);
    const auto by_token = [&](const std::vector<double>& curve) {
      std::vector<double> mean(steps);
      for (std::size_t i = 0; i < curve.size(); ++i)
        mean[i % steps] += curve[i] * static_cast<double>(steps) / static_cast<double>(curve.size());
      return mean;
    };
    all.push_back({c.layer, sum.at_start, sum.before, sum.after, sum.violations, by_token(c.at_start),
                   by_token(c.before), by_token(c.after)});
  }
  return all;
}

/// Figure 5 of the TTT paper, of a forward pass over 32 streams.
template <class Model, class B>
std::vector<InnerLoss> figure5(B& be, const typename Model::Params& params, const Settings& s) {
  std::vector<InnerLoss> all;
  ask(be, 32, 32, s.length, [&](const Streamed& data) {
    typename Model::Saved saved;
    Model::forward(be, params, data.tokens, saved);
    all = inner_losses_of<typename Model::Transformer>(be, params.transformer, saved.transformer,
                                                       static_cast<std::size_t>(s.length));
  });
  return all;
}

/// The weights, as another backend's model has them.
template <class To, class B, class P, class From>
Store<typename To::Params, B> same_weights(B& be, const Store<P, From>& from) {
  Store<typename To::Params, B> to(be);
  be.copy(from.data(), to.data(), from.bytes());
  return to;
}

template <TemporalConfig C, class B, class P, class From>
Accuracy streamed(From& from, const Store<P, From>& weights, const Settings& s, Index sessions) {
  using Model = Recaller<C, B>;
  B be(from.template as<typename B::Scalar>());
  const auto params = same_weights<Model, B>(be, weights);
  Accuracy accuracy;
  ask(be, sessions, sessions, s.length,
      [&](const Streamed& data) { add_streamed<Model>(be, *params, data, accuracy); });
  return accuracy;
}

/// `B`: what the model is trained on. `pads`: streams padded with zeros are asked too.
template <TemporalConfig C, class B = Plain, bool pads = false>
Result run(const Variant& variant, const Settings& s) {
  using Model = Recaller<C, B>;
  using Exact = std::conditional_t<std::same_as<typename B::Scalar, typename B::Accum>, B,
                                   Device<typename B::Accum>>;  // what is trained is in float32
  using Weights = typename Recaller<C, Exact>::Params;
  constexpr bool has_ttt = C.num_ttt_layers() > 0;
  B be;
  Result result;
  result.device = name_of(static_cast<Plain&>(be));
  Store<typename Model::Params, B> params(be);
  std::vector<GroupRule> rules;
  if (has_ttt) rules.push_back(frozen_base_lr());
  Trainer<typename Model::Params, B, Weights> trainer(
      be, params, {.max_steps = s.steps, .lr = s.lr, .adam = {.weight_decay = 0.01}}, rules);
  start<C>(be, trainer, variant);
  train<Model>(be, *params, trainer, variant, s, result);

  ask(be, s.evaluated, s.batch, s.length,
      [&](const Streamed& data) { add_offline<Model>(be, *params, data, result.offline); });
  ask(be, s.evaluated / 4, s.batch / 4, 4 * s.length,
      [&](const Streamed& data) { add_offline<Model>(be, *params, data, result.longer); });
  result.streamed = streamed<C, Plain>(be, params, s, s.evaluated / 2);
  if constexpr (pads) result.padded = streamed<C, PadsWithZeros<B>>(be, params, s, s.evaluated / 8);
  if constexpr (has_ttt) {
    result.inner = figure5<Model>(be, *params, s);
    if constexpr (!std::same_as<B, Plain>) {
      using Causal = Recaller<C, Plain>;
      Plain plain(be.template as<typename B::Scalar>());
      result.inner_stream = figure5<Causal>(plain, *same_weights<Causal, Plain>(plain, params), s);
    }
    for (const auto& gate : gate_openings(be, *params)) result.openings.push_back(gate.opening);
    ask(be, s.batch / 4, s.batch / 4, s.length, [&](const Streamed& data) {
      typename Model::Saved saved;
      Model::forward(be, *params, data.tokens, saved);
      for (const auto& part : ttt_contributions<typename Model::Transformer>(be, params->transformer,
                                                                             saved.transformer, C.ttt_layers))
        result.shares.push_back(part.share);
    });
  }
  return result;
}

}  // namespace why
