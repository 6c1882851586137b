// The TTT update in its primal form: one token at a time, as a stream hears it.
//
// Formula: of token t; x_l and g_l are input and gradient of layer l of the inner model for its key, taken at
//          the mini-batch's first weights W (ttt/inner_model.hpp):
//
//            G_l <- G_l + lr_t x_l^T g_l                 learn; likewise for the biases
//            o_t  = q_t + LN(net(q_t; W - scale_t G))    answer
//            W   <- W - scale_C G,  G <- 0               after the last token of a mini-batch
//
//          The same numbers as the dual form (ttt/dual.hpp), which is a law.
// Shapes:  q, k, target, o (B, T, H F); fast weights W and accumulators G (B, H, size); position (B).
// Units:   none; accumulator type throughout. Per token and head G is read and written once.
// Errors:  none.
// Not supported: backward; training uses the dual form.
// Source:  ttt-lm-pytorch ttt.py: TTTLinear.ttt (primal branch), TTTCache.
#pragma once

#include "mttt/ttt/inner_model.hpp"

namespace mttt {

/// `steps` tokens of one head of one session, in order.
template <class T, class A>
struct TttStep {
  InnerModel model;
  Index steps, heads, mini_batch;
  const T *q, *k, *target;       // (B, T, H F)
  const A* lr;                   // (B, T, H)
  const A* scale;                // (C)
  const A *gamma, *beta;         // (H, F)
  A *weights, *gradients;        // (B, H, size)
  const std::int64_t* position;  // (B), tokens since the session's start; advanced by the caller
  const std::uint8_t* mask;
  T* out;  // (B, T, H F)
  A eps;

  static constexpr Index scratch(InnerModel model) {
    return detail::InnerPass<A>::scratch(model, 1) + model.width + 2 * model.widest();
  }

  template <class Team>
  MTTT_HD void operator()(Team team, Index head) const {
    const Index b = head / heads, F = model.width;
    if (!active(mask, b)) return;
    const A* gamma_h = gamma + head % heads * F;
    const A* beta_h = beta + head % heads * F;
    A *W = weights + head * model.size(), *G = gradients + head * model.size();
    detail::InnerPass<A> pass;
    A* target_row = pass.place(model, 1, team.template scratch<A>());
    A* x = target_row + F;
    A* z = x + model.widest();
    for (Index t = 0; t < steps; ++t) {
      const Index rate_at = (b * steps + t) * heads + head % heads, at = rate_at * F;
      const Index place = static_cast<Index>(position[b] + t) % mini_batch;
      const T *key = k + at, *wanted = target + at, *query = q + at;
      A* first = pass.X[0];
      team.for_each(F, [=](Index i) {
        first[i] = static_cast<A>(key[i]);
        target_row[i] = static_cast<A>(wanted[i]);
        x[i] = static_cast<A>(query[i]);
      });
      team.sync();
      detail::descend(team, model, 1, W, target_row, gamma_h, beta_h, eps, pass);
      for (Index l = 0; l < model.layers; ++l) {
        learn_and_answer(team, l, lr[rate_at], scale[place], W, G, pass, x, z);
        team.sync();
        if (l + 1 < model.layers) team.for_each(model.out(l), [=](Index i) { x[i] = GeluTanh::f(z[i]); });
        team.sync();
      }
      detail::inner_norm(team, z, gamma_h, beta_h, z, F, eps);
      T* reply = out + at;
      team.for_each(F, [=](Index i) { reply[i] = static_cast<T>(static_cast<A>(query[i]) + z[i]); });
      if (place == mini_batch - 1) {
        const A rate = scale[place];
        team.for_each(model.size(), [=](Index i) {
          W[i] -= rate * G[i];
          G[i] = 0;
        });
      }
      team.sync();
    }
  }

 private:
  /// Layer l: G += rate key^T g, in one pass with z = x (W - scale G) + (b - scale G_b).
  template <class Team>
  MTTT_HD void learn_and_answer(Team team, Index l, A rate, A token_scale, const A* W, A* G,
                                const detail::InnerPass<A>& pass, const A* x, A* z) const {
    const Index in = model.in(l), n = model.out(l);
    const A *g = pass.G[l], *key = pass.X[l];
    const A* bias = model.bias(W, l);
    A* bias_gradient = model.bias(G, l);
    team.for_each(n, [=](Index j) {
      bias_gradient[j] += rate * g[j];
      z[j] = bias[j] - token_scale * bias_gradient[j];
    });
    for (Index i = 0; i < in; ++i) {
      const A* w = W + model.weight_at(l) + i * n;
      A* sum = G + model.weight_at(l) + i * n;
      const A learned = rate * key[i], asked = x[i];
      team.for_each(n, [=](Index j) {
        sum[j] += learned * g[j];
        z[j] += asked * (w[j] - token_scale * sum[j]);
      });
    }
  }
};

}  // namespace mttt
