// The TTT update in its dual form: a whole mini-batch by matrix products, forward and backward.
//
// Formula: of one mini-batch; X_l, G_l are inputs and gradients of layer l of the inner model for all keys,
//          taken at the mini-batch's first weights W (ttt/inner_model.hpp). Each query passes through the
//          weights that have learned up to it, without these being formed:
//
//            Xbar_1     = Q,  Xbar_(l+1) = gelu_tanh(Zbar_l)
//            Zbar_l     = Xbar_l W_l + b_l + P_l G_l
//            P_l[t, s]  = -scale_t lr_s (Xbar_l[t] . X_l[s] + 1)  for s <= t,  0 for s > t
//            O          = Q + LN(Zbar_L)
//            W_l       <- W_l - scale_C sum over s of lr_s X_l[s]^T G_l[s]     if the mini-batch is whole
//            b_l       <- b_l - scale_C sum over s of lr_s G_l[s]
//
//          The 1 in P is the bias's share. P is zero above its diagonal, always: token t sees s <= t.
// Shapes:  q, k, target, o (B, T, H F); lr (B, T, H); scale (C); fast weights (B, H, size) as in
//          ttt/inner_model.hpp. The last mini-batch may be shorter than C.
// Units:   none; accumulator type throughout.
// Errors:  none.
// Not supported: a bidirectional mini-batch. It would need the future, so it could never be streamed.
// Source:  ttt-lm-pytorch ttt.py: TTTLinear.ttt, TTTMLP.ttt (`use_dual_form`); the backward is derived here.
#pragma once

#include <cstdint>

#include "mttt/ttt/inner_model.hpp"

namespace mttt {

/// What forward and backward of a scan read. One team works on one head of one session: `head` counts B x H.
template <class T, class A>
struct TttScan {
  InnerModel model;
  Index batch, steps, heads, mini_batch;
  const T *q, *k, *target;  // (B, T, H F)
  const A* lr;              // (B, T, H)
  const A* scale;           // (C)
  const A *gamma, *beta;    // (H, F)
  A* checkpoints;           // (groups, B, H, size): the weights that each group of mini-batches started from
  A eps;
  Index group = 1;  // mini-batches between two checkpoints; the scans of this file know groups of one

  MTTT_HD Index mini_batches() const { return (steps + mini_batch - 1) / mini_batch; }
  MTTT_HD Index tokens(Index m) const {
    const Index left = steps - m * mini_batch;
    return left < mini_batch ? left : mini_batch;
  }
  MTTT_HD A* checkpoint(Index m, Index head) const {
    return checkpoints + (m * batch * heads + head) * model.size();
  }

  /// Offset of token (m, r) of this head in a (B, T, H F) tensor, and in a (B, T, H) one.
  MTTT_HD Index row_at(Index head, Index m, Index r) const { return lr_at(head, m, r) * model.width; }
  MTTT_HD Index lr_at(Index head, Index m, Index r) const {
    return ((head / heads) * steps + m * mini_batch + r) * heads + head % heads;
  }

