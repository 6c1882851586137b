// The inner model of a TTT layer: what one head learns while it listens.
//
// Formula: z_1 = x W_1 + b_1,  z_(l+1) = gelu_tanh(z_l) W_(l+1) + b_(l+1)
//          net(x; W) = z_L             L = 1 is TTT-Linear, L = 2 to 5 TTT-MLP
//          out(x; W) = x + LN(net(x; W); gamma, beta)
//          loss        l(W; s) = 1/2 |LN(net(k_s; W); gamma, beta) - target_s|^2
//          gradients   g_L = dl / dz_L in closed form, of every token shortened to `clip` where it is longer
//                      (clip 0: never): g_L <- g_L min(1, clip / |g_L|);
//                      g_l = (g_(l+1) W_(l+1)^T) * gelu_tanh'(z_l);
//                      then dl / dW_l = x_l^T g_l,  dl / db_l = g_l,  x_1 = k_s,  x_(l+1) = gelu_tanh(z_l)
// Shapes:  x, k, target (n, width); W_l (in, out); g_l, z_l (n, out of layer l). One head's weights lie in
//          one flat array W_1 b_1 W_2 b_2 ..., so that a session's fast weights are copied, saved and forked
//          as one piece. What an unfinished mini-batch has taught lies beside them: the sums of lr dl / dW in
//          the same order, or the factors of these sums, X_1 (C, in) lr G_1 (C, out) X_2 ..., a row a token.
// Units:   none. Everything here is float32 or better, whatever the storage type is.
// Errors:  none.
// Not supported: inner models whose input and output widths differ.
// Source:  Sun et al. 2024, "Learning to (Learn at Test Time)", section 2; ttt-lm-pytorch ttt.py:
//          ln_fused_l2_bwd.
#pragma once

#include "mttt/core/tensor.hpp"
#include "mttt/math/scalar.hpp"

namespace mttt {

/// Widths of the layers and where each lies in a head's flat array. Layer indices start at 0.
struct InnerModel {
  Index width;     // of a head
  Index hidden;    // of the layers in between
  Index layers;    // 1 is TTT-Linear
  float clip = 0;  // the longest gradient of a token's loss by the inner model's output; 0: any
  Index kept = 0;  // tokens whose x_l and lr g_l a session keeps until their mini-batch ends; 0: their sums

  MTTT_HD constexpr Index in(Index l) const { return l == 0 ? width : hidden; }
  MTTT_HD constexpr Index out(Index l) const { return l == layers - 1 ? width : hidden; }
  MTTT_HD constexpr Index widest() const { return layers == 1 ? width : (hidden > width ? hidden : width); }
  MTTT_HD constexpr Index weight_at(Index l) const {
    Index offset = 0;
    for (Index i = 0; i < l; ++i) offset += (in(i) + 1) * out(i);
    return offset;
  }
  MTTT_HD constexpr Index bias_at(Index l) const { return weight_at(l) + in(l)*out(l); }
  MTTT_HD constexpr Index size() const { return weight_at(layers); }

  /// Numbers that a session keeps of an unfinished mini-batch: sums like its weights, or rows of factors.
  MTTT_HD constexpr Index gathered() const { return kept == 0 ? size() : inputs_at(layers); }
  MTTT_HD constexpr Index inputs_at(Index l) const {
    Index offset = 0;
    for (Index i = 0; i < l; ++i) offset += kept * (in(i) + out(i));
    return offset;
  }
  MTTT_HD constexpr Index gradients_at(Index l) const { return inputs_at(l) + kept * in(l); }

