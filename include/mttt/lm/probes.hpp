// Probes: what the TTT layers of a model do with the frames that it hears, layer by layer and frame by frame.
//
// Formula: numbers of ttt/probe.hpp, as means over a layer's heads; drift = |W_t - W_0| / |W_0| over all of
//          them; base, branch, gated = |base|, |ttt|, |tanh(alpha) ttt| of a frame, where the layer adds the
//          last to the first (lm/temporal.hpp). Without a gate (instead_of_attention) base is what the layer
//          reads. violations = half of (how often l(W_(t-1)) > l(W_0)) + (how often l(W_t) > l(W_(t-1))): 0
//          where every step helps, near a half where none does, whatever the sizes are.
// Shapes:  codes (B, 1 + n_q, T); curves a number a frame, sessions one after the other.
// Units:   frames; losses a channel of a head.
// Errors:  those of forward and step.
// Not supported: codes that the model has no embedding for: they read as none.
// Source:  none.
#pragma once

#include <cmath>
#include <vector>

#include "mttt/core/store.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/lm/moshi.hpp"
#include "mttt/ttt/probe.hpp"

namespace mttt {

/// What is known of a TTT layer, a number a frame. The last three only where a stream was watched.
struct LayerCurves {
  Index layer = 0;
  std::vector<double> at_start = {}, before = {}, after = {}, drift = {};
  std::vector<double> base = {}, branch = {}, gated = {};
};

/// Means of a layer's curves.
struct InnerLosses {
  Index layer;
  double at_start, before, after, violations, drift;  // drift: that of the last frame
};

inline InnerLosses summary_of(const LayerCurves& c) {
  InnerLosses sum{c.layer, 0, 0, 0, 0, c.drift.empty() ? 0 : c.drift.back()};
  const auto frames = static_cast<double>(c.before.size());
  for (std::size_t i = 0; i < c.before.size(); ++i) {
    sum.at_start += c.at_start[i] / frames;
    sum.before += c.before[i] / frames;
    sum.after += c.after[i] / frames;
    sum.violations += ((c.before[i] > c.at_start[i]) + (c.after[i] > c.before[i])) / (2 * frames);
  }
  return sum;
}

namespace detail {

/// f(layer, place): the layers with TTT, and where each lies among them.
template <class Transformer, class F>
void for_each_ttt_layer(F&& f) {
  std::size_t place = 0;
  for (Index layer = 0; layer < Transformer::config.num_layers; ++layer)
    if (Transformer::config.has_ttt(layer)) f(layer, place++);
}

/// (frames, heads, inner_numbers) to a layer's curves.
template <class A>
void append_numbers(const std::vector<A>& numbers, Index heads, LayerCurves& curves) {
  const auto per_frame = static_cast<std::size_t>(heads * inner_numbers);
  for (std::size_t at = 0; at + per_frame <= numbers.size(); at += per_frame) {
    double sum[inner_numbers] = {};
    for (std::size_t i = 0; i < per_frame; ++i)
      sum[i % inner_numbers] += static_cast<double>(numbers[at + i]);
    const auto n = static_cast<double>(heads);
    curves.at_start.push_back(sum[0] / n);
    curves.before.push_back(sum[1] / n);
    curves.after.push_back(sum[2] / n);
    curves.drift.push_back(std::sqrt(sum[3] / sum[4]));
  }
}

template <class B, class Tens>
auto on_host(B& be, const Tens& t) {
  std::vector<std::remove_const_t<typename Tens::value_type>> values(static_cast<std::size_t>(t.size()));
  be.to_host(t.data(), values.data(), t.size());
  return values;
}

/// norms[row] = |base|, |t|, |tanh(alpha) t|
template <class T, class A>
struct BranchNorms {
  const T *base, *t, *alpha;  // alpha null: no gate
  A* norms;                   // (rows, 3)
  Index width;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *from = base + row * width, *added = t + row * width, *gate = alpha;
    const A whole = team.template sum<A>(width, [=](Index i) { return wide(from[i]) * wide(from[i]); });
    const A part = team.template sum<A>(width, [=](Index i) { return wide(added[i]) * wide(added[i]); });
    const A let_in = team.template sum<A>(width, [=](Index i) {
      const A through = (gate == nullptr ? A(1) : std::tanh(wide(gate[i]))) * wide(added[i]);
      return through * through;
    });
    if (!team.leader()) return;
    norms[3 * row] = std::sqrt(whole);
    norms[3 * row + 1] = std::sqrt(part);
    norms[3 * row + 2] = std::sqrt(let_in);
  }
};

/// Views of the first sessions of what was carried.
template <class S>
S first_sessions(S carried, Index sessions) {
  for_each_tensor(
      [&](std::string_view, auto& t) {
        using Tens = std::remove_cvref_t<decltype(t)>;
        auto extents = t.extents();
        extents[0] = std::min(extents[0], sessions);
        t = Tens(t.data(), extents);
      },
      carried);
  return carried;
}
inline Streams<const std::int32_t> first_sessions(Streams<const std::int32_t> codes, Index sessions) {
  if (codes.data() == nullptr) return codes;
  return {codes.data(), {std::min(codes.extent(0), sessions), codes.extent(1), codes.extent(2)}};
}

}  // namespace detail

