// Gates: reading and forcing them, and measuring what TTT contributes to the residual stream.
//
// Formula: share of layer l = |tanh(alpha) ttt(x)| / |base + tanh(alpha) ttt(x)|, norms over all frames and
//          channels; opening = mean over the channels of |tanh(alpha)|.
//          Pulled gates: the loss gains weight / 2 times the sum over layers of the mean over channels of
//          (alpha - alpha_0)^2.
// Shapes:  Temporal::Saved of a forward pass over (B, T, dim).
// Units:   none.
// Errors:  forcing gates where the layers given have none; gates that have collapsed.
// Not supported: instead_of_attention, which has no gate: its layers are not listed.
// Source:  ttt-video-dit SSMGating.
#pragma once

#include <charconv>
#include <cmath>
#include <optional>
#include <vector>

#include "mttt/core/visit.hpp"
#include "mttt/lm/temporal.hpp"

namespace mttt {

namespace detail {
template <class T>
double gate_opening(const std::vector<T>& alpha) {
  double opening = 0;
  for (const T a : alpha) opening += std::abs(std::tanh(static_cast<double>(a)));
  return opening / static_cast<double>(alpha.size());
}

/// What the forward pass kept of its TTT layer number `place`; a recomputed layer runs forward once more.
template <class Transformer, class B>
auto saved_of_learning(B& be, const typename Transformer::Params& params,
                       const typename Transformer::Saved& saved, std::size_t place) {
  if constexpr (requires { Transformer::Learning::recomputes; }) {
    return Transformer::Learning::again(be, params.learning[place], saved.learning[place]);
  } else {
    return saved.learning[place];
  }
}
}  // namespace detail

struct TttContribution {
  Index layer;
  double opening, share;
};

/// One entry a gated TTT layer, from the first to the last. Reads the arena of the forward pass, which must
/// not have been released. Recomputed layers run forward once more, one at a time.
template <class Transformer, class B>
std::vector<TttContribution> ttt_contributions(B& be, const typename Transformer::Params& params,
                                               const typename Transformer::Saved& saved, LayerSet layers) {
  using T = typename B::Scalar;
  const auto host = [&](const auto& t) {
    std::vector<T> values(static_cast<std::size_t>(t.size()));
    be.to_host(t.data(), values.data(), t.size());
    return values;
  };
  std::vector<TttContribution> all;
  std::size_t place = 0;
  for (Index layer = 0; layer < 64 && place < params.learning.size(); ++layer) {
    if (!layers.contains(layer)) continue;
    const auto scope = be.scope();
    const auto layer_saved = detail::saved_of_learning<Transformer>(be, params, saved, place);
    const auto& kept = layer_saved.ttt;
    const auto& gate = params.learning[place++].ttt.alpha;
    if (kept.t.size() == 0) continue;  // instead_of_attention: no gate, and no memory for one
    const auto alpha = host(gate), t = host(kept.t), base = host(kept.base);
    double part = 0, whole = 0;
    for (std::size_t i = 0; i < t.size(); ++i) {
      const double added =
          std::tanh(static_cast<double>(alpha[i % alpha.size()])) * static_cast<double>(t[i]);
      const double sum = static_cast<double>(base[i]) + added;
      part += added * added;
      whole += sum * sum;
    }
    all.push_back({layer, detail::gate_opening(alpha), std::sqrt(part / whole)});
  }
  return all;
}

namespace detail {
/// The number behind "layers." in a tensor's name; 0 where there is none.
inline Index layer_in(std::string_view name) {
  const auto at = name.find("layers.");
  Index layer = 0;
  if (at != name.npos) std::from_chars(name.data() + at + 7, name.data() + name.size(), layer);
  return layer;
}
}  // namespace detail

struct GateState {
  Index layer;
  double opening;
};

/// How far the gates of all layers are open, from the first to the last.
template <class B, class P>
std::vector<GateState> gate_openings(B& be, const P& params) {
  std::vector<GateState> all;
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if (!name.ends_with("gating_alpha") || left_out(t)) return;
        using T = std::remove_const_t<typename std::remove_cvref_t<decltype(t)>::value_type>;
        std::vector<T> alpha(static_cast<std::size_t>(t.size()));
        be.to_host(t.data(), alpha.data(), t.size());
        all.push_back({detail::layer_in(name), detail::gate_opening(alpha)});
      },
      params);
  return all;
}

