// AdamW over all parameters of a block in one pass.
//
// Formula: m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//          p -= lr (wd p + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)),  t = 1, 2, ...
// Shapes:  weights, gradient and moments are of one type, that of sums (float32 on a backend that stores
//          bf16); the rounded weights, where the model reads such, are written in the same pass. The step
//          counter is part of the state.
// Units:   none. On a GPU 28 bytes a parameter travel, with weights in bf16 beside them 30.
// Errors:  groups of another model.
// Not supported: AMSGrad; moments in a shorter type.
// Source:  Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2; torch.optim.AdamW.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "mttt/backend/backend.hpp"
#include "mttt/core/store.hpp"
#include "mttt/train/chunks.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

/// The defaults are those of moshi-finetune.
struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

namespace detail {

template <class A>
struct AdamWRule {
  A scale, beta1, beta2, rate, correction2, eps, decay;  // rate = lr / (1 - b1^t), decay = 1 - lr wd
  MTTT_HD void operator()(A grad, A& param, A& m, A& v) const {
    const A g = scale * grad;
    const A first = beta1 * m + (A(1) - beta1) * g;
    const A second = beta2 * v + (A(1) - beta2) * g * g;
    m = first;
    v = second;
    param = decay * param - rate * first / (std::sqrt(second / correction2) + eps);
  }
};

template <class P, class A>
struct AdamWChunks {
  const Chunk* chunks;
  const ParamGroup* groups;
  const A* grad;
  A *param, *m, *v;
  P* rounded;         // or null: then `param` is what the model reads
  AdamWRule<A> rule;  // rate and decay are those of each group
  double learning_rate, correction1;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Chunk c = chunks[i];
    const ParamGroup group = groups[c.tensor];
    if (group.frozen) return;
    const double lr = learning_rate * group.learning_rate;
    AdamWRule<A> step = rule;
    step.rate = static_cast<A>(lr / correction1);
    step.decay = static_cast<A>(1 - lr * group.weight_decay);
    const A* g = grad + c.at;
    A *p = param + (rounded == nullptr ? c.read_at : c.at), *first = m + c.at, *second = v + c.at;
    P* copy = rounded == nullptr ? nullptr : rounded + c.read_at;
    constexpr Index width = 16 / sizeof(A);
    for_each_lanes<width>(team, c.length, [=](Index at, auto neighbours) {
      constexpr Index W = decltype(neighbours)::value;
      const auto gs = load_lanes<W>(g + at);
      auto ps = load_lanes<W>(p + at), ms = load_lanes<W>(first + at), vs = load_lanes<W>(second + at);
      Lanes<P, W> rounded_ps;
      for (Index k = 0; k < W; ++k) {
        step(gs.of[k], ps.of[k], ms.of[k], vs.of[k]);
        rounded_ps.of[k] = static_cast<P>(ps.of[k]);
      }
      store_lanes(p + at, ps);
      store_lanes(first + at, ms);
      store_lanes(second + at, vs);
      if (copy != nullptr) store_lanes(copy + at, rounded_ps);
    });
  }
};

}  // namespace detail

/// `M`: Params in the type to compute in.
template <class M, class B>
struct AdamW {
  Store<M, B> m, v;
  std::int64_t step = 0;

  /// `held`: the tensors that have moments, see Store.
  explicit AdamW(B& be, const std::vector<bool>& held = {}) : m(be, 1, held), v(be, 1, held) {}
  /// Those of one of several ranks: a window in bytes.
  AdamW(B& be, const std::vector<bool>& held, Index from, Index to)
      : m(be, held, from, to), v(be, held, from, to) {}

  /// One step along grad_scale * grad, which clipping and accumulation use instead of a pass of their own.
  /// `params` receives the rounded weights; it is `weights` itself where the model reads those. `chosen`: the
  /// chunks that change; none: all.
  template <class P>
  void update(B& be, ChunkTable<P, B, M>& table, Store<M, B>& weights, Store<P, B>& params,
              const Store<M, B>& grad, const std::vector<ParamGroup>& groups, const AdamWOptions& options,
              double learning_rate, double grad_scale = 1, std::optional<RankPart> chosen = {}) {
    using A = typename B::Accum;
    using T = typename B::Scalar;
    const ParamGroup* device_groups = table.groups(be, groups, "AdamW");
    ++step;
    const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(step));
    const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(step));
    const detail::AdamWRule<A> rule{static_cast<A>(grad_scale),
                                    static_cast<A>(options.beta1),
                                    static_cast<A>(options.beta2),
                                    0,
                                    static_cast<A>(correction2),
                                    static_cast<A>(options.eps),
                                    0};
    T* rounded = nullptr;
    if constexpr (!std::same_as<P, M>) rounded = params.template flat<T>().data();
    const RankPart part = chosen.value_or(table.all());
    be.rows(
        part.count,
        detail::AdamWChunks<T, A>{table.chunks() + part.from, device_groups, grad.template flat<A>().data(),
                                  weights.template flat<A>().data(), m.template flat<A>().data(),
                                  v.template flat<A>().data(), rounded, rule, learning_rate, correction1},
        0, 8 * table.length);
  }
};

}  // namespace mttt
