// Causal sliding-window attention: its core over explicit strides, its step over a ring cache, and the block.
//
// Formula: out_t = sum_s p_ts v_s,  p_t. = softmax over s of (q_t . k_s / sqrt(head_dim)),
//          s in [max(0, t - context + 1), t]; a context of 0 or less is unlimited.
//          Query head h reads key head h / (heads / kv_heads).
//          backward from the log-sum-exp of each row:  p = exp(score - lse),  delta = dout . out,
//          ds = p (dout . v - delta) / sqrt(head_dim),  dq += ds k,  dk += ds q,  dv += p dout.
//          Block: [q | k | v] = x in^T, RoPE on q and k, attention, y = out out_projs^T.
// Shapes:  q, out: rows of heads * head_dim; k, v: rows of kv_heads * head_dim; x, y (B, T, dim);
//          lse (B, T, heads); caches (B, kv_heads, context, head_dim), position p in slot p % context.
// Units:   context and positions in steps, strides in elements.
// Errors:  none at run time; static_assert on a dim, heads and kv_repeat that do not divide.
// Not supported: attention to the future, cross attention, dropout, biases; streaming without a context.
// Source:  Vaswani et al. 2017; FlashAttention-2 (Dao 2023) for the backward pass; kyutai-labs/moshi
//          modules/transformer.py `StreamingMultiheadAttention`, `RingKVCache`.
#pragma once

#include <cmath>

#include "mttt/backend/fused.hpp"
#include "mttt/core/concepts.hpp"
#include "mttt/math/scalar.hpp"
#include "mttt/nn/lora.hpp"
#include "mttt/nn/rope.hpp"

namespace mttt {

struct AttentionShape {
  Index heads, kv_heads, head_dim, context;

  MTTT_HD constexpr Index group() const { return heads / kv_heads; }
  /// First key that query t sees.
  MTTT_HD constexpr Index first_key(Index t) const {
    return context > 0 && t >= context ? t - context + 1 : 0;
  }
  /// One past the last query, of `steps`, that sees key s.
  MTTT_HD constexpr Index end_query(Index s, Index steps) const {
    return context > 0 && s + context < steps ? s + context : steps;
  }
  /// Keys of the longest row.
  MTTT_HD constexpr Index window(Index steps) const {
    return context > 0 && context < steps ? context : steps;
  }
};

namespace detail {

/// out[j] = scale * (a . row j of b), n rows `ld` apart. Without a conversion it is a product of planes,
/// whose sums are many at once.
template <class A, class Team, class T>
MTTT_HD void dot_rows(Team team, const T* a, const T* b, Index ld, Index n, Index dim, A scale, A* out) {
  if constexpr (std::is_same_v<T, A>) {
    team.matmul(Matrix<const T>{a, 1, dim, dim}, Matrix<const T>{b, n, dim, ld}.t(), Matrix<A>{out, 1, n, n},
                scale);
  } else {
    for (Index j = 0; j < n; ++j) {
      const T* row = b + j * ld;
      const A product =
          team.template sum<A>(dim, [=](Index i) { return static_cast<A>(a[i]) * static_cast<A>(row[i]); });
      if (team.leader()) out[j] = scale * product;
    }
  }
  team.sync();
}

/// to += sum over j of weight[j] * (row j of b).
template <class A, class Team, class T>
MTTT_HD void add_rows(Team team, const A* weight, const T* b, Index ld, Index n, Index dim, A* to) {
  if constexpr (std::is_same_v<T, A>) {
    team.matmul(Matrix<const A>{weight, 1, n, n}, Matrix<const T>{b, n, dim, ld}, Matrix<A>{to, 1, dim, dim},
                1, 1);
  } else {
    for (Index j = 0; j < n; ++j) {
      const T* row = b + j * ld;
      const A w = weight[j];
      team.for_each(dim, [=](Index i) { to[i] += w * static_cast<A>(row[i]); });
    }
  }
  team.sync();
}

/// One query against n keys; returns the log-sum-exp. scratch holds n + dim numbers.
template <class A, class Team, class T>
MTTT_HD A attend_row(Team team, const T* q, const T* k, const T* v, Index ld, Index n, Index dim, A* scratch,
                     T* out) {
  A *p = scratch, *mixed = scratch + n;
  dot_rows<A>(team, q, k, ld, n, dim, A(1) / std::sqrt(static_cast<A>(dim)), p);
  const A largest = team.template max<A>(n, [=](Index j) { return p[j]; });
  team.for_each(n, [=](Index j) { p[j] = math::exp(p[j] - largest); });
  team.for_each(dim, [=](Index i) { mixed[i] = 0; });
  team.sync();
  const A total = team.template sum<A>(n, [=](Index j) { return p[j]; });
  add_rows<A>(team, p, v, ld, n, dim, mixed);
  const A share = A(1) / total;
  team.for_each(dim, [=](Index i) { out[i] = static_cast<T>(mixed[i] * share); });
  team.sync();  // the next row takes the same scratch
  return largest + std::log(total);
}

/// What all passes over a whole sequence share. Rows are numbered (b, head, t): neighbours reuse their keys.
template <class T>
struct AttentionInputs {
  AttentionShape shape;
  Index steps;
  const T *q, *k, *v;
  Strides in, to;