  template <class A>
  MTTT_HD Matrix<A> weight(A* flat, Index l) const {
    return {flat + weight_at(l), in(l), out(l), out(l)};
  }
  template <class A>
  MTTT_HD A* bias(A* flat, Index l) const {
    return flat + bias_at(l);
  }
};

inline constexpr Index max_inner_layers = 5;

namespace detail {

/// A contiguous plane in scratch.
template <class A>
MTTT_HD Matrix<A> plane(A* data, Index rows, Index cols) {
  return {data, rows, cols, cols};
}

/// Mean and reciprocal deviation of a row of F numbers.
template <class A>
struct Moments {
  A mean, rstd;
};
template <class A, class Team>
MTTT_HD Moments<A> moments(Team team, const A* z, Index F, A eps) {
  const A mean = team.template sum<A>(F, [=](Index i) { return z[i]; }) / static_cast<A>(F);
  const A var =
      team.template sum<A>(F, [=](Index i) { return (z[i] - mean) * (z[i] - mean); }) / static_cast<A>(F);
  return {mean, A(1) / std::sqrt(var + eps)};
}

/// y = gamma * (z - mean) / deviation + beta
template <class A, class Team>
MTTT_HD void inner_norm(Team team, const A* z, const A* gamma, const A* beta, A* y, Index F, A eps) {
  const auto m = moments(team, z, F, eps);
  team.for_each(F, [=](Index i) { y[i] = gamma[i] * (z[i] - m.mean) * m.rstd + beta[i]; });
}

/// dz of inner_norm, and the row's share of dgamma; that of dbeta is dy itself.
template <class A, class Team>
MTTT_HD void inner_norm_backward(Team team, const A* z, const A* gamma, const A* dy, A* dz, A* dgamma,
                                 Index F, A eps) {
  const auto m = moments(team, z, F, eps);
  const auto hat = [=](Index i) { return (z[i] - m.mean) * m.rstd; };
  const A mean_d = team.template sum<A>(F, [=](Index i) { return dy[i] * gamma[i]; }) / static_cast<A>(F);
  const A mean_dx =
      team.template sum<A>(F, [=](Index i) { return dy[i] * gamma[i] * hat(i); }) / static_cast<A>(F);
  team.for_each(F, [=](Index i) {
    const A x = hat(i);
    dgamma[i] = dy[i] * x;
    dz[i] = m.rstd * (dy[i] * gamma[i] - mean_d - x * mean_dx);
  });
}

/// g = d/dz of 1/2 |LN(z) - target|^2, shortened to `clip` where that is above 0 and g is longer
template <class A, class Team>
MTTT_HD void inner_loss_gradient(Team team, const A* z, const A* target, const A* gamma, const A* beta, A* g,
                                 Index F, A eps, A clip = 0) {
  const auto m = moments(team, z, F, eps);
  const auto hat = [=](Index i) { return (z[i] - m.mean) * m.rstd; };
  const auto h = [=](Index i) { return (gamma[i] * hat(i) + beta[i] - target[i]) * gamma[i]; };
  const A mean_h = team.template sum<A>(F, h) / static_cast<A>(F);
  const A mean_hx = team.template sum<A>(F, [=](Index i) { return h(i) * hat(i); }) / static_cast<A>(F);
  const auto of = [=](Index i) { return m.rstd * (h(i) - mean_h - hat(i) * mean_hx); };
  if (clip > 0) {
    const A norm = std::sqrt(team.template sum<A>(F, [=](Index i) { return of(i) * of(i); }));
    const A factor = norm > clip ? clip / norm : A(1);
    team.for_each(F, [=](Index i) { g[i] = factor * of(i); });
  } else {
    team.for_each(F, [=](Index i) { g[i] = of(i); });
  }
}

/// dg of the shortened gradient to that of the whole one, in place: with u = g / |g|, where |g| > clip
///   dg <- clip / |g| (dg - u (u . dg))
template <class A, class Team>
MTTT_HD void inner_clip_backward(Team team, const A* z, const A* target, const A* gamma, const A* beta, A* dg,
                                 Index F, A eps, A clip) {
  const auto m = moments(team, z, F, eps);
  const auto hat = [=](Index i) { return (z[i] - m.mean) * m.rstd; };
  const auto h = [=](Index i) { return (gamma[i] * hat(i) + beta[i] - target[i]) * gamma[i]; };
  const A mean_h = team.template sum<A>(F, h) / static_cast<A>(F);
  const A mean_hx = team.template sum<A>(F, [=](Index i) { return h(i) * hat(i); }) / static_cast<A>(F);
  const auto of = [=](Index i) { return m.rstd * (h(i) - mean_h - hat(i) * mean_hx); };
  const A square = team.template sum<A>(F, [=](Index i) { return of(i) * of(i); });
  const A along = team.template sum<A>(F, [=](Index i) { return of(i) * dg[i]; });
  if (!(square > clip * clip)) return;
  const A factor = clip / std::sqrt(square);
  team.for_each(F, [=](Index i) { dg[i] = factor * (dg[i] - of(i) * along / square); });
}

/// inner_loss_gradient backwards: from dg to dz, dtarget and the row's share of dgamma; that of dbeta is
/// -dtarget. With x = hat(z), e = gamma x + beta - target, h = e gamma:  g = rstd (h - mean(h) - x mean(h
/// x)).
template <class A, class Team>
MTTT_HD void inner_loss_gradient_backward(Team team, const A* z, const A* target, const A* gamma,
                                          const A* beta, const A* dg, A* dz, A* dtarget, A* dgamma, Index F,
                                          A eps) {
  const A inv = A(1) / static_cast<A>(F);
  const auto m = moments(team, z, F, eps);
  const auto hat = [=](Index i) { return (z[i] - m.mean) * m.rstd; };
  const auto e = [=](Index i) { return gamma[i] * hat(i) + beta[i] - target[i]; };
  const A mean_h = inv * team.template sum<A>(F, [=](Index i) { return e(i) * gamma[i]; });
  const A mean_hx = inv * team.template sum<A>(F, [=](Index i) { return e(i) * gamma[i] * hat(i); });
  const A mean_d = inv * team.template sum<A>(F, [=](Index i) { return m.rstd * dg[i]; });
  const A mean_dx = inv * team.template sum<A>(F, [=](Index i) { return m.rstd * dg[i] * hat(i); });
  const A drstd =
      team.template sum<A>(F, [=](Index i) { return dg[i] * (e(i) * gamma[i] - mean_h - hat(i) * mean_hx); });
  const auto dh = [=](Index i) { return m.rstd * dg[i] - mean_d - hat(i) * mean_dx; };
  // dx: from h through e, and from the two places of x itself.
  const auto dhat = [=](Index i) {
    return dh(i) * gamma[i] * gamma[i] - m.rstd * dg[i] * mean_hx - e(i) * gamma[i] * mean_dx;
  };
  const A mean_dhat = inv * team.template sum<A>(F, dhat);
  const A mean_dhat_x = inv * team.template sum<A>(F, [=](Index i) { return dhat(i) * hat(i); });
  team.for_each(F, [=](Index i) {
    const A x = hat(i), de = dh(i) * gamma[i];
    dgamma[i] = dh(i) * e(i) + de * x;
    dtarget[i] = -de;
    dz[i] = m.rstd * (dhat(i) - mean_dhat - x * mean_dhat_x) - drstd * m.rstd * m.rstd * x * inv;
  });
}

/// y[r, :] = row + y[r, :]
template <class A, class Team>
MTTT_HD void add_bias(Team team, const A* row, Matrix<A> y) {
  for (Index r = 0; r < y.rows; ++r) {
    A* out = y.data + r * y.ld;
    team.for_each(y.cols, [=](Index i) { out[i] += row[i]; });
  }
}

/// row += factor * column sums of y
template <class A, class Team>
MTTT_HD void add_column_sums(Team team, Matrix<const A> y, A* row, A factor = 1) {
  for (Index r = 0; r < y.rows; ++r) {
    const A* in = y.data + r * y.ld;
    team.for_each(y.cols, [=](Index i) { row[i] += factor * in[i]; });
  }
}

/// What one mini-batch of n tokens makes of the inner model: inputs X_l, pre-activations Z_l, gradients G_l
/// of all layers, and GELU's slopes at Z_l of all but the last. The planes lie in scratch; X of the first
/// layer is k itself.
template <class A>
struct InnerPass {
  A* X[max_inner_layers];
  A* Z[max_inner_layers];
  A* G[max_inner_layers];
  A* slopes[max_inner_layers];

