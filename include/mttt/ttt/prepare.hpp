// What stands between a TTT layer's projections and its inner loop: queries, keys, targets, learning rates.
//
// Formula:            lm variant                           video variant
//          q, k       RoPE at t mod C                      unit length per head, then RoPE at t mod C
//          target     v - k                                gamma n(v - k) + beta
//          scale_t    max(0, 1 / (t + 1) + learnable_t)    1 / C
//
//          t counts from 0 in the mini-batch; RoPE may be switched off. n subtracts the mean and divides by
//          the (unbiased) deviation + 1e-8. Both variants: lr_s = base_lr sigmoid(x_s . w_lr + b_lr) / F.
// Shapes:  q, k, v, target (B, T, H F); lr (B, T, H); scale (C); cos, sin (C, F / 2).
// Units:   positions in tokens.
// Errors:  none.
// Not supported: none.
// Source:  ttt-lm-pytorch ttt.py: TTTBase.get_eta, forward; ttt-video-dit ttt_layer.py: process_input,
//          ln_reconstruction_target.
#pragma once

#include <cstdint>

#include "mttt/ttt/inner_model.hpp"

namespace mttt {

enum class TttVariant { lm, video };

namespace detail {

/// cos and sin of place * theta^(-2 i / F), for every place in a mini-batch.
template <class A>
struct InnerRopeTable {
  A *cos, *sin;
  const std::int64_t* position;  // (B): a line for each token of these sessions; null: for each place
  Index steps, mini_batch, half;
  double theta;
  MTTT_HD Index place(Index line) const {
    return position == nullptr ? line
                               : (static_cast<Index>(position[line / steps]) + line % steps) % mini_batch;
  }
  MTTT_HD void operator()(Index at) const {
    const double angle = static_cast<double>(place(at / half)) *
                         std::pow(theta, -static_cast<double>(at % half) / static_cast<double>(half));
    cos[at] = static_cast<A>(std::cos(angle));
    sin[at] = static_cast<A>(std::sin(angle));
  }
};

/// scale_t
template <class T, class A>
struct TokenScale {
  const T* learnable;  // null: 1 / C
  A* scale;
  Index mini_batch;
  MTTT_HD void operator()(Index t) const {
    if (learnable == nullptr) {
      scale[t] = A(1) / static_cast<A>(mini_batch);
    } else {
      const A value = A(1) / static_cast<A>(t + 1) + static_cast<A>(learnable[t]);
      scale[t] = value > A(0) ? value : A(0);
    }
  }
};

/// Raw projections to what the inner loop reads; one team a token and head.
template <TttVariant variant, class T, class A>
struct Prepare {
  const T *raw_q, *raw_k, *v;    // (B, T, H F)
  T *q, *k, *target;             // (B, T, H F)
  const A *cos, *sin;            // (lines, F / 2), null without RoPE
  const A *gamma, *beta;         // (H, F)
  const std::int64_t* position;  // (B) of the first token; null: 0
  Index steps, heads, width, mini_batch;
  bool line_per_token;  // of cos and sin

  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index at = row * width, head = row % heads, token = row / heads;
    const Index start = position == nullptr ? 0 : static_cast<Index>(position[token / steps]);
    const Index place = (start + token % steps) % mini_batch;
    const Index line = line_per_token ? token : place;
    rotate(team, raw_q + at, q + at, line);
    rotate(team, raw_k + at, k + at, line);
    team.sync();
    const T *value = v + at, *key = k + at;
    T* wanted = target + at;
    const auto difference = [=](Index i) { return static_cast<A>(value[i]) - static_cast<A>(key[i]); };
    if constexpr (variant == TttVariant::lm) {
      team.for_each(width, [=](Index i) { wanted[i] = static_cast<T>(difference(i)); });
    } else {
      const A* g = gamma + head * width;
      const A* b = beta + head * width;
      const auto m = target_moments(team, difference);
      team.for_each(width, [=](Index i) {
        wanted[i] = static_cast<T>(g[i] * (difference(i) - m.mean) * m.rstd + b[i]);
      });
    }
  }