/// Of a forward pass of the transformer, whose Saved must still be in the arena. One entry a TTT layer, from
/// the first to the last. Recomputed layers run forward once more, one at a time.
template <class Transformer, class B>
std::vector<LayerCurves> inner_curves(B& be, const typename Transformer::Params& params,
                                      const typename Transformer::Saved& saved, const UnitHooks& hooks = {}) {
  std::vector<LayerCurves> all;
  if constexpr (Transformer::with_ttt > 0) {
    using Learner = typename TemporalLayer<Transformer::config, true, B>::Learner;
    detail::for_each_ttt_layer<Transformer>([&](Index layer, std::size_t place) {
      const auto scope = be.scope();
      hooks.read(layer);
      const auto layer_saved = detail::saved_of_learning<Transformer>(be, params, saved, place);
      const auto& kept = layer_saved.ttt.inner;
      const auto numbers = be.template make<typename B::Accum, dyn, dyn, Learner::H, inner_numbers>(
          kept.inputs.v.extent(0), kept.inputs.v.extent(1));
      probe_forward<Learner>(be, params.learning[place].ttt.inner, kept, numbers);
      all.push_back({layer});
      detail::append_numbers(detail::on_host(be, numbers), Learner::H, all.back());
    });
  }
  return all;
}

/// In training: the inner losses of a micro-batch's first sessions, by a forward pass of the transformer over
/// them. Call it before the micro-batch's own pass; it changes nothing, where carry.to points neither. One
/// entry a TTT layer.
template <class Model, class B>
std::vector<InnerLosses> inner_losses(B& be, const typename Model::Params& params,
                                      Streams<const std::int32_t> codes,
                                      const Carry<typename Model::Carried>& carry = {},
                                      Streams<const std::int32_t> before = {}, Index sessions = 1,
                                      const UnitHooks& hooks = {}) {
  using Transformer = typename Model::Transformer;
  std::vector<InnerLosses> all;
  if constexpr (Transformer::with_ttt > 0) {
    const auto scope = be.scope();
    codes = detail::first_sessions(codes, sessions);
    before = detail::first_sessions(before, sessions);
    const Index batch = codes.extent(0), steps = codes.extent(2);
    typename Model::Carried from;
    Carry<typename Model::Carried> part;
    if (carry.from != nullptr) {
      from = detail::first_sessions(*carry.from, sessions);
      part = {&from, nullptr, {}};
      if (carry.continuing.data() != nullptr) part.continuing = Mask(carry.continuing.data(), {batch});
    }
    const auto inputs = be.template make<std::int32_t, dyn, dyn, dyn>(batch, codes.extent(1), steps);
    const auto x = be.template make<typename B::Scalar, dyn, dyn, Model::dim>(batch, steps),
               y = be.template make<typename B::Scalar, dyn, dyn, Model::dim>(batch, steps);
    delay_codes(be, codes, Model::config.delays, Model::config.initial(), 1, inputs, before);
    hooks.read(0);
    Model::embed(be, params, inputs, x);
    typename Transformer::Saved saved;
    const UnitHooks layers = hooks.from(Model::first_layer);
    Transformer::forward(be, params.transformer, x, y, saved, part, layers);
    for (const auto& curves : inner_curves<Transformer>(be, params.transformer, saved, layers))
      all.push_back(summary_of(curves));
  }
  return all;
}