  /// Copies n rows of this head into a contiguous plane.
  template <class Team>
  MTTT_HD void load(Team team, const T* from, Index head, Index m, Index n, A* to) const {
    const Index F = model.width;
    for (Index r = 0; r < n; ++r) {
      const T* in = from + row_at(head, m, r);
      A* out = to + r * F;
      team.for_each(F, [=](Index i) { out[i] = static_cast<A>(in[i]); });
    }
  }
  template <class Team>
  MTTT_HD void store(Team team, const A* from, Index head, Index m, Index n, T* to) const {
    const Index F = model.width;
    for (Index r = 0; r < n; ++r) {
      const A* in = from + r * F;
      T* out = to + row_at(head, m, r);
      team.for_each(F, [=](Index i) { out[i] = static_cast<T>(in[i]); });
    }
  }
};

namespace detail {

/// Rows of a block of what is zero above its diagonal: a team on a CPU leaves out blocks that are all zero.
template <class Team>
MTTT_HD constexpr Index causal_block(Index n) {
  if constexpr (requires { Team::causal_block; }) {
    return Team::causal_block;
  } else {
    return n;
  }
}

/// p = x y^T, (n, n), on and below the diagonal; what comes out above it is nobody's.
template <class A, class Team>
MTTT_HD void causal_products(Team team, Index n, Index depth, const A* x, const A* y, A* p) {
  const Index block = causal_block<Team>(n);
  for (Index s = 0; s < n; s += block) {
    const Index some = n - s < block ? n - s : block;
    team.matmul(plane<const A>(x + s * depth, n - s, depth), plane<const A>(y + s * depth, some, depth).t(),
                Matrix<A>{p + s * n + s, n - s, some, n});
  }
}

/// z += p g with p (n, n) zero above its diagonal, z and g (n, width)
template <class A, class Team>
MTTT_HD void add_causal(Team team, Index n, Index width, const A* p, const A* g, A* z) {
  const Index block = causal_block<Team>(n);
  for (Index t = 0; t < n; t += block) {
    const Index some = n - t < block ? n - t : block;
    team.matmul(Matrix<const A>{p + t * n, some, t + some, n}, plane<const A>(g, t + some, width),
                plane(z + t * width, some, width), 1, 1);
  }
}

/// z += p^T g
template <class A, class Team>
MTTT_HD void add_causal_transposed(Team team, Index n, Index width, const A* p, const A* g, A* z) {
  const Index block = causal_block<Team>(n);
  for (Index s = 0; s < n; s += block) {
    const Index some = n - s < block ? n - s : block;
    team.matmul(Matrix<const A>{p + s * n + s, n - s, some, n}.t(),
                plane<const A>(g + s * width, n - s, width), plane(z + s * width, some, width), 1, 1);
  }
}

/// The queries' pass through the updated weights: planes of all layers, and the causal products between them.
template <class A>
struct QueryPass {
  A* X[max_inner_layers];     // Xbar (n, in)
  A* Z[max_inner_layers];     // Zbar (n, out)
  A* dots[max_inner_layers];  // Xbar X^T (n, n), on and below the diagonal
  A* P[max_inner_layers];     // (n, n), zero above the diagonal
  A* rates;  // lr (n), which elsewhere lie a stride apart: gathering them took a quarter of the scan

  MTTT_HD static constexpr Index scratch(InnerModel model, Index n) {
    Index total = n;
    for (Index l = 0; l < model.layers; ++l) total += n * (model.in(l) + model.out(l) + 2 * n);
    return total;
  }
  MTTT_HD A* place(InnerModel model, Index n, A* memory) {
    for (Index l = 0; l < model.layers; ++l) {
      X[l] = memory;
      Z[l] = X[l] + n * model.in(l);
      dots[l] = Z[l] + n * model.out(l);
      P[l] = dots[l] + n * n;
      memory = P[l] + n * n;
    }
    rates = memory;
    return rates + n;
  }
};

/// Zbar = Xbar W + b + P G, layer by layer: the queries in query.X[0] through W and what was learned since.
template <class A, class T, class Team>
MTTT_HD void answer(Team team, const TttScan<T, A>& scan, Index head, Index m, Index n, const A* weights,
                    const InnerPass<A>& pass, QueryPass<A>& query) {
  const InnerModel model = scan.model;
  const A *lr = scan.lr + scan.lr_at(head, m, 0), *rates = query.rates;
  A* to_rates = query.rates;
  const Index stride = scan.heads;
  team.for_each(n, [=](Index s) { to_rates[s] = lr[s * stride]; });
  for (Index l = 0; l < model.layers; ++l) {
    const Matrix<A> X = plane(query.X[l], n, model.in(l)), Z = plane(query.Z[l], n, model.out(l));
    team.matmul(X, model.weight(weights, l), Z);
    causal_products<A>(team, n, model.in(l), query.X[l], pass.X[l], query.dots[l]);
    team.sync();
    add_bias(team, model.bias(weights, l), Z);
    for (Index t = 0; t < n; ++t) {
      const A* dots = query.dots[l] + t * n;
      A* row = query.P[l] + t * n;
      const A scale = scan.scale[t];
      team.for_each(n, [=](Index s) { row[s] = s <= t ? -scale * rates[s] * (dots[s] + A(1)) : A(0); });
    }
    team.sync();
    add_causal<A>(team, n, model.out(l), query.P[l], pass.G[l], query.Z[l]);
    team.sync();
    if (l + 1 < model.layers) {
      const A* z = query.Z[l];
      A* x = query.X[l + 1];
      team.for_each(n * model.out(l), [=](Index i) { x[i] = GeluTanh::f(z[i]); });
      team.sync();
    }
  }
}

}  // namespace detail

/// All mini-batches of one head, in order.
template <class T, class A>
struct TttForward {
  TttScan<T, A> scan;
  A* weights;    // (B, H, size): the first weights on entry, the last ones on return
  A* gradients;  // (B, H, gathered), null if nobody wants them: what a last mini-batch that is not whole has
                 // gathered, sum over s of lr_s dl(W; s) / dW or its factors; zero after a whole one
  T* out;        // (B, T, H F)

