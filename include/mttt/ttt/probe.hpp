// Probe: what the inner loop of a TTT layer does to its own loss, token by token. Figure 5 of the TTT paper.
//
// Formula: of token t, with W_t as ttt/primal.hpp has it and W_0 the learned start:
//
//            l(W; t) = 1/2 |LN(net(k_t; W)) - target_t|^2 / F
//            numbers = l(W_0; t), l(W_(t-1); t), l(W_t; t), |W_t - W_0|^2, |W_0|^2
//
//          The loss is that which the layer descends, divided by the head's width F, so that sizes are alike
//          in all models. W_(t-1) of a mini-batch's first token is what the mini-batch starts from.
// Shapes:  x (B, T, dim); numbers (B, T, H, inner_numbers).
// Units:   none.
// Errors:  none.
// Not supported: speed: each token passes five times over its head's weights, one token after the other.
// Source:  Sun et al. 2024, "Learning to (Learn at Test Time)", figures 4 and 5.
//
// Nothing of a layer knows of this: the numbers come from what `forward` saved, or from a stream's state and
// the inputs that it reads next. Who does not ask pays nothing.
#pragma once

#include "mttt/ttt/ttt.hpp"

namespace mttt {

inline constexpr Index inner_numbers = 5;

namespace detail {

/// `steps` tokens of one head of one session, in order.
template <class T, class A>
struct TttProbe {
  InnerModel model;
  Index steps, heads, mini_batch;
  const T *k, *target;           // (B, T, H F)
  const A* lr;                   // (B, T, H)
  const A* scale;                // (C)
  const A *gamma, *beta;         // (H, F)
  const A* start;                // (H, size)
  A *weights, *gradients;        // (B, H, size): those before the tokens on entry, those after on return
  A* factors;                    // (B, H, gathered): goes on likewise; null where the state holds the sums
  const std::int64_t* position;  // (B) of the first token; null: 0
  const std::uint8_t* mask;
  A* numbers;  // (B, T, H, inner_numbers)
  A eps;

  static constexpr Index scratch(InnerModel model) {
    return InnerPass<A>::scratch(model, 1) + model.width + 2 * model.widest();
  }

  template <class Team>
  MTTT_HD void operator()(Team team, Index head) const {
    const Index b = head / heads, h = head % heads, F = model.width, size = model.size();
    if (!active(mask, b)) return;
    const A *W0 = start + h * size, *gamma_h = gamma + h * F, *beta_h = beta + h * F;
    A *W = weights + head * size, *G = gradients + head * size;
    A* kept = factors == nullptr ? nullptr : factors + head * model.gathered();
    InnerPass<A> pass;
    A* wanted = pass.place(model, 1, team.template scratch<A>());
    const A start_square = team.template sum<A>(size, [=](Index i) { return W0[i] * W0[i]; });
    for (Index t = 0; t < steps; ++t) {
      const Index rate_at = (b * steps + t) * heads + h;
      const Index place = ((position == nullptr ? 0 : static_cast<Index>(position[b])) + t) % mini_batch;
      const T *key = k + rate_at * F, *goal = target + rate_at * F;
      A* first = pass.X[0];
      team.for_each(F, [=](Index i) {
        first[i] = static_cast<A>(key[i]);
        wanted[i] = static_cast<A>(goal[i]);
      });
      team.sync();
      const A at_start = loss(team, first, W0, W0, A(0), wanted, gamma_h, beta_h);
      const A before = loss(team, first, W, G, place == 0 ? A(0) : scale[place - 1], wanted, gamma_h, beta_h);
      descend(team, model, 1, W, wanted, gamma_h, beta_h, eps, pass);
      learn(team, lr[rate_at], G, pass);
      if (kept != nullptr) keep_factors(team, model, place, lr[rate_at], pass, 0, kept);
      team.sync();
      const A rate = scale[place];
      const A after = loss(team, first, W, G, rate, wanted, gamma_h, beta_h);
      const A moved = team.template sum<A>(size, [=](Index i) {
        const A by = W[i] - rate * G[i] - W0[i];
        return by * by;
      });
      if (team.leader()) {
        const A found[] = {at_start, before, after, moved, start_square};
        for (Index i = 0; i < inner_numbers; ++i) numbers[rate_at * inner_numbers + i] = found[i];
      }
      team.sync();
      if (place == mini_batch - 1) {
        team.for_each(size, [=](Index i) {
          W[i] -= rate * G[i];
          G[i] = 0;
        });
        if (kept != nullptr) team.for_each(model.gathered(), [=](Index i) { kept[i] = 0; });
      }
      team.sync();
    }
  }

 private:
  /// l(W - rate G) of the key; x and z in scratch behind `wanted`.
  template <class Team>
  MTTT_HD A loss(Team team, const A* key, const A* W, const A* G, A rate, A* wanted, const A* gamma_h,
                 const A* beta_h) const {
    const Index F = model.width;
    A *hidden = wanted + F, *z = hidden + model.widest();
    for (Index l = 0; l < model.layers; ++l) {
      const Index in = model.in(l), n = model.out(l);
      const A *bias = model.bias(W, l), *bias_gradient = model.bias(G, l);
      team.for_each(n, [=](Index j) { z[j] = bias[j] - rate * bias_gradient[j]; });
      const A* x = l == 0 ? key : hidden;
      for (Index i = 0; i < in; ++i) {
        const A *w = W + model.weight_at(l) + i * n, *g = G + model.weight_at(l) + i * n;
        const A input = x[i];
        team.for_each(n, [=](Index j) { z[j] += input * (w[j] - rate * g[j]); });
      }
      team.sync();
      if (l + 1 < model.layers) team.for_each(n, [=](Index i) { hidden[i] = GeluTanh::f(z[i]); });
      team.sync();
    }
    const auto m = moments(team, z, F, eps);
    const A total = team.template sum<A>(F, [=](Index i) {
      const A error = gamma_h[i] * (z[i] - m.mean) * m.rstd + beta_h[i] - wanted[i];
      return error * error;
    });
    team.sync();  // the next loss writes z
    return total / static_cast<A>(2 * F);
  }