/// A transformer's steps, watched: each call adds its frames to the curves of all TTT layers. Of one session.
template <class Transformer, class B>
class StreamProbe {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  using Layer = TemporalLayer<Transformer::config, true, B>;
  using Learner = typename Layer::Learner;
  static constexpr Index dim = Transformer::dim;

 public:
  explicit StreamProbe(B& be) : be_(be), before_(be, 1) {
    detail::for_each_ttt_layer<Transformer>([&](Index layer, std::size_t) { curves.push_back({layer}); });
  }

  /// x, y (1, T, dim), any T
  void step(const typename Transformer::Params& params, typename Transformer::State& state,
            Sequence<const T, dim> x, Sequence<T, dim> y) {
    const auto scope = be_.scope();
    const Index frames = x.extent(1);
    for (std::size_t i = 0; i < Transformer::with_ttt; ++i) copy(state.learning[i].ttt, before_->learning[i]);
    const auto make = [&] { return be_.template make<T, dyn, dyn, dim>(1, frames); };
    typename Transformer::Taps taps;
    for (auto& tap : taps) tap = {make(), make(), make()};
    Transformer::step(be_, params, state, x, y, Mask{}, &taps);
    for (std::size_t i = 0; i < Transformer::with_ttt; ++i)
      look(params.learning[i], taps[i], before_->learning[i], curves[i]);
  }

  std::vector<LayerCurves> curves;  // one entry a TTT layer, from the first to the last

 private:
  /// The inner loops of all TTT layers before the frames.
  struct Before {
    std::array<typename Learner::State, Transformer::with_ttt> learning;
    static void visit(auto&& f, auto&&... s) { f("layers", s.learning...); }
  };

  void copy(const typename Learner::State& from, typename Learner::State& to) {
    be_.copy(from.weights.data(), to.weights.data(), to.weights.size());
    be_.copy(from.gradients.data(), to.gradients.data(), to.gradients.size());
    be_.copy(from.position.data(), to.position.data(), to.position.size());
  }
  void look(const typename Layer::Params& p, const typename Layer::Tap& tap, typename Learner::State& before,
            LayerCurves& to) {
    const auto scope = be_.scope();
    const Index frames = tap.x.extent(1);
    const auto numbers = be_.template make<A, dyn, dyn, Learner::H, inner_numbers>(1, frames);
    const auto norms = be_.template make<A, dyn, 3>(frames);
    probe_step<Learner>(be_, p.ttt.inner, before, tap.x, numbers);
    be_.rows(frames,
             detail::BranchNorms<T, A>{tap.base.data(), tap.t.data(), p.ttt.alpha.data(), norms.data(), dim},
             0, 8 * dim);
    detail::append_numbers(detail::on_host(be_, numbers), Learner::H, to);
    const auto host = detail::on_host(be_, norms);
    for (std::size_t i = 0; i < host.size(); i += 3) {
      to.base.push_back(static_cast<double>(host[i]));
      to.branch.push_back(static_cast<double>(host[i + 1]));
      to.gated.push_back(static_cast<double>(host[i + 2]));
    }
  }

  B& be_;
  Store<Before, B> before_;
};

}  // namespace mttt
