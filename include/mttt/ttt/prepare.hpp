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

#include "mttt/core/lanes.hpp"
#include "mttt/ttt/inner_model.hpp"

namespace mttt {

enum class TttVariant { lm, video };

namespace detail {

/// What does not depend on the tokens, in one launch: scale_t, gamma and beta in the accumulator type, and
/// cos and sin of place * theta^(-2 i / F) for every place in a mini-batch.
template <class T, class A>
struct InnerTables {
  const T* learnable;            // (C); null: scale_t = 1 / C
  const T *gamma_in, *beta_in;   // (H, F)
  A *scale, *gamma, *beta;       // (C), (H, F)
  A *cos, *sin;                  // (lines, F / 2), null without RoPE
  const std::int64_t* position;  // (B): a line for each token of these sessions; null: for each place
  Index steps, mini_batch, norms, lines, half;
  double theta;

  MTTT_HD Index count() const { return 2 * norms + mini_batch + (cos == nullptr ? 0 : lines * half); }
  MTTT_HD void operator()(Index i) const {
    if (i < norms) {
      gamma[i] = static_cast<A>(gamma_in[i]);
    } else if (i < 2 * norms) {
      beta[i - norms] = static_cast<A>(beta_in[i - norms]);
    } else if (i < 2 * norms + mini_batch) {
      fill_scale(i - 2 * norms);
    } else {
      rotate(i - 2 * norms - mini_batch);
    }
  }

 private:
  MTTT_HD void fill_scale(Index t) const {
    if (learnable == nullptr) {
      scale[t] = A(1) / static_cast<A>(mini_batch);
    } else {
      const A value = A(1) / static_cast<A>(t + 1) + static_cast<A>(learnable[t]);
      scale[t] = value > A(0) ? value : A(0);
    }
  }
  MTTT_HD void rotate(Index at) const {
    const double angle = static_cast<double>(place(at / half)) *
                         std::pow(theta, -static_cast<double>(at % half) / static_cast<double>(half));
    cos[at] = static_cast<A>(std::cos(angle));
    sin[at] = static_cast<A>(std::sin(angle));
  }
  MTTT_HD Index place(Index line) const {
    return position == nullptr ? line
                               : (static_cast<Index>(position[line / steps]) + line % steps) % mini_batch;
  }
};

/// Raw projections to what the inner loop reads; one team a token and `together` heads.
template <TttVariant variant, class T, class A>
struct Prepare {
  const T *raw_q, *raw_k, *v;    // (B, T, H F)
  T *q, *k, *target;             // (B, T, H F)
  const T *logit, *bias;         // (B, T, H), (H)
  const T* base_lr;              // (1)
  A* lr;                         // (B, T, H)
  const A *cos, *sin;            // (lines, F / 2), null without RoPE
  const A *gamma, *beta;         // (H, F)
  const std::int64_t* position;  // (B) of the first token; null: 0
  Index tokens, steps, heads, width, mini_batch;
  bool line_per_token;  // of cos and sin
  static constexpr Index together = 8;

  MTTT_HD Index teams_a_token() const { return (heads + together - 1) / together; }
  Index count() const { return tokens * teams_a_token(); }
  Index cost() const { return together * width * 8; }

  template <class Team>
  MTTT_HD void operator()(Team team, Index item) const {
    const Index token = item / teams_a_token(), first = item % teams_a_token() * together;
    const Index start = position == nullptr ? 0 : static_cast<Index>(position[token / steps]);
    const Index place = (start + token % steps) % mini_batch, line = line_per_token ? token : place;
    const auto self = *this;
    team.rows(heads - first < together ? heads - first : together,
              [=](auto part, Index r) { self.head_of_token(part, token, first + r, line); });
  }

  template <class Team>
  MTTT_HD void head_of_token(Team team, Index token, Index head, Index line) const {
    const Index row = token * heads + head, at = row * width;
    if (team.leader()) {
      const A x = static_cast<A>(logit[row]) + static_cast<A>(bias[head]);
      lr[row] = static_cast<A>(base_lr[0]) * Sigmoid::f(x) / static_cast<A>(width);
    }
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
      const auto pair = load_lanes<2>(x + 2 * i);
      const A re = static_cast<A>(pair.of[0]) * inverse, im = static_cast<A>(pair.of[1]) * inverse;
      store_lanes(y + 2 * i, Lanes<T, 2>{{static_cast<T>(re * c[i] - im * s[i]),
                                          static_cast<T>(re * s[i] + im * c[i])}});
    });
  }
};