  static constexpr Index scratch(InnerModel model, Index n) {
    return detail::InnerPass<A>::scratch(model, n) + detail::QueryPass<A>::scratch(model, n) +
           n * model.width + n * model.widest();
  }

  template <class Team>
  MTTT_HD void operator()(Team team, Index head) const {
    const InnerModel model = scan.model;
    const Index F = model.width, size = model.size();
    A* W = weights + head * size;
    const A* gamma = scan.gamma + head % scan.heads * F;
    const A* beta = scan.beta + head % scan.heads * F;
    if (gradients != nullptr) {
      A* none = gradients + head * model.gathered();
      team.for_each(model.gathered(), [=](Index i) { none[i] = 0; });
    }
    for (Index m = 0; m < scan.mini_batches(); ++m) {
      const Index n = scan.tokens(m);
      detail::InnerPass<A> pass;
      detail::QueryPass<A> query;
      A* target = query.place(model, n, pass.place(model, n, team.template scratch<A>()));
      A* scaled = target + n * F;
      A* kept = scan.checkpoint(m, head);
      team.for_each(size, [=](Index i) { kept[i] = W[i]; });
      scan.load(team, scan.k, head, m, n, pass.X[0]);
      scan.load(team, scan.q, head, m, n, query.X[0]);
      scan.load(team, scan.target, head, m, n, target);
      team.sync();

      detail::descend(team, model, n, W, target, gamma, beta, scan.eps, pass);
      detail::answer(team, scan, head, m, n, W, pass, query);
      A* answers = query.Z[model.layers - 1];  // o = q + LN(Zbar)
      const A *queries = query.X[0], eps = scan.eps;
      team.rows(n, [=](auto part, Index r) {
        A* z = answers + r * F;
        detail::inner_norm(part, z, gamma, beta, z, F, eps);
        const A* q = queries + r * F;
        part.for_each(F, [=](Index i) { z[i] += q[i]; });
      });
      team.sync();
      scan.store(team, query.Z[model.layers - 1], head, m, n, out);
      if (n == scan.mini_batch) {
        learn(team, head, m, n, W, -scan.scale[n - 1], pass, scaled);
      } else if (gradients != nullptr && model.kept == 0) {
        learn(team, head, m, n, gradients + head * size, A(1), pass, scaled);
      } else if (gradients != nullptr) {
        for (Index s = 0; s < n; ++s)
          detail::keep_factors(team, model, s, scan.lr[scan.lr_at(head, m, s)], pass, s,
                               gradients + head * model.gathered());
      }
      team.sync();
    }
  }

 private:
  /// W_l += factor (lr X_l)^T G_l
  template <class Team>
  MTTT_HD void learn(Team team, Index head, Index m, Index n, A* W, A factor,
                     const detail::InnerPass<A>& pass, A* scaled) const {
    const InnerModel model = scan.model;
    for (Index l = 0; l < model.layers; ++l) {
      for (Index s = 0; s < n; ++s) {  // rates go to the gradients, so that weight and bias share the product
        const A rate = factor * scan.lr[scan.lr_at(head, m, s)];
        const A* g = pass.G[l] + s * model.out(l);
        A* row = scaled + s * model.out(l);
        A* bias = model.bias(W, l);
        team.for_each(model.out(l), [=](Index i) {
          row[i] = rate * g[i];
          bias[i] += row[i];
        });
      }
      team.sync();
      team.matmul(detail::plane<const A>(pass.X[l], n, model.in(l)).t(),
                  detail::plane<const A>(scaled, n, model.out(l)), model.weight(W, l), 1, 1);
      team.sync();
    }
  }
};

/// The scan backwards: mini-batches in reverse, each recomputed from its checkpoint.
template <class T, class A>
struct TttBackward {
  TttScan<T, A> scan;
  const T* dout;         // (B, T, H F)
  T *dq, *dk, *dtarget;  // (B, T, H F), overwritten
  A* dlr;                // (B, T, H), overwritten
  A* dscale;             // (B, H, C), zero at the start
  A *dgamma, *dbeta;     // (B, H, F), zero at the start
  A* dweights;           // (B, H, size): gradient of the last weights on entry, of the first ones on return