  MTTT_HD Index at(Strides strides, Index b, Index t, Index head) const {
    return b * strides.batch + t * strides.step + head * shape.head_dim;
  }
  MTTT_HD Index row(Index b, Index t, Index head) const { return (b * steps + t) * shape.heads + head; }
};

template <class T, class A>
struct Attend : AttentionInputs<T> {
  T* out;
  A* lse;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const AttentionShape s = this->shape;
    const Index t = i % this->steps, h = i / this->steps % s.heads, b = i / this->steps / s.heads;
    const Index first = s.first_key(t), keys = this->at(this->in, b, first, h / s.group());
    const A row_lse = attend_row<A>(team, this->q + this->at(this->in, b, t, h), this->k + keys,
                                    this->v + keys, this->in.step, t - first + 1, s.head_dim,
                                    team.template scratch<A>(), out + this->at(this->to, b, t, h));
    if (team.leader()) lse[this->row(b, t, h)] = row_lse;
  }
};

/// delta = dout . out, one a row.
template <class T, class A>
struct AttentionDelta {
  AttentionInputs<T> a;
  const T *out, *dout;
  A* delta;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index h = i % a.shape.heads, t = i / a.shape.heads % a.steps, b = i / a.shape.heads / a.steps;
    const T *value = out + a.at(a.to, b, t, h), *up = dout + a.at(a.to, b, t, h);
    const A product = team.template sum<A>(
        a.shape.head_dim, [=](Index c) { return static_cast<A>(value[c]) * static_cast<A>(up[c]); });
    if (team.leader()) delta[i] = product;
  }
};

/// dq of one (b, head, t). scratch: the row's scores and their gradients, then head_dim sums.
template <class T, class A>
struct AttentionQueryGradient {
  AttentionInputs<T> a;
  const T* dout;
  const A *lse, *delta;
  T* dq;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const AttentionShape s = a.shape;
    const Index t = i % a.steps, h = i / a.steps % s.heads, b = i / a.steps / s.heads;
    const Index first = s.first_key(t), n = t - first + 1, dim = s.head_dim;
    const Index keys = a.at(a.in, b, first, h / s.group());
    const A scale = A(1) / std::sqrt(static_cast<A>(dim));
    A *score = team.template scratch<A>(), *ds = score + n, *sum = ds + n;
    dot_rows<A>(team, a.q + a.at(a.in, b, t, h), a.k + keys, a.in.step, n, dim, scale, score);
    dot_rows<A>(team, dout + a.at(a.to, b, t, h), a.v + keys, a.in.step, n, dim, A(1), ds);
    const A row_lse = lse[a.row(b, t, h)], row_delta = delta[a.row(b, t, h)];
    team.for_each(n, [=](Index j) { ds[j] = math::exp(score[j] - row_lse) * (ds[j] - row_delta) * scale; });
    team.for_each(dim, [=](Index c) { sum[c] = 0; });
    team.sync();
    add_rows<A>(team, ds, a.k + keys, a.in.step, n, dim, sum);
    T* to = dq + a.at(a.in, b, t, h);
    team.for_each(dim, [=](Index c) { to[c] = static_cast<T>(sum[c]); });
    team.sync();
  }
};