/// Prepare backwards but for the learning rates. lm: one team a token and some heads, as Prepare. video: one
/// team a head and `part` tokens, whose shares of dgamma and dbeta it sums; AddParts (nn/elementwise.hpp)
/// joins them.
template <TttVariant variant, class T, class A>
struct PrepareBackward {
  Prepare<variant, T, A> forward;
  const T *dq, *dk, *dtarget;  // of the prepared tensors
  T *draw_q, *draw_k, *dv;     // overwritten
  A *dgamma, *dbeta;           // (parts, H, F), overwritten; null in the lm variant
  static constexpr bool sums = variant == TttVariant::video;
  static constexpr Index part = 32;

  static Index parts(Index tokens) { return sums ? (tokens + part - 1) / part : 0; }
  Index count() const { return sums ? parts(forward.tokens) * forward.heads : forward.count(); }
  Index cost() const { return sums ? part * forward.width : forward.cost(); }

  template <class Team>
  MTTT_HD void operator()(Team team, Index item) const {
    const Index heads = forward.heads;
    if constexpr (sums) {
      const Index first = item / heads * part, left = forward.tokens - first, width = forward.width;
      A *dg = dgamma + item * width, *db = dbeta + item * width;
      team.for_each(width, [=](Index i) { dg[i] = db[i] = 0; });
      for (Index t = 0; t < (left < part ? left : part); ++t)
        head_of_token(team, first + t, item % heads, dg, db);
    } else {
      const Index teams = forward.teams_a_token(), token = item / teams,
                  first = item % teams * forward.together;
      const auto self = *this;
      team.rows(heads - first < forward.together ? heads - first : forward.together,
                [=](auto one, Index r) { self.head_of_token(one, token, first + r, nullptr, nullptr); });
    }
  }

 private:
  template <class Team>
  MTTT_HD void head_of_token(Team team, Index token, Index head, A* dg, A* db) const {
    const Index at = (token * forward.heads + head) * forward.width;
    const Index place = token % forward.steps % forward.mini_batch;
    const T *key_gradient = dk + at, *wanted = dtarget + at, *query_gradient = dq + at;
    T* dvalue = dv + at;
    if constexpr (variant == TttVariant::lm) {
      team.for_each(forward.width, [=](Index i) { dvalue[i] = wanted[i]; });
      const auto dkey = [=](Index i) { return static_cast<A>(key_gradient[i]) - static_cast<A>(wanted[i]); };
      rotate_backward(team, forward.raw_k + at, dkey, draw_k + at, place);
    } else {
      const Index width = forward.width;
      const T *value = forward.v + at, *key = forward.k + at;
      const A* gamma = forward.gamma + head * width;
      const auto difference = [=](Index i) { return static_cast<A>(value[i]) - static_cast<A>(key[i]); };
      const auto m = forward.target_moments(team, difference);
      const A deviation = A(1) / m.rstd - A(1e-8), inv = A(1) / static_cast<A>(width);
      const auto centred = [=](Index i) { return difference(i) - m.mean; };
      const auto dn = [=](Index i) { return static_cast<A>(wanted[i]) * gamma[i]; };
      const A product = team.template sum<A>(width, [=](Index i) { return dn(i) * centred(i); });
      // n = c / (s + eps), s = sqrt(sum c^2 / (F - 1)); a constant row has s = 0 and no direction to move s
      // in.
      const A through_s =
          deviation > A(0) ? product * m.rstd * m.rstd / (static_cast<A>(width - 1) * deviation) : A(0);
      const A mean_dc = inv * team.template sum<A>(width, [=](Index i) { return dn(i) * m.rstd; });
      const auto dd = [=](Index i) { return dn(i) * m.rstd - through_s * centred(i) - mean_dc; };
      team.for_each(width, [=](Index i) {
        dg[i] += static_cast<A>(wanted[i]) * centred(i) * m.rstd;
        db[i] += static_cast<A>(wanted[i]);
        dvalue[i] = static_cast<T>(dd(i));
      });
      const auto dkey = [=](Index i) { return static_cast<A>(key_gradient[i]) - dd(i); };
      rotate_backward(team, forward.raw_k + at, dkey, draw_k + at, place);
    }
    const auto dquery = [=](Index i) { return static_cast<A>(query_gradient[i]); };
    rotate_backward(team, forward.raw_q + at, dquery, draw_q + at, place);
  }