  static constexpr Index scratch(InnerModel model, Index n) {
    return 2 * detail::InnerPass<A>::scratch(model, n) + detail::QueryPass<A>::scratch(model, n) +
           n * (3 * model.width + 3 * model.widest() + n);
  }

  template <class Team>
  MTTT_HD void operator()(Team team, Index head) const {
    const InnerModel model = scan.model;
    const Index F = model.width, last = model.layers - 1;
    A* dW = dweights + head * model.size();
    const A* gamma = scan.gamma + head % scan.heads * F;
    const A* beta = scan.beta + head % scan.heads * F;
    for (Index m = scan.mini_batches() - 1; m >= 0; --m) {
      const Index n = scan.tokens(m);
      const A* W = scan.checkpoint(m, head);
      detail::InnerPass<A> pass, d;  // d.X, d.Z, d.G: gradients of the pass's planes
      detail::QueryPass<A> query;
      A* memory = query.place(model, n, pass.place(model, n, team.template scratch<A>()));
      memory = d.place(model, n, memory);
      A* target = memory;
      A* dtarget_here = target + n * F;
      A* dO = dtarget_here + n * F;
      A* dXbar = dO + n * F;
      A* dZbar = dXbar + n * model.widest();
      A* wide = dZbar + n * model.widest();
      A* dP = wide + n * model.widest();

      // The mini-batch again.
      scan.load(team, scan.k, head, m, n, pass.X[0]);
      scan.load(team, scan.q, head, m, n, query.X[0]);
      scan.load(team, scan.target, head, m, n, target);
      scan.load(team, dout, head, m, n, dO);
      for (Index s = 0; s < n; ++s) {
        if (team.leader()) dlr[scan.lr_at(head, m, s)] = 0;
      }
      team.sync();
      detail::descend(team, model, n, W, target, gamma, beta, scan.eps, pass);
      detail::answer(team, scan, head, m, n, W, pass, query);

      // 1. W' = W - scale_C sum lr_s x_s^T g_s: dW' flows on to W, and into X, G and the rates.
      const bool updated = n == scan.mini_batch;
      for (Index l = 0; l <= last; ++l) {
        if (updated) {
          carried(team, head, m, n, dW, pass, d, l, wide, dP);
        } else {
          zero(team, d.X[l], n * model.in(l));
          zero(team, d.G[l], n * model.out(l));
        }
      }
      // 2. o = q + LN(Zbar_L), and back through the queries' layers.
      const A *answers = query.Z[last], eps = scan.eps;
      team.rows(n, [=](auto part, Index r) {
        const Index at = r * F;
        detail::inner_norm_backward(part, answers + at, gamma, dO + at, dZbar + at, wide + at, F, eps);
      });
      team.sync();
      detail::add_column_sums(team, detail::plane<const A>(wide, n, F), dgamma + head * F);
      detail::add_column_sums(team, detail::plane<const A>(dO, n, F), dbeta + head * F);
      for (Index l = last; l >= 0; --l) {
        queried(team, head, m, n, W, dW, pass, query, d, l, dXbar, dZbar, dP);
        if (l > 0) {
          const A* z = query.Z[l - 1];
          team.for_each(n * model.in(l), [=](Index i) { dZbar[i] = dXbar[i] * GeluTanh::df(z[i]); });
          team.sync();
        }
      }
      team.for_each(n * F, [=](Index i) { dXbar[i] += dO[i]; });
      team.sync();
      scan.store(team, dXbar, head, m, n, dq);
      // 3. Back through the closed-form gradients g_1 ... g_L, then through the keys' layers.
      inner_gradients(team, n, W, dW, pass, d, wide);
      const A* z_last = pass.Z[last];
      A* dg_last = d.G[last];
      A* shares = dXbar;  // which has served
      const A clip = static_cast<A>(model.clip);
      team.rows(n, [=](auto part, Index r) {
        const Index at = r * F;
        if (clip > 0)
          detail::inner_clip_backward(part, z_last + at, target + at, gamma, beta, dg_last + at, F, eps,
                                      clip);
        detail::inner_loss_gradient_backward(part, z_last + at, target + at, gamma, beta, dg_last + at,
                                             wide + at, dtarget_here + at, shares + at, F, eps);
      });
      team.sync();
      detail::add_column_sums(team, detail::plane<const A>(shares, n, F), dgamma + head * F);
      detail::add_column_sums(team, detail::plane<const A>(dtarget_here, n, F), dbeta + head * F, A(-1));
      add(team, wide, d.Z[last], n * F);
      team.sync();
      inner_layers(team, n, W, dW, pass, d);
      scan.store(team, d.X[0], head, m, n, dk);
      scan.store(team, dtarget_here, head, m, n, dtarget);
      team.sync();
    }
  }