  /// Mean, and 1 / (unbiased deviation + 1e-8).
  template <class Team, class D>
  MTTT_HD Moments<A> target_moments(Team team, const D& difference) const {
    const A mean = team.template sum<A>(width, difference) / static_cast<A>(width);
    const A square =
        team.template sum<A>(width, [=](Index i) { return (difference(i) - mean) * (difference(i) - mean); });
    return {mean, A(1) / (std::sqrt(square / static_cast<A>(width - 1)) + A(1e-8))};
  }
  /// |x|, by which the video variant divides; 1 in the lm variant.
  template <class Team>
  MTTT_HD A length(Team team, const T* x) const {
    if constexpr (variant == TttVariant::lm) return A(1);
    const A square =
        team.template sum<A>(width, [=](Index i) { return static_cast<A>(x[i]) * static_cast<A>(x[i]); });
    const A root = std::sqrt(square);
    return root > A(1e-12) ? root : A(1e-12);
  }
  /// y = RoPE(x / |x|) at a place in the mini-batch.
  template <class Team>
  MTTT_HD void rotate(Team team, const T* x, T* y, Index line) const {
    const A inverse = A(1) / length(team, x);
    if (cos == nullptr) {
      team.for_each(width, [=](Index i) { y[i] = static_cast<T>(static_cast<A>(x[i]) * inverse); });
      return;
    }
    const Index half = width / 2;
    const A *c = cos + line * half, *s = sin + line * half;
    team.for_each(half, [=](Index i) {
      const A re = static_cast<A>(x[2 * i]) * inverse, im = static_cast<A>(x[2 * i + 1]) * inverse;
      y[2 * i] = static_cast<T>(re * c[i] - im * s[i]);
      y[2 * i + 1] = static_cast<T>(re * s[i] + im * c[i]);
    });
  }
};

/// Prepare backwards; one team a head of a session, so that dgamma and dbeta have one writer.
template <TttVariant variant, class T, class A>
struct PrepareBackward {
  Prepare<variant, T, A> forward;
  const T *dq, *dk, *dtarget;  // of the prepared tensors
  T *draw_q, *draw_k, *dv;     // overwritten
  A *dgamma, *dbeta;           // (B, H, F), added to

  static constexpr Index scratch(Index width) { return 2 * width; }

  template <class Team>
  MTTT_HD void operator()(Team team, Index session_head) const {
    const Index heads = forward.heads, width = forward.width, head = session_head % heads;
    A* dkey = team.template scratch<A>();
    A* turned = dkey + width;
    for (Index t = 0; t < forward.steps; ++t) {
      const Index at = ((session_head / heads * forward.steps + t) * heads + head) * width;
      const T *key_gradient = dk + at, *wanted = dtarget + at;
      T* dvalue = dv + at;
      if constexpr (variant == TttVariant::lm) {
        team.for_each(width, [=](Index i) {
          dvalue[i] = wanted[i];
          dkey[i] = static_cast<A>(key_gradient[i]) - static_cast<A>(wanted[i]);
        });
      } else {
        target_backward(team, session_head, at, dkey);
      }
      team.sync();
      rotate_backward(team, forward.raw_k + at, dkey, turned, draw_k + at, t % forward.mini_batch);
      const T* query_gradient = dq + at;
      team.for_each(width, [=](Index i) { dkey[i] = static_cast<A>(query_gradient[i]); });
      team.sync();
      rotate_backward(team, forward.raw_q + at, dkey, turned, draw_q + at, t % forward.mini_batch);
      team.sync();
    }
  }

 private:
  template <class Team>
  MTTT_HD void target_backward(Team team, Index session_head, Index at, A* dkey) const {
    const Index width = forward.width;
    const T *value = forward.v + at, *key = forward.k + at, *wanted = dtarget + at, *key_gradient = dk + at;
    const A* gamma = forward.gamma + session_head % forward.heads * width;
    A *dg = dgamma + session_head * width, *db = dbeta + session_head * width;
    T* dvalue = dv + at;
    const auto difference = [=](Index i) { return static_cast<A>(value[i]) - static_cast<A>(key[i]); };
    const auto m = forward.target_moments(team, difference);
    const A deviation = A(1) / m.rstd - A(1e-8), inv = A(1) / static_cast<A>(width);
    const auto centred = [=](Index i) { return difference(i) - m.mean; };
    const auto dn = [=](Index i) { return static_cast<A>(wanted[i]) * gamma[i]; };
    const A product = team.template sum<A>(width, [=](Index i) { return dn(i) * centred(i); });
    // n = c / (s + eps), s = sqrt(sum c^2 / (F - 1)); a constant row has s = 0 and no direction to move s in.
    const A through_s =
        deviation > A(0) ? product * m.rstd * m.rstd / (static_cast<A>(width - 1) * deviation) : A(0);
    const A mean_dc = inv * team.template sum<A>(width, [=](Index i) { return dn(i) * m.rstd; });
    team.for_each(width, [=](Index i) {
      dg[i] += static_cast<A>(wanted[i]) * centred(i) * m.rstd;
      db[i] += static_cast<A>(wanted[i]);
      const A dd = dn(i) * m.rstd - through_s * centred(i) - mean_dc;
      dvalue[i] = static_cast<T>(dd);
      dkey[i] = static_cast<A>(key_gradient[i]) - dd;
    });
  }