/// Refuses to go on where training has closed every gate to under `share` of where it started: what the
/// layers give is then nothing that the model wants, and hours more would not tell why.
inline void check_gates(const std::vector<GateState>& start, const std::vector<GateState>& now,
                        double share = 0.01) {
  double most = 0;
  std::string found;
  for (std::size_t i = 0; i < now.size(); ++i) {
    if (!(start[i].opening > 0)) return;
    most = std::max(most, now[i].opening / start[i].opening);
    if (i < 4) found += (i == 0 ? "" : ", ") + std::to_string(now[i].opening);
  }
  if (now.empty() || !(most < share)) return;
  fail("the gates of " + std::to_string(now.size()) + " TTT layers",
       "mean |tanh(alpha)| of " + found + (now.size() > 4 ? ", ..." : "") + ", each under " +
           std::to_string(100 * share) + " % of its start",
       "gates that training keeps open",
       "lower the gates' learning rate or the inner one, or keep the gates fixed, and look at the inner "
       "losses");
}

namespace detail {
template <class T, class G>
struct PullGate {
  const T* alpha;
  G* grad;
  G start, rate;
  MTTT_HD void operator()(Index i) const { grad[i] += rate * (static_cast<G>(alpha[i]) - start); }
};
}  // namespace detail

/// Adds the gradient of the pull towards `start` to that of the gates of these layers that train. A pull in Adam's steps is
/// in proportion to the other gradients: where the loss says little about a gate, it goes back.
template <class B, class P, class G>
void pull_gates(B& be, const P& params, G& grad, double start, double weight,
                LayerSet layers = LayerSet::range(0, 63)) {
  for_each_tensor(
      [&](std::string_view name, const auto& alpha, auto& g) {
        if (!name.ends_with("gating_alpha") || left_out(g) || !layers.contains(detail::layer_in(name)))
          return;
        using A = typename std::remove_cvref_t<decltype(g)>::value_type;
        using T = std::remove_const_t<typename std::remove_cvref_t<decltype(alpha)>::value_type>;
        be.for_each(g.size(), detail::PullGate<T, A>{alpha.data(), g.data(), static_cast<A>(start),
                                                     static_cast<A>(weight / static_cast<double>(g.size()))});
      },
      params, grad);
}

/// Sets alpha of the gates of the given layers; 0 in all gives the model of the base weights, to the bit.
template <class B, class P>
void force_gating_alpha(B& be, P& params, double alpha, LayerSet layers = LayerSet::range(0, 63)) {
  if (!std::isfinite(alpha)) fail("force_gating_alpha", std::to_string(alpha), "a finite number");
  int gates = 0;
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        using T = typename std::remove_cvref_t<decltype(t)>::value_type;
        if constexpr (std::is_same_v<T, typename B::Scalar>) {  // the bytes of quantised weights are no gates
          if (!name.ends_with("gating_alpha") || !layers.contains(detail::layer_in(name))) return;
          if (!left_out(t)) be.fill(t.data(), t.size(), static_cast<T>(alpha));
          ++gates;
        }
      },
      params);
  if (gates == 0) {
    fail("force_gating_alpha", "no gate in the layers given", "at least one TTT layer with a gate",
         "choose a checkpoint that has TTT layers, or other layers");
  }
}

/// Narrows the attention of all sessions of a State, or of one, to fewer frames. Right after a reset, which
/// widens it again.
template <class B, class S>
void set_context(B& be, S& state, std::int64_t frames, std::optional<Index> session = {}) {
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        if constexpr (std::is_same_v<typename std::remove_cvref_t<decltype(t)>::value_type, std::int64_t>) {
          if (name.ends_with("self_attn.context"))
            be.fill(t.data() + session.value_or(0), session ? Index{1} : t.size(), frames);
        }
      },
      state);
}

}  // namespace mttt