/// dk and dv of one (b, kv_head, s), over all queries and heads that read it, in a fixed order.
template <class T, class A>
struct AttentionKeyGradient {
  AttentionInputs<T> a;
  const T* dout;
  const A *lse, *delta;
  T *dk, *dv;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const AttentionShape s = a.shape;
    const Index key = i % a.steps, kv = i / a.steps % s.kv_heads, b = i / a.steps / s.kv_heads;
    const Index n = s.end_query(key, a.steps) - key, dim = s.head_dim, heads = s.heads;
    const Index at = a.at(a.in, b, key, kv);
    const A scale = A(1) / std::sqrt(static_cast<A>(dim));
    A *p = team.template scratch<A>(), *ds = p + n, *k_sum = ds + n, *v_sum = k_sum + dim;
    team.for_each(2 * dim, [=](Index c) { k_sum[c] = 0; });
    for (Index h = kv * s.group(); h < (kv + 1) * s.group(); ++h) {
      const T *queries = a.q + a.at(a.in, b, key, h), *ups = dout + a.at(a.to, b, key, h);
      dot_rows<A>(team, a.k + at, queries, a.in.step, n, dim, scale, p);
      dot_rows<A>(team, a.v + at, ups, a.to.step, n, dim, A(1), ds);
      const A *row_lse = lse + a.row(b, key, h), *row_delta = delta + a.row(b, key, h);
      team.for_each(n, [=](Index j) {
        p[j] = math::exp(p[j] - row_lse[j * heads]);
        ds[j] = p[j] * (ds[j] - row_delta[j * heads]) * scale;
      });
      team.sync();
      add_rows<A>(team, ds, queries, a.in.step, n, dim, k_sum);
      add_rows<A>(team, p, ups, a.to.step, n, dim, v_sum);
    }
    T *k_to = dk + at, *v_to = dv + at;
    team.for_each(dim, [=](Index c) {
      k_to[c] = static_cast<T>(k_sum[c]);
      v_to[c] = static_cast<T>(v_sum[c]);
    });
    team.sync();
  }
};

/// One (b, kv_head): its steps in order, each written to the ring before it is attended from, so that a chunk
/// that wraps never overwrites a key which an earlier step of the chunk still needs.
template <class T, class A>
struct AttendStep {
  AttentionInputs<T> a;
  T *cache_k, *cache_v;
  const std::int64_t *positions, *contexts;
  const std::uint8_t* mask;
  T* out;
  /// Slots of the ring that session b uses.
  MTTT_HD Index ring(Index b) const {
    const Index own = contexts == nullptr ? 0 : static_cast<Index>(contexts[b]);
    return own > 0 && own < a.shape.context ? own : a.shape.context;
  }
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const AttentionShape s = a.shape;
    const Index kv = i % s.kv_heads, b = i / s.kv_heads, dim = s.head_dim, context = ring(b);
    const Index first_head = kv * s.group(), end_head = first_head + s.group();
    if (!active(mask, b)) {  // defined, if meaningless, numbers for the layers above
      for (Index t = 0; t < a.steps; ++t) {
        T* to = out + a.at(a.to, b, t, first_head);
        team.for_each(s.group() * dim, [=](Index c) { to[c] = T(0); });
      }
      return;
    }
    T *keys = cache_k + i * s.context * dim, *values = cache_v + i * s.context * dim;
    for (Index t = 0; t < a.steps; ++t) {
      const std::int64_t position = positions[b] + t;
      const Index slot = static_cast<Index>(position % context) * dim;
      const T *k_from = a.k + a.at(a.in, b, t, kv), *v_from = a.v + a.at(a.in, b, t, kv);
      team.for_each(dim, [=](Index c) {
        keys[slot + c] = k_from[c];
        values[slot + c] = v_from[c];
      });
      team.sync();
      const Index n = position + 1 < context ? static_cast<Index>(position) + 1 : context;
      for (Index h = first_head; h < end_head; ++h) {
        attend_row<A>(team, a.q + a.at(a.in, b, t, h), keys, values, dim, n, dim, team.template scratch<A>(),
                      out + a.at(a.to, b, t, h));
      }
    }
  }
};

}  // namespace detail