 private:
  template <class Team>
  MTTT_HD static void zero(Team team, A* x, Index n) {
    team.for_each(n, [=](Index i) { x[i] = 0; });
  }
  template <class Team>
  MTTT_HD static void add(Team team, const A* x, A* y, Index n) {
    team.for_each(n, [=](Index i) { y[i] += x[i]; });
  }

  /// Of layer l, with rate_s = scale_C lr_s and U = X dW' + db':
  ///   dG = -rate U,  d rate_s = -g_s . u_s,  dX = -rate G dW'^T
  template <class Team>
  MTTT_HD void carried(Team team, Index head, Index m, Index n, const A* dW, const detail::InnerPass<A>& pass,
                       const detail::InnerPass<A>& d, Index l, A* scaled, A* products) const {
    const InnerModel model = scan.model;
    const Index out = model.out(l);
    const A last_scale = scan.scale[n - 1];
    team.matmul(detail::plane<const A>(pass.X[l], n, model.in(l)), model.weight(dW, l),
                detail::plane(d.G[l], n, out));
    team.sync();
    detail::add_bias(team, model.bias(dW, l), detail::plane(d.G[l], n, out));
    team.sync();
    const A* gradients = pass.G[l];
    A* updates = d.G[l];
    const A* lr = scan.lr + scan.lr_at(head, m, 0);
    A* drate = dlr + scan.lr_at(head, m, 0);
    const Index stride = scan.heads;
    team.rows(n, [=](auto part, Index s) {
      const A* g = gradients + s * out;
      A* u = updates + s * out;
      A* row = scaled + s * out;
      const A rate = lr[s * stride];
      const A product = part.template sum<A>(out, [=](Index i) { return g[i] * u[i]; });
      if (part.leader()) {
        drate[s * stride] -= last_scale * product;
        products[s] = rate * product;
      }
      part.for_each(out, [=](Index i) {
        u[i] *= -last_scale * rate;
        row[i] = -last_scale * rate * g[i];
      });
    });
    team.sync();
    if (team.leader()) {
      A total = 0;
      for (Index s = 0; s < n; ++s) total += products[s];
      dscale[head * scan.mini_batch + n - 1] -= total;
    }
    team.matmul(detail::plane<const A>(scaled, n, out), model.weight(dW, l).t(),
                detail::plane(d.X[l], n, model.in(l)));
    team.sync();
  }