  MTTT_HD static constexpr Index scratch(InnerModel model, Index n) {
    Index total = 0;
    for (Index l = 0; l < model.layers; ++l)
      total += n * (model.in(l) + (l + 1 < model.layers ? 3 : 2) * model.out(l));
    return total;
  }
  /// Lays the planes out from `memory` on; returns what follows them.
  MTTT_HD A* place(InnerModel model, Index n, A* memory) {
    for (Index l = 0; l < model.layers; ++l) {
      X[l] = memory;
      Z[l] = X[l] + n * model.in(l);
      G[l] = Z[l] + n * model.out(l);
      slopes[l] = G[l] + n * model.out(l);
      memory = l + 1 < model.layers ? slopes[l] + n * model.out(l) : slopes[l];
    }
    return memory;
  }
};

/// Forward and closed-form gradient of the inner loss at `weights` for n tokens whose keys are in pass.X[0].
/// Who has multiplied them by the first layer's weights already, into pass.Z[0], says so.
template <class A, class Team>
MTTT_HD void descend(Team team, InnerModel model, Index n, const A* weights, const A* target, const A* gamma,
                     const A* beta, A eps, InnerPass<A>& pass, bool multiplied = false) {
  const Index last = model.layers - 1;
  for (Index l = 0; l <= last; ++l) {
    const Matrix<A> Z = plane(pass.Z[l], n, model.out(l));
    if (l > 0 || !multiplied)
      team.matmul(plane<const A>(pass.X[l], n, model.in(l)), model.weight(weights, l), Z);
    team.sync();
    add_bias(team, model.bias(weights, l), Z);
    if (l < last) {
      team.sync();
      const A* z = pass.Z[l];
      A *x = pass.X[l + 1], *slopes = pass.slopes[l];
      team.for_each(n * model.out(l), [=](Index i) { x[i] = GeluTanh::f_and_df(z[i], slopes[i]); });
    }
    team.sync();
  }
  const A* z_last = pass.Z[last];
  A* g_last = pass.G[last];
  const Index F = model.width;
  const A clip = static_cast<A>(model.clip);
  team.rows(n, [=](auto part, Index r) {
    inner_loss_gradient(part, z_last + r * F, target + r * F, gamma, beta, g_last + r * F, F, eps, clip);
  });
  team.sync();
  for (Index l = last - 1; l >= 0; --l) {
    team.matmul(plane<const A>(pass.G[l + 1], n, model.out(l + 1)), model.weight(weights, l + 1).t(),
                plane(pass.G[l], n, model.out(l)));
    team.sync();
    const A* slopes = pass.slopes[l];
    A* g = pass.G[l];
    team.for_each(n * model.out(l), [=](Index i) { g[i] *= slopes[i]; });
    team.sync();
  }
}

/// Row `place` of a session's factors: x_l and rate g_l of row r of a pass.
template <class A, class Team>
MTTT_HD void keep_factors(Team team, InnerModel model, Index place, A rate, const InnerPass<A>& pass, Index r,
                          A* factors) {
  for (Index l = 0; l < model.layers; ++l) {
    const Index in = model.in(l), out = model.out(l);
    const A *x = pass.X[l] + r * in, *g = pass.G[l] + r * out;
    A *to_x = factors + model.inputs_at(l) + place * in,
      *to_g = factors + model.gradients_at(l) + place * out;
    team.for_each(in, [=](Index i) { to_x[i] = x[i]; });
    team.for_each(out, [=](Index i) { to_g[i] = rate * g[i]; });
  }
}

/// W_l += factor sum over the first n rows of x_l^T (lr g_l), likewise the biases.
template <class A, class Team>
MTTT_HD void add_factors(Team team, InnerModel model, Index n, A factor, const A* factors, A* W) {
  for (Index l = 0; l < model.layers; ++l) {
    const auto x = plane(factors + model.inputs_at(l), n, model.in(l));
    const auto g = plane(factors + model.gradients_at(l), n, model.out(l));
    team.matmul(x.t(), g, model.weight(W, l), factor, 1);
    add_column_sums(team, g, model.bias(W, l), factor);
  }
}

}  // namespace detail
}  // namespace mttt
