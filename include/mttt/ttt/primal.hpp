// The TTT update in its primal form: one token at a time, as a stream hears it.
//
// Formula: of token t; x_l and g_l are input and gradient of layer l of the inner model for its key, taken at
//          the mini-batch's first weights W (ttt/inner_model.hpp):
//
//            G_l <- G_l + lr_t x_l^T g_l                 learn; likewise for the biases
//            o_t  = q_t + LN(net(q_t; W - scale_t G))    answer
//            W   <- W - scale_C G,  G <- 0               after the last token of a mini-batch
//
//          The same numbers as the dual form (ttt/dual.hpp), which is a law. Where the factors of G are kept
//          instead of it (InnerModel::kept), the answer is the dual form's of one query:
//
//            x (W - scale_t G) = x W - scale_t sum over s <= t of (x . x_s) lr_s g_s
//
// Shapes:  q, k, target, o (B, T, H F); fast weights W (B, H, size), G (B, H, gathered); position (B).
// Units:   none; accumulator type throughout. Per token and head W is read, G read and written: 12 bytes a
//          fast weight. With factors 4, and 4 for each of the tokens' numbers.
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
  A *weights, *gradients;        // (B, H, size), (B, H, gathered)
  const std::int64_t* position;  // (B), tokens since the session's start; advanced by the caller
  const std::uint8_t* mask;
  T* out;  // (B, T, H F)
  A eps;

  static constexpr Index scratch(InnerModel model) {
    return detail::InnerPass<A>::scratch(model, 1) + 3 * model.width + 4 * model.widest() + model.kept;
  }

  template <class Team>
  MTTT_HD void operator()(Team team, Index head) const {
    if (!active(mask, head / heads)) return;
    for (Index t = 0; t < steps; ++t) model.kept == 0 ? by_sums(team, head, t) : by_factors(team, head, t);
  }

 private:
  /// Token t of a head: where it lies, and what it is read with.
  struct Token {
    Index at, place;
    A rate;
    const A *gamma, *beta;
    A *W, *G;
  };
  MTTT_HD Token token(Index head, Index t) const {
    const Index b = head / heads, h = head % heads, rate_at = (b * steps + t) * heads + h;
    return {rate_at * model.width,
            static_cast<Index>(position[b] + t) % mini_batch,
            lr[rate_at],
            gamma + h * model.width,
            beta + h * model.width,
            weights + head * model.size(),
            gradients + head * model.gathered()};
  }
  /// Key and query into rows of `both`, which may lie anywhere apart.
  template <class Team>
  MTTT_HD void load(Team team, Index at, A* to_key, A* to_query, A* to_target) const {
    const T *key = k + at, *wanted = target + at, *query = q + at;
    team.for_each(model.width, [=](Index i) {
      to_key[i] = static_cast<A>(key[i]);
      to_target[i] = static_cast<A>(wanted[i]);
      to_query[i] = static_cast<A>(query[i]);
    });
    team.sync();
  }
  /// o = q + LN(z)
  template <class Team>
  MTTT_HD void reply(Team team, const Token& now, A* z) const {
    detail::inner_norm(team, z, now.gamma, now.beta, z, model.width, eps);
    const T* query = q + now.at;
    T* to = out + now.at;
    team.for_each(model.width, [=](Index i) { to[i] = static_cast<T>(static_cast<A>(query[i]) + z[i]); });
  }

  template <class Team>
  MTTT_HD void by_sums(Team team, Index head, Index t) const {
    const Token now = token(head, t);
    detail::InnerPass<A> pass;
    A* target_row = pass.place(model, 1, team.template scratch<A>());
    A* x = target_row + model.width;
    A* z = x + model.widest();
    load(team, now.at, pass.X[0], x, target_row);
    detail::descend(team, model, 1, now.W, target_row, now.gamma, now.beta, eps, pass);
    for (Index l = 0; l < model.layers; ++l) {
      learn_and_answer(team, l, now.rate, scale[now.place], now.W, now.G, pass, x, z);
      team.sync();
      if (l + 1 < model.layers) team.for_each(model.out(l), [=](Index i) { x[i] = GeluTanh::f(z[i]); });
      team.sync();
    }
    reply(team, now, z);
    if (now.place == mini_batch - 1) {
      const A rate = scale[now.place];
      A *W = now.W, *G = now.G;
      team.for_each(model.size(), [=](Index i) {
        W[i] -= rate * G[i];
        G[i] = 0;
      });
    }
    team.sync();
  }

  /// Key and query pass through the first layer's weights together; nothing else reads these.
  template <class Team>
  MTTT_HD void by_factors(Team team, Index head, Index t) const {
    const Token now = token(head, t);
    const Index F = model.width, first = model.out(0);
    detail::InnerPass<A> pass;
    A* target_row = pass.place(model, 1, team.template scratch<A>());
    A *both = target_row + F, *both_z = both + 2 * F, *hidden = both_z + 2 * model.widest();
    A *z = hidden + model.widest(), *p = z + model.widest();
    pass.X[0] = both, pass.Z[0] = both_z;
    load(team, now.at, both, both + F, target_row);
    team.matmul(detail::plane<const A>(both, 2, F), model.weight(now.W, 0), detail::plane(both_z, 2, first));
    team.sync();
    detail::descend(team, model, 1, now.W, target_row, now.gamma, now.beta, eps, pass, true);
    detail::keep_factors(team, model, now.place, now.rate, pass, 0, now.G);
    team.sync();
    for (Index l = 0; l < model.layers; ++l) {
      A *x = l == 0 ? both + F : hidden, *answer = l == 0 ? both_z + first : z;
      if (l > 0) {
        team.matmul(detail::plane<const A>(x, 1, model.in(l)), model.weight(now.W, l),
                    detail::plane(answer, 1, model.out(l)));
        team.sync();
      }
      add_learned(team, l, now, x, p, answer);
      team.sync();
      if (l + 1 < model.layers)
        team.for_each(model.out(l), [=](Index i) { hidden[i] = GeluTanh::f(answer[i]); });
      team.sync();
    }
    reply(team, now, model.layers == 1 ? both_z + first : z);
    if (now.place == mini_batch - 1) {
      detail::add_factors(team, model, mini_batch, -scale[now.place], now.G, now.W);
      team.sync();
      A* G = now.G;
      team.for_each(model.gathered(), [=](Index i) { G[i] = 0; });
    }
    team.sync();
  }

  /// z += b - scale sum over the mini-batch's tokens so far of (x . x_s + 1) lr_s g_s
  template <class Team>
  MTTT_HD void add_learned(Team team, Index l, const Token& now, const A* x, A* p, A* z) const {
    const Index n = now.place + 1, in = model.in(l), width = model.out(l);
    const A* bias = model.bias(now.W, l);
    team.matmul(detail::plane<const A>(x, 1, in),
                detail::plane<const A>(now.G + model.inputs_at(l), n, in).t(), detail::plane(p, 1, n));
    team.for_each(width, [=](Index i) { z[i] += bias[i]; });
    team.sync();
    const A token_scale = scale[now.place];
    team.for_each(n, [=](Index s) { p[s] = -token_scale * (p[s] + A(1)); });
    team.sync();
    team.matmul(detail::plane<const A>(p, 1, n),
                detail::plane<const A>(now.G + model.gradients_at(l), n, width), detail::plane(z, 1, width),
                1, 1);
  }

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