  /// Layer l of the queries' pass: dZbar to dXbar, dW, db, dG, dX, and through P to the rates and scales.
  template <class Team>
  MTTT_HD void queried(Team team, Index head, Index m, Index n, const A* W, A* dW,
                       const detail::InnerPass<A>& pass, const detail::QueryPass<A>& query,
                       const detail::InnerPass<A>& d, Index l, A* dXbar, const A* dZbar, A* dP) const {
    const InnerModel model = scan.model;
    const Index in = model.in(l), out = model.out(l);
    const auto dZ = detail::plane<const A>(dZbar, n, out);
    team.matmul(dZ, model.weight(W, l).t(), detail::plane(dXbar, n, in));
    detail::causal_products<A>(team, n, out, dZbar, pass.G[l], dP);
    detail::add_causal_transposed<A>(team, n, out, query.P[l], dZbar, d.G[l]);
    team.matmul(detail::plane<const A>(query.X[l], n, in).t(), dZ, model.weight(dW, l), 1, 1);
    detail::add_column_sums(team, dZ, model.bias(dW, l));
    team.sync();
    // P_ts = -scale_t lr_s (a_ts + 1)
    const A* dots = query.dots[l];
    const A *scale = scan.scale, *rates = query.rates;
    const Index stride = scan.heads;
    A *drate = dlr + scan.lr_at(head, m, 0), *to_scale = dscale + head * scan.mini_batch;
    team.for_each(n, [=](Index s) {  // down column s, which begins at the diagonal
      A sum = 0;
      for (Index t = s; t < n; ++t) sum += scale[t] * (A(1) + dots[t * n + s]) * dP[t * n + s];
      drate[s * stride] -= sum;
    });
    team.for_each(n, [=](Index t) {
      A sum = 0;
      for (Index s = 0; s <= t; ++s) sum += rates[s] * (A(1) + dots[t * n + s]) * dP[t * n + s];
      to_scale[t] -= sum;
    });
    team.sync();
    for (Index t = 0; t < n; ++t) {
      A* row = dP + t * n;
      const A row_scale = scale[t];
      team.for_each(n, [=](Index s) { row[s] = s <= t ? -row_scale * rates[s] * row[s] : A(0); });  // now dA
    }
    team.sync();
    detail::add_causal<A>(team, n, in, dP, pass.X[l], dXbar);
    detail::add_causal_transposed<A>(team, n, in, dP, query.X[l], d.X[l]);
    team.sync();
  }

  /// g_l = (g_(l+1) W_(l+1)^T) * gelu'(z_l): from dG_l to dG_(l+1), dW_(l+1), and dZ_l.
  template <class Team>
  MTTT_HD void inner_gradients(Team team, Index n, const A* W, A* dW, const detail::InnerPass<A>& pass,
                               const detail::InnerPass<A>& d, A* wide) const {
    const InnerModel model = scan.model;
    for (Index l = 0; l + 1 < model.layers; ++l) {
      const Index out = model.out(l), next = model.out(l + 1);
      const A* z = pass.Z[l];
      A *dg = d.G[l], *dz = d.Z[l];
      team.matmul(detail::plane<const A>(pass.G[l + 1], n, next), model.weight(W, l + 1).t(),
                  detail::plane(wide, n, out));
      team.sync();
      const A* slopes = pass.slopes[l];
      team.for_each(n * out, [=](Index i) {
        dz[i] = dg[i] * wide[i] * GeluTanh::ddf(z[i]);
        dg[i] *= slopes[i];
      });
      team.sync();
      team.matmul(detail::plane<const A>(dg, n, out), model.weight(W, l + 1),
                  detail::plane(d.G[l + 1], n, next), 1, 1);
      team.matmul(detail::plane<const A>(dg, n, out).t(), detail::plane<const A>(pass.G[l + 1], n, next),
                  model.weight(dW, l + 1), 1, 1);
      team.sync();
    }
    zero(team, d.Z[model.layers - 1], n * model.width);
    team.sync();
  }

  /// Z_l = X_l W_l + b_l, X_(l+1) = gelu(Z_l): from dZ to dX, dW and db, last layer first.
  template <class Team>
  MTTT_HD void inner_layers(Team team, Index n, const A* W, A* dW, const detail::InnerPass<A>& pass,
                            const detail::InnerPass<A>& d) const {
    const InnerModel model = scan.model;
    for (Index l = model.layers - 1; l >= 0; --l) {
      const auto dZ = detail::plane<const A>(d.Z[l], n, model.out(l));
      team.matmul(dZ, model.weight(W, l).t(), detail::plane(d.X[l], n, model.in(l)), 1, 1);
      team.matmul(detail::plane<const A>(pass.X[l], n, model.in(l)).t(), dZ, model.weight(dW, l), 1, 1);
      detail::add_column_sums(team, dZ, model.bias(dW, l));
      team.sync();
      if (l > 0) {
        const A *slopes = pass.slopes[l - 1], *dx = d.X[l];
        A* dz = d.Z[l - 1];
        team.for_each(n * model.in(l), [=](Index i) { dz[i] += dx[i] * slopes[i]; });
        team.sync();
      }
    }
  }
};

}  // namespace mttt