/// out and lse of a whole sequence. q, k and v have rows at the same strides (slices of one projection).
template <class B, class T>
void attend(B& be, AttentionShape shape, Index batch, Index steps, const T* q, const T* k, const T* v,
            Strides strides, T* out, Strides out_strides, typename B::Accum* lse) {
  if constexpr (requires { be.attend(shape, batch, steps, q, k, v, strides, out, out_strides, lse); }) {
    if (be.attend(shape, batch, steps, q, k, v, strides, out, out_strides, lse)) return;
  }
  using A = typename B::Accum;
  const detail::AttentionInputs<T> inputs{shape, steps, q, k, v, strides, out_strides};
  const Index window = shape.window(steps);
  be.rows(batch * steps * shape.heads, detail::Attend<T, A>{inputs, out, lse},
          (window + shape.head_dim) * static_cast<Index>(sizeof(A)), 4 * window * shape.head_dim);
}

/// Overwrites dq, dk, dv, which have the strides of q, k, v; dout has those of out.
template <class B, class T>
void attend_backward(B& be, AttentionShape shape, Index batch, Index steps, const T* q, const T* k,
                     const T* v, Strides strides, const T* out, const T* dout, Strides out_strides,
                     const typename B::Accum* lse, T* dq, T* dk, T* dv) {
  if constexpr (requires {
                  be.attend_backward(shape, batch, steps, q, k, v, strides, out, dout, out_strides, lse, dq,
                                     dk, dv);
                }) {
    if (be.attend_backward(shape, batch, steps, q, k, v, strides, out, dout, out_strides, lse, dq, dk, dv))
      return;
  }
  using A = typename B::Accum;
  const auto scope = be.scope();
  const Index rows = batch * steps * shape.heads, window = shape.window(steps), dim = shape.head_dim;
  const auto delta = be.template make<A, dyn>(rows);
  const detail::AttentionInputs<T> inputs{shape, steps, q, k, v, strides, out_strides};
  const Index scratch = (2 * window + 2 * dim) * static_cast<Index>(sizeof(A));
  be.rows(rows, detail::AttentionDelta<T, A>{inputs, out, dout, delta.data()}, 0, 2 * dim);
  be.rows(rows, detail::AttentionQueryGradient<T, A>{inputs, dout, lse, delta.data(), dq}, scratch,
          6 * window * dim);
  be.rows(batch * steps * shape.kv_heads,
          detail::AttentionKeyGradient<T, A>{inputs, dout, lse, delta.data(), dk, dv}, scratch,
          8 * window * dim * shape.group());
}

/// Attends from `steps` new steps a session, and puts their keys and values into the ring; shape.context > 0.
/// positions (batch) counts the steps each session has seen; the caller advances it (`advance`). The caches
/// of inactive sessions stay as they are, and their rows of out are 0. contexts (batch), if given, narrows a
/// session's window to fewer steps than shape.context; 0 leaves it. It may change only where a session starts
/// anew.
template <class B, class T>
void attend_step(B& be, AttentionShape shape, Index batch, Index steps, const T* q, const T* k, const T* v,
                 Strides strides, T* cache_k, T* cache_v, const std::int64_t* positions, Mask mask, T* out,
                 Strides out_strides, const std::int64_t* contexts = nullptr) {
  if constexpr (requires {
                  be.attend_step(shape, batch, steps, q, k, v, strides, cache_k, cache_v, positions,
                                 mask.data(), out, out_strides, contexts);
                }) {
    if (be.attend_step(shape, batch, steps, q, k, v, strides, cache_k, cache_v, positions, mask.data(), out,
                       out_strides, contexts))
      return;
  }
  using A = typename B::Accum;
  const detail::AttentionInputs<T> inputs{shape, steps, q, k, v, strides, out_strides};
  be.rows(batch * shape.kv_heads,
          detail::AttendStep<T, A>{inputs, cache_k, cache_v, positions, contexts, mask.data(), out},
          (shape.context + shape.head_dim) * static_cast<Index>(sizeof(A)),
          4 * steps * shape.group() * shape.context * shape.head_dim);
}

/// The same of q and k that are not rotated yet, in one kernel where the backend has one; else false.
template <class B, class T>
bool rotated_attend_step(B& be, AttentionShape shape, Index batch, Index steps, const T* q, const T* k,
                         const T* v, Strides strides, T* cache_k, T* cache_v, const std::int64_t* positions,
                         Mask mask, T* out, Strides out_strides, const std::int64_t* contexts,
                         double max_period) {
  if constexpr (requires {
                  be.rotated_attend_step(shape, batch, steps, q, k, v, strides, cache_k, cache_v, positions,
                                         mask.data(), out, out_strides, contexts, max_period);
                }) {
    return be.rotated_attend_step(shape, batch, steps, q, k, v, strides, cache_k, cache_v, positions,
                                  mask.data(), out, out_strides, contexts, max_period);
  }
  return false;
}