  /// Turns dy back by RoPE, then through y = x / |x|.
  template <class Team, class D>
  MTTT_HD void rotate_backward(Team team, const T* x, const D& dy, T* dx, Index place) const {
    const Index width = forward.width, half = width / 2;
    const A inverse = A(1) / forward.length(team, x);
    if (forward.cos == nullptr) {
      const A along =
          share_along(team, width, inverse, [=](Index i) { return static_cast<A>(x[i]) * dy(i); });
      team.for_each(
          width, [=](Index i) { dx[i] = static_cast<T>(inverse * (dy(i) - static_cast<A>(x[i]) * along)); });
      return;
    }
    const A *c = forward.cos + place * half, *s = forward.sin + place * half;
    const auto turned = [=](Index i) {
      const A re = dy(2 * i), im = dy(2 * i + 1);
      return Lanes<A, 2>{{re * c[i] + im * s[i], im * c[i] - re * s[i]}};
    };
    const A along = share_along(team, half, inverse, [=](Index i) {
      const auto y = turned(i);
      return static_cast<A>(x[2 * i]) * y.of[0] + static_cast<A>(x[2 * i + 1]) * y.of[1];
    });
    team.for_each(half, [=](Index i) {
      auto y = turned(i);
      if constexpr (variant == TttVariant::video) {
        for (Index e = 0; e < 2; ++e) y.of[e] = inverse * (y.of[e] - static_cast<A>(x[2 * i + e]) * along);
      }
      store_lanes(dx + 2 * i, Lanes<T, 2>{{static_cast<T>(y.of[0]), static_cast<T>(y.of[1])}});
    });
  }
  /// sum of x dy / |x|^2; 0 in the lm variant, where lengths stay.
  template <class Team, class D>
  MTTT_HD static A share_along(Team team, Index n, A inverse, const D& product) {
    if constexpr (variant == TttVariant::lm) return A(0);
    return inverse * inverse * team.template sum<A>(n, product);
  }
};

/// Of lr = base_lr sigmoid(logit + bias) / F: dlogit, of which db_lr is the sum over rows.
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

/// d learnable_t += sum over sessions and heads of dscale_t, where the scale is not cut at 0. One team a
/// place.
template <class A, class G>
struct TokenScaleBackward {
  const A *scale, *dscale;  // (C), (B, H, C)
  G* grad;
  Index session_heads, mini_batch;
  template <class Team>
  MTTT_HD void operator()(Team team, Index t) const {
    if (!(scale[t] > A(0))) return;
    const A* from = dscale + t;
    const Index stride = mini_batch;
    const A total = team.template sum<A>(session_heads, [=](Index i) { return from[i * stride]; });
    if (team.leader()) grad[t] += total;
  }
};

/// grad += sum of n parts. One team.
template <class A, class G>
struct AddTotal {
  const A* parts;
  G* grad;
  Index n;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const A* from = parts;
    const A total = team.template sum<A>(n, [=](Index i) { return from[i]; });
    if (team.leader()) *grad += total;
  }
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

/// A stream's step from the raw projections to the answers, for backends that take it in one launch
/// (`ttt_step`); the numbers of Prepare and of TttStep (ttt/primal.hpp).
template <TttVariant variant, class T, class A>
struct TttStreamStep {
  using Scalar = T;
  static constexpr bool video = variant == TttVariant::video;
  Index batch, steps, heads, mini_batch;
  const T *q, *k, *v;            // (B, T, H F), raw
  const T *logit, *rate_bias;    // (B, T, H), (H)
  const T* base_lr;              // (1)
  const T* token_scale;          // (C), what is learned of it; not read in the video variant
  const T *gamma, *beta;         // (H, F)
  A *weights, *gradients;        // (B, H, size)
  const std::int64_t* position;  // (B), tokens since the session's start; advanced by the caller
  const std::uint8_t* mask;
  T* out;  // (B, T, H F); zeros for sessions that are not active
  A eps;
  bool rope;
  double rope_theta;
};

}  // namespace mttt