  /// G += rate dl / dW
  template <class Team>
  MTTT_HD void learn(Team team, A rate, A* G, const InnerPass<A>& pass) const {
    for (Index l = 0; l < model.layers; ++l) {
      const Index in = model.in(l), n = model.out(l);
      const A *g = pass.G[l], *x = pass.X[l];
      A* bias = model.bias(G, l);
      team.for_each(n, [=](Index j) { bias[j] += rate * g[j]; });
      for (Index i = 0; i < in; ++i) {
        A* sum = G + model.weight_at(l) + i * n;
        const A learned = rate * x[i];
        team.for_each(n, [=](Index j) { sum[j] += learned * g[j]; });
      }
    }
  }
};

/// gradients = the sums that the factors of a running mini-batch stand for.
template <class A>
struct SumFactors {
  InnerModel model;
  Index heads;
  const A* factors;              // (B, H, gathered)
  const std::int64_t* position;  // (B); null: nothing has been gathered
  A* gradients;                  // (B, H, size)
  template <class Team>
  MTTT_HD void operator()(Team team, Index head) const {
    A* G = gradients + head * model.size();
    team.for_each(model.size(), [=](Index i) { G[i] = 0; });
    team.sync();
    const Index n = position == nullptr ? 0 : static_cast<Index>(position[head / heads]) % model.kept;
    if (n > 0) add_factors(team, model, n, A(1), factors + head * model.gathered(), G);
  }
};

template <class Learner, class B, class Inputs>
void probe_inputs(B& be, const typename Learner::Params& p, const Inputs& inputs,
                  typename Learner::State& state, const std::int64_t* position,
                  Tensor<typename B::Accum, dyn, dyn, Learner::H, inner_numbers> numbers, Mask mask) {
  using T = typename B::Scalar;
  using A = typename B::Accum;
  const auto scope = be.scope();
  const Index batch = inputs.v.extent(0), steps = inputs.v.extent(1);
  typename Learner::State start{be.template make<A, dyn, Learner::H, Learner::size>(1),
                                be.template make<A, dyn, Learner::H, Learner::gathered>(1),
                                be.template make<std::int64_t, dyn>(1)};
  Learner::reset(be, p, start, Mask{});
  A *sums = state.gradients.data(), *factors = nullptr;
  if constexpr (!Learner::sums) {
    factors = sums;
    sums = be.template make<A, dyn, Learner::H, Learner::size>(batch).data();
    be.rows(batch * Learner::H, SumFactors<A>{Learner::model, Learner::H, factors, position, sums}, 0,
            Learner::model.kept * Learner::size);
  }
  be.rows(batch * Learner::H,
          TttProbe<T, A>{Learner::model, steps, Learner::H, Learner::config.mini_batch_size, inputs.k.data(),
                         inputs.target.data(), inputs.lr.data(), inputs.scale.data(), inputs.gamma.data(),
                         inputs.beta.data(), start.weights.data(), state.weights.data(), sums, factors,
                         position, mask.data(), numbers.data(), static_cast<A>(Learner::config.inner_eps)},
          TttProbe<T, A>::scratch(Learner::model) * static_cast<Index>(sizeof(A)),
          steps * Learner::size * 16);
}

}  // namespace detail

/// Of tokens x that a stream reads next. `state` is a copy of the stream's state before them: it goes on as
/// the stream's own does when it steps over x. Rows of inactive sessions are left as they are.
template <class Learner, class B>
void probe_step(B& be, const typename Learner::Params& p, typename Learner::State& state,
                Sequence<const typename B::Scalar, Learner::in> x,
                Tensor<typename B::Accum, dyn, dyn, Learner::H, inner_numbers> numbers, Mask mask = {}) {
  const auto scope = be.scope();
  const auto inputs = Learner::inputs_of(be, p, x, state.position.data());
  detail::probe_inputs<Learner>(be, p, inputs, state, state.position.data(), numbers, mask);
  advance(be, state.position.data(), x.extent(0), x.extent(1), mask);
}

/// Of all tokens of a forward pass, whose Saved must still be in the arena.
template <class Learner, class B>
void probe_forward(B& be, const typename Learner::Params& p, const typename Learner::Saved& saved,
                   Tensor<typename B::Accum, dyn, dyn, Learner::H, inner_numbers> numbers) {
  using A = typename B::Accum;
  const auto scope = be.scope();
  const Index batch = numbers.extent(0);
  typename Learner::State state{be.template make<A, dyn, Learner::H, Learner::size>(batch),
                                be.template make<A, dyn, Learner::H, Learner::gathered>(batch),
                                {}};
  be.copy(saved.checkpoints.data(), state.weights.data(), state.weights.size());  // where the segment started
  be.fill(state.gradients.data(), state.gradients.size(), A(0));
  detail::probe_inputs<Learner>(be, p, saved.inputs, state, nullptr, numbers, Mask{});
}

}  // namespace mttt