struct AttentionConfig {
  Index dim, num_heads;
  Index kv_repeat = 1;  // query heads that share a key head
  Index context = 0;    // steps; 0 is unlimited, and then the block cannot be streamed
  bool rope = true;
  double max_period = 10000;
  LoraConfig lora{.rank = 0};

  constexpr Index head_dim() const { return dim / num_heads; }
  constexpr Index kv_heads() const { return num_heads / kv_repeat; }
  constexpr Index kv_dim() const { return head_dim() * kv_heads(); }
  constexpr Index qkv_dim() const { return dim + 2 * kv_dim(); }
};

/// Streaming keeps `context` keys a session, so their number must be known.
template <Index context>
concept BoundedContext = (context > 0);

template <AttentionConfig C, class B>
struct Attention {
  static_assert(C.num_heads > 0 && C.dim % C.num_heads == 0, "Attention: num_heads must divide dim");
  static_assert(C.kv_repeat > 0 && C.num_heads % C.kv_repeat == 0,
                "Attention: kv_repeat must divide num_heads");
  static_assert(!C.rope || C.head_dim() % 2 == 0, "Attention: RoPE needs an even dim / num_heads");

  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr Index in = C.dim, out = C.dim, qkv_dim = C.qkv_dim();
  static constexpr bool adapted = C.lora.rank > 0;
  using InProj = WithLora<C.lora, Linear<LinearConfig{.in = C.dim, .out = C.qkv_dim()}, B>>;
  using OutProj = WithLora<C.lora, Linear<LinearConfig{.in = C.dim, .out = C.dim}, B>>;

  struct Params {
    typename InProj::Params in_proj;  // rows q | k | v
    typename OutProj::Params out_proj;
    static void visit(auto&& f, auto&&... p) {
      f("in_projs.0", p.in_proj...);
      f("out_projs.0", p.out_proj...);
    }
  };
  struct Saved {
    typename InProj::Saved in_proj;
    Sequence<T, qkv_dim> qkv;  // after RoPE
    Sequence<T, C.dim> mixed;
    typename OutProj::Saved out_proj;
    Tensor<A, dyn, dyn, C.num_heads> lse;
  };
  struct RingState {
    Tensor<T, dyn, C.kv_heads(), C.context, C.head_dim()> k, v;
    Tensor<std::int64_t, dyn> position;  // steps seen
    Tensor<std::int64_t, dyn> context;  // steps that this session attends to, if fewer than C.context; 0: all
    static void visit(auto&& f, auto&&... s) {
      f("k", s.k...);
      f("v", s.v...);
      f("position", s.position...);
      f("context", s.context...);
    }
    static constexpr bool may_hold(std::string_view, Index, std::int64_t value) {
      return may_be_position(value);  // a context is counted in steps too
    }
  };
  using State = std::conditional_t<(C.context > 0), RingState, NoState>;