  /// Turns dy back by RoPE, then through y = x / |x|.
  template <class Team>
  MTTT_HD void rotate_backward(Team team, const T* x, const A* dy, A* turned, T* dx, Index place) const {
    const Index width = forward.width;
    if (forward.cos == nullptr) {
      team.for_each(width, [=](Index i) { turned[i] = dy[i]; });
    } else {
      const Index half = width / 2;
      const A *c = forward.cos + place * half, *s = forward.sin + place * half;
      team.for_each(half, [=](Index i) {
        turned[2 * i] = dy[2 * i] * c[i] + dy[2 * i + 1] * s[i];
        turned[2 * i + 1] = dy[2 * i + 1] * c[i] - dy[2 * i] * s[i];
      });
    }
    team.sync();
    if constexpr (variant == TttVariant::lm) {
      team.for_each(width, [=](Index i) { dx[i] = static_cast<T>(turned[i]); });
    } else {
      const A inverse = A(1) / forward.length(team, x);
      const A along = inverse * inverse *
                      team.template sum<A>(width, [=](Index i) { return static_cast<A>(x[i]) * turned[i]; });
      team.for_each(width, [=](Index i) {
        dx[i] = static_cast<T>(inverse * (turned[i] - static_cast<A>(x[i]) * along));
      });
    }
  }
};

/// lr = base_lr sigmoid(logit + bias) / F
template <class T, class A>
struct LearningRate {
  const T *logit, *bias, *base_lr;
  A* lr;
  Index heads, width;
  MTTT_HD void operator()(Index i) const {
    lr[i] = static_cast<A>(base_lr[0]) *
            Sigmoid::f(static_cast<A>(logit[i]) + static_cast<A>(bias[i % heads])) / static_cast<A>(width);
  }
};
/// dlogit, of which db_lr is the sum over rows.
template <class T, class A>
struct LearningRateBackward {
  const T *logit, *bias, *base_lr;
  const A* dlr;
  T* dlogit;
  Index heads, width;
  MTTT_HD void operator()(Index i) const {
    dlogit[i] = static_cast<T>(dlr[i] * static_cast<A>(base_lr[0]) / static_cast<A>(width) *
                               Sigmoid::df(static_cast<A>(logit[i]) + static_cast<A>(bias[i % heads])));
  }
};

/// parts[p] = sum over part p of dlr sigmoid / F, of which d base_lr is the sum.
template <class T, class A>
struct BaseRateBackward {
  const T *logit, *bias;
  const A* dlr;
  A* parts;
  Index n, heads, width;
  static constexpr Index part = 4096;

  MTTT_HD Index count() const { return (n + part - 1) / part; }
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const Index first = p * part, h = heads;
    const T *z = logit, *b = bias;
    const A* d = dlr;
    const A total = team.template sum<A>(n - first < part ? n - first : part, [=](Index i) {
      const Index at = first + i;
      return d[at] * Sigmoid::f(static_cast<A>(z[at]) + static_cast<A>(b[at % h]));
    });
    if (team.leader()) parts[p] = total / static_cast<A>(width);
  }
};

/// d learnable_t += sum over sessions and heads of dscale_t, where the scale is not cut at 0.
template <class A, class G>
struct TokenScaleBackward {
  const A *scale, *dscale;  // (C), (B, H, C)
  G* grad;
  Index session_heads, mini_batch;
  MTTT_HD void operator()(Index t) const {
    if (!(scale[t] > A(0))) return;
    A total = 0;
    for (Index i = 0; i < session_heads; ++i) total += dscale[i * mini_batch + t];
    grad[t] += total;
  }
};

/// Plain conversion between storage and accumulator type.
template <class From, class To>
struct Convert {
  const From* x;
  To* y;
  MTTT_HD void operator()(Index i) const { y[i] = static_cast<To>(x[i]); }
};

/// grad[h, j] += sum over sessions of part[b, h, offset + j], j < length.
template <class A, class G>
struct SumSessions {
  const A* part;
  G* grad;
  Index batch, heads, stride, offset, length;
  MTTT_HD void operator()(Index i) const {
    A total = 0;
    for (Index b = 0; b < batch; ++b) total += part[(b * heads + i / length) * stride + offset + i % length];
    grad[i] += total;
  }
};

/// Copies one layer's learned start into the flat fast weights of every active session and head.
template <class T, class A>
struct StartWeights {
  const T* learned;  // (H, length)
  A* weights;        // (B, H, stride)
  const std::uint8_t* mask;
  Index heads, stride, offset, length;
  template <class Team>
  MTTT_HD void operator()(Team team, Index session_head) const {
    if (!active(mask, session_head / heads)) return;
    const T* from = learned + session_head % heads * length;
    A* to = weights + session_head * stride + offset;
    team.for_each(length, [=](Index i) { to[i] = static_cast<A>(from[i]); });
  }
};

}  // namespace detail
}  // namespace mttt