  static void init(Params& p, Rng& rng) {
    InProj::init(p.in_proj, rng);
    OutProj::init(p.out_proj, rng);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const Index batch = x.extent(0), steps = x.extent(1);
    const auto qkv = be.template make<T, dyn, dyn, qkv_dim>(batch, steps);
    const auto mixed = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    const auto lse = be.template make<A, dyn, dyn, C.num_heads>(batch, steps);
    saved.qkv = qkv, saved.mixed = mixed, saved.lse = lse;
    InProj::forward(be, p.in_proj, x, qkv, saved.in_proj);
    if constexpr (C.rope) rotate(be, qkv, nullptr, Rotation::forward);
    attend<B, T>(be, shape, batch, steps, q(qkv), k(qkv), v(qkv), qkv_strides(steps), mixed.data(),
                 strides(steps), lse.data());
    OutProj::forward(be, p.out_proj, mixed, y, saved.out_proj);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const Index batch = dy.extent(0), steps = dy.extent(1);
    const auto dmixed = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    const auto dqkv = be.template make<T, dyn, dyn, qkv_dim>(batch, steps);
    OutProj::backward(be, p.out_proj, saved.out_proj, dy, dmixed, grad.out_proj);
    attend_backward<B, T>(be, shape, batch, steps, q(saved.qkv), k(saved.qkv), v(saved.qkv),
                          qkv_strides(steps), saved.mixed.data(), dmixed.data(), strides(steps),
                          saved.lse.data(), q(dqkv), k(dqkv), v(dqkv));
    if constexpr (C.rope) rotate(be, dqkv, nullptr, Rotation::backward);
    InProj::backward(be, p.in_proj, saved.in_proj, dqkv, dx, grad.in_proj);
  }

  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) requires BoundedContext<C.context> {
    const auto scope = be.scope();
    const Index batch = x.extent(0), steps = x.extent(1);
    const auto qkv = be.template make<T, dyn, dyn, qkv_dim>(batch, steps);
    const auto mixed = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    NoState none;
    InProj::step(be, p.in_proj, none, x, qkv, mask);
    mix_step(be, state, qkv, mixed, mask);
    OutProj::step(be, p.out_proj, none, mixed, y, mask);
  }
  /// y = x + step(norm(x)), on a backend with product_step.
  static void residual_step(B& be, const Params& p, State& state, NormRows<T> norm, Sequence<const T, in> x,
                            Sequence<T, out> y, Mask mask) requires(BoundedContext<C.context> && !adapted) {
    const auto scope = be.scope();
    const auto qkv = be.template make<T, dyn, dyn, qkv_dim>(x.extent(0), x.extent(1));
    const auto mixed = be.template make<T, dyn, dyn, C.dim>(x.extent(0), x.extent(1));
    be.template product_step<Identity>(x.matrix(), norm, p.in_proj.weight.matrix(), qkv.matrix());
    mix_step(be, state, qkv, mixed, mask);
    be.template product_step<Identity>(mixed.matrix(), {}, p.out_proj.weight.matrix(), y.matrix(),
                                       {.addend = x.data()});
  }
  /// The step between the two projections; qkv is turned in place.
  static void mix_step(B& be, State& state, Sequence<T, qkv_dim> qkv, Sequence<T, C.dim> mixed,
                       Mask mask) requires BoundedContext<C.context> {
    const Index batch = qkv.extent(0), steps = qkv.extent(1);
    if constexpr (C.rope) {
      if (rotated_attend_step<B, T>(be, shape, batch, steps, q(qkv), k(qkv), v(qkv), qkv_strides(steps),
                                    state.k.data(), state.v.data(), state.position.data(), mask, mixed.data(),
                                    strides(steps), state.context.data(), C.max_period)) {
        advance(be, state.position.data(), batch, steps, mask);
        return;
      }
    }
    if constexpr (C.rope) rotate(be, qkv, state.position.data(), Rotation::forward);
    attend_step<B, T>(be, shape, batch, steps, q(qkv), k(qkv), v(qkv), qkv_strides(steps), state.k.data(),
                      state.v.data(), state.position.data(), mask, mixed.data(), strides(steps),
                      state.context.data());
    advance(be, state.position.data(), batch, steps, mask);
  }
  static void reset(B& be, const Params&, State& state, Mask mask) requires BoundedContext<C.context> {
    clear_state(be, state, mask);
  }

 private:
  static constexpr AttentionShape shape{C.num_heads, C.kv_heads(), C.head_dim(), C.context};
  static constexpr Strides strides(Index steps) { return {steps * C.dim, C.dim}; }
  static constexpr Strides qkv_strides(Index steps) { return {steps * qkv_dim, qkv_dim}; }
  static T* q(Sequence<T, qkv_dim> qkv) { return qkv.data(); }
  static T* k(Sequence<T, qkv_dim> qkv) { return qkv.data() + C.dim; }
  static T* v(Sequence<T, qkv_dim> qkv) { return qkv.data() + C.dim + C.kv_dim(); }

  static void rotate(B& be, Sequence<T, qkv_dim> qkv, const std::int64_t* positions, Rotation direction) {
    rope(be, qkv.data(), qkv.extent(0), qkv.extent(1), qkv_strides(qkv.extent(1)), C.num_heads + C.kv_heads(),
         C.head_dim(), positions, 0, C.max_period, direction);
  }
};

}  // namespace mttt
