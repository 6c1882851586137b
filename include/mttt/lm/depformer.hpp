// Depformer: the small transformer over the codes of one frame, with weights of its own for every step.
//
// Formula: x_k = in_k z + emb_k(code_k), code_0 the text code of the frame, code_k its audio code k - 1;
//          layers over the steps k:  h = x + out_k attend(in_k norm1(x)),  y = h + gating_k(norm2(h)),
//          step k attending to steps 0 to k of the same frame; no positions are added.
// Shapes:  z (B, T, in_dim); codes (B, streams, T), delayed, of which streams 0 to steps - 1 are read;
//          activations (steps, N, dim), N = B * T: step-major, so that one step's rows are one product.
// Units:   none.
// Errors:  none at run time; static_assert on a dim that the heads do not divide.
// Not supported: weights shared between steps (schedules), low-rank embeddings, other norms than RMS.
// Source:  Moshi (arXiv 2410.00037), section 3.4.1; kyutai-labs/moshi models/lm.py
//          `forward_depformer_training`, `forward_depformer`, modules/transformer.py
//          `apply_weights_per_step`.
#pragma once

#include "mttt/core/units.hpp"
#include "mttt/lm/delays.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/embedding.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"

namespace mttt {

struct DepformerConfig {
  Index dim, num_heads, num_layers;
  Index hidden;  // of the gating: gating_hidden(dim, dim_feedforward)
  double eps = 1e-8;
  LoraConfig lora{.rank = 0};  // adapters of all its linear layers
  bool recompute = false;      // in training a layer keeps its input alone and runs forward again in backward
  Index steps = 0, in_dim = 0, card = 0, text_card = 0;  // MoshiConfig fills these in

  constexpr Index head_dim() const { return dim / num_heads; }
};

/// K copies of a block, each for one step: x (K, N, in) -> y (K, N, out), no step seeing another.
template <class Block, Index K, class B>
struct PerStep {
  using T = typename B::Scalar;
  using Of = Block;
  static constexpr Index in = Block::in, out = Block::out;
  static constexpr std::size_t size = static_cast<std::size_t>(K);

  struct Params {
    std::array<typename Block::Params, size> of;
    static void visit(auto&& f, auto&&... p) { f("", p.of...); }
  };
  struct Saved {
    std::array<typename Block::Saved, size> of;
  };

  static void init(Params& p, Rng& rng) {
    for (auto& one : p.of) Block::init(one, rng);
  }
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    for (std::size_t k = 0; k < size; ++k) Block::forward(be, p.of[k], rows(x, k), rows(y, k), saved.of[k]);
  }
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    for (std::size_t k = 0; k < size; ++k)
      Block::backward(be, p.of[k], saved.of[k], rows(dy, k), rows(dx, k), grad.of[k]);
  }
  /// Step k alone, x (1, N, in).
  static void step(B& be, const Params& p, Index k, Sequence<const T, in> x, Sequence<T, out> y) {
    typename Block::State none;
    Block::step(be, p.of[static_cast<std::size_t>(k)], none, x, y, Mask{});
  }

 private:
  template <class U, Index Width>
  static Sequence<U, Width> rows(Sequence<U, Width> x, std::size_t k) {
    return {x[static_cast<Index>(k)].data(), {1, x.extent(1), Width}};
  }
};

namespace detail {

/// Row r, head h of step k against steps 0 to k; qkv (steps, N, 3 dim).
template <class T, class A>
struct DepthAttend {
  const T* qkv;
  T* out;
  Index n, k, heads, head_dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index dim = heads * head_dim, row = i / heads, at = (i % heads) * head_dim, ld = 3 * n * dim;
    const T* first = qkv + row * 3 * dim + at;
    attend_row<A>(team, first + k * ld, first + dim, first + 2 * dim, ld, k + 1, head_dim,
                  team.template scratch<A>(), out + row * dim + at);
  }
};

}  // namespace detail

template <DepformerConfig C, class B>
struct DepformerLayer {
  static_assert(C.num_heads > 0 && C.dim % C.num_heads == 0, "Depformer: num_heads must divide dim");
  static_assert(C.steps > 0, "Depformer: at least one step");

  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr Index in = C.dim, out = C.dim, K = C.steps;

  using Norm = RmsNorm<NormConfig{.dim = C.dim, .eps = C.eps}, B>;
  using InProjs = PerStep<WithLora<C.lora, Linear<LinearConfig{.in = C.dim, .out = 3 * C.dim}, B>>, K, B>;
  using OutProjs = PerStep<WithLora<C.lora, Linear<LinearConfig{.in = C.dim, .out = C.dim}, B>>, K, B>;
  using Gating = PerStep<SiluGating<GatingConfig{.dim = C.dim, .hidden = C.hidden, .lora = C.lora}, B>, K, B>;

  struct Params {
    typename Norm::Params norm1, norm2;
    typename InProjs::Params in_projs;
    typename OutProjs::Params out_projs;
    typename Gating::Params gating;
    static void visit(auto&& f, auto&&... p) {
      f("norm1", p.norm1...);
      f("self_attn.in_projs", p.in_projs...);
      f("self_attn.out_projs", p.out_projs...);
      f("norm2", p.norm2...);
      f("gating", p.gating...);
    }
  };
  struct Saved {
    typename Norm::Saved norm1, norm2;
    typename InProjs::Saved in_projs;
    typename OutProjs::Saved out_projs;
    typename Gating::Saved gating;
    Sequence<T, 3 * C.dim> qkv;  // (K, N, 3 dim), rows q | k | v
    Sequence<T, C.dim> mixed;
    Tensor<A, dyn, dyn, C.num_heads> lse;
  };

  static void init(Params& p, Rng& rng) {
    Norm::init(p.norm1, rng);
    InProjs::init(p.in_projs, rng);
    OutProjs::init(p.out_projs, rng);
    Norm::init(p.norm2, rng);
    Gating::init(p.gating, rng);
  }

  /// x, y (K, N, dim)
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const Index n = x.extent(1);
    const auto make = [&] { return be.template make<T, dyn, dyn, C.dim>(K, n); };
    const auto n1 = make(), mixed = make(), h = make(), n2 = make();
    saved.qkv = be.template make<T, dyn, dyn, 3 * C.dim>(K, n);
    saved.mixed = mixed;
    saved.lse = be.template make<A, dyn, dyn, C.num_heads>(n, K);
    Norm::forward(be, p.norm1, x, n1, saved.norm1);
    InProjs::forward(be, p.in_projs, n1, saved.qkv, saved.in_projs);
    const T* qkv = saved.qkv.data();
    attend<B, T>(be, shape, n, K, qkv, qkv + C.dim, qkv + 2 * C.dim, qkv_strides(n), mixed.data(),
                 {C.dim, n * C.dim}, saved.lse.data());
    OutProjs::forward(be, p.out_projs, mixed, h, saved.out_projs);
    add_to(be, x.data(), h.data(), h.size());
    Norm::forward(be, p.norm2, h, n2, saved.norm2);
    Gating::forward(be, p.gating, n2, y, saved.gating);
    add_to(be, h.data(), y.data(), y.size());
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const Index n = dy.extent(1);
    const auto make = [&] { return be.template make<T, dyn, dyn, C.dim>(K, n); };
    const auto dh = make(), part = make();
    Gating::backward(be, p.gating, saved.gating, dy, part, grad.gating);
    Norm::backward(be, p.norm2, saved.norm2, part, dh, grad.norm2);
    add_to(be, dy.data(), dh.data(), dh.size());

    OutProjs::backward(be, p.out_projs, saved.out_projs, dh, part, grad.out_projs);
    const auto dqkv = be.template make<T, dyn, dyn, 3 * C.dim>(K, n);
    const T* qkv = saved.qkv.data();
    T* d = dqkv.data();
    attend_backward<B, T>(be, shape, n, K, qkv, qkv + C.dim, qkv + 2 * C.dim, qkv_strides(n),
                          saved.mixed.data(), part.data(), {C.dim, n * C.dim}, saved.lse.data(), d, d + C.dim,
                          d + 2 * C.dim);
    InProjs::backward(be, p.in_projs, saved.in_projs, dqkv, part, grad.in_projs);
    Norm::backward(be, p.norm1, saved.norm1, part, dx, grad.norm1);
    add_to(be, dh.data(), dx.data(), dx.size());
  }

  /// Step k of one frame: x, y (1, N, dim); qkv (K, N, 3 dim) holds the earlier steps and receives this one.
  static void step(B& be, const Params& p, T* qkv, Index k, Sequence<const T, in> x, Sequence<T, out> y) {
    const auto scope = be.scope();
    const Index n = x.extent(1);
    const auto make = [&] { return be.template make<T, dyn, dyn, C.dim>(1, n); };
    const auto normed = make(), mixed = make(), h = make();
    NoState none;
    if constexpr (requires { be.steps_products(n, p.gating.of[0].linear_in.weight.matrix()); }) {
      const auto& gating = p.gating.of[static_cast<std::size_t>(k)];
      const auto in_proj = p.in_projs.of[static_cast<std::size_t>(k)].weight.matrix();
      if (be.steps_products(n, in_proj) && be.steps_products(n, gating.linear_out.weight.matrix())) {
        be.template product_step<Identity>(x.matrix(), Norm::rows(p.norm1), in_proj,
                                           Matrix<T>{qkv + k * n * 3 * C.dim, n, 3 * C.dim, 3 * C.dim});
        attend_earlier(be, qkv, k, mixed);
        be.template product_step<Identity>(mixed.matrix(), {},
                                           p.out_projs.of[static_cast<std::size_t>(k)].weight.matrix(),
                                           h.matrix(), {.addend = x.data()});
        Gating::Of::residual_step(be, gating, Norm::rows(p.norm2), h, y);
        return;
      }
    }
    Norm::step(be, p.norm1, none, x, normed, Mask{});
    InProjs::step(be, p.in_projs, k, normed,
                  Sequence<T, 3 * C.dim>(qkv + k * n * 3 * C.dim, {1, n, 3 * C.dim}));
    attend_earlier(be, qkv, k, mixed);
    OutProjs::step(be, p.out_projs, k, mixed, h);
    add_to(be, x.data(), h.data(), h.size());
    Norm::step(be, p.norm2, none, h, normed, Mask{});
    Gating::step(be, p.gating, k, normed, y);
    add_to(be, h.data(), y.data(), y.size());
  }

 private:
  static void attend_earlier(B& be, T* qkv, Index k, Sequence<T, C.dim> mixed) {
    const Index n = mixed.extent(1);
    be.rows(n * C.num_heads, detail::DepthAttend<T, A>{qkv, mixed.data(), n, k, C.num_heads, C.head_dim()},
            (K + C.head_dim()) * static_cast<Index>(sizeof(A)), 4 * K * C.head_dim());
  }

  static constexpr AttentionShape shape{C.num_heads, C.num_heads, C.head_dim(), 0};
  static constexpr Strides qkv_strides(Index n) { return {3 * C.dim, n * 3 * C.dim}; }
};

/// Not a block in the sense of core/concepts.hpp: it reads codes as well.
template <DepformerConfig C, class B>
struct Depformer {
  using T = typename B::Scalar;
  static constexpr Index in = C.in_dim, out = C.dim, K = C.steps, head_dim = C.head_dim();
  static constexpr std::size_t layers = static_cast<std::size_t>(C.num_layers);
  static_assert(C.num_layers > 0, "Depformer: at least one layer");

  using In = WithLora<C.lora, Linear<LinearConfig{.in = C.in_dim, .out = C.dim}, B>>;
  using AudioEmbedding = Embedding<EmbeddingConfig{.card = C.card + 1, .dim = C.dim}, B>;
  using TextEmbedding = Embedding<EmbeddingConfig{.card = C.text_card + 1, .dim = C.dim}, B>;
  using Layer = DepformerLayer<C, B>;
  using Kept = std::conditional_t<C.recompute, Recompute<Layer>, Layer>;

  struct Params {
    std::array<typename In::Params, static_cast<std::size_t>(K)> depformer_in;
    std::array<typename AudioEmbedding::Params, static_cast<std::size_t>(K - 1)> depformer_emb;
    typename TextEmbedding::Params depformer_text_emb;
    std::array<typename Layer::Params, layers> depformer_layers;
    static void visit(auto&& f, auto&&... p) {
      f("depformer_in", p.depformer_in...);
      f("depformer_emb", p.depformer_emb...);
      f("depformer_text_emb", p.depformer_text_emb...);
      f("depformer.layers", p.depformer_layers...);
    }
  };
  struct Saved {
    Sequence<const T, in> z;
    std::array<typename In::Saved, static_cast<std::size_t>(K)> depformer_in;
    Streams<const std::int32_t> codes;
    std::array<typename Kept::Saved, layers> layer;
  };
  /// Keys and values of the steps of one frame, of every layer; lives as long as the arena's scope.
  struct Frame {
    Tensor<T, C.num_layers, K, dyn, 3 * C.dim> qkv;
  };

  static void init(Params& p, Rng& rng) {
    for (auto& one : p.depformer_in) In::init(one, rng);
    for (auto& one : p.depformer_emb) AudioEmbedding::init(one, rng);
    TextEmbedding::init(p.depformer_text_emb, rng);
    for (auto& one : p.depformer_layers) Layer::init(one, rng);
  }

  /// y (K, N, dim); z and codes outlive Saved. `hooks`: unit 0 is what makes x, 1 + l layer l.
  static void forward(B& be, const Params& p, Sequence<const T, in> z, Streams<const std::int32_t> codes,
                      Sequence<T, out> y, Saved& saved, const UnitHooks& hooks = {}) {
    const Index n = y.extent(1);
    hooks.read(0);
    saved.z = z;
    saved.codes = codes;
    auto x = be.template make<T, dyn, dyn, C.dim>(K, n);
    for (Index k = 0; k < K; ++k) {
      const auto i = static_cast<std::size_t>(k);
      In::forward(be, p.depformer_in[i], z, like(z, x[k].data()), saved.depformer_in[i]);
      add_codes(be, p, k, stream(codes, k), x[k].data());
    }
    for (std::size_t l = 0; l < layers; ++l) {
      hooks.read(1 + static_cast<Index>(l));
      const auto next = l + 1 == layers ? y : be.template make<T, dyn, dyn, C.dim>(K, n);
      Kept::forward(be, p.depformer_layers[l], x, next, saved.layer[l]);
      x = next;
    }
  }

  /// Adds to dz (B, T, in_dim).
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dz, auto& grad, const UnitHooks& hooks = {}) {
    const auto scope = be.scope();
    const auto a = be.template make<T, dyn, dyn, C.dim>(K, dy.extent(1));
    const auto b = be.template make<T, dyn, dyn, C.dim>(K, dy.extent(1));
    auto d = dy;
    for (std::size_t l = layers; l-- > 0;) {
      const auto dx = d.data() == a.data() ? b : a;
      const auto unit = 1 + static_cast<Index>(l);
      hooks.read_and_add(unit);
      Kept::backward(be, p.depformer_layers[l], saved.layer[l], d, dx, grad.depformer_layers[l]);
      hooks.added(unit);
      d = dx;
    }
    hooks.read_and_add(0);
    for (Index k = 0; k < K; ++k) {
      const auto i = static_cast<std::size_t>(k);
      const auto dx = like(dz, d[k].data());
      const auto low = In::input_backward(be, p.depformer_in[i], dx, dz.matrix(), 1);
      In::weight_backward(be, saved.depformer_in[i], saved.z, dx, low, grad.depformer_in[i]);
      if (k == 0) {
        TextEmbedding::backward(be, stream(saved.codes, k), d[k].data(), grad.depformer_text_emb);
      } else {
        AudioEmbedding::backward(be, stream(saved.codes, k), d[k].data(), grad.depformer_emb[i - 1]);
      }
    }
    hooks.added(0);
  }

  static Frame begin_frame(B& be, Index n) {
    return {be.template make<T, C.num_layers, K, dyn, 3 * C.dim>(n)};
  }

  /// Step k of a frame, in the order 0, 1, ...: z (1, N, in_dim), the N codes of the step before, y (1, N,
  /// dim).
  static void step(B& be, const Params& p, Frame& frame, Index k, Sequence<const T, in> z,
                   CodeRows<std::int32_t> codes, Sequence<T, out> y) {
    const auto scope = be.scope();
    const Index n = y.extent(1);
    auto x = be.template make<T, dyn, dyn, C.dim>(1, n);
    NoState none;
    In::step(be, p.depformer_in[static_cast<std::size_t>(k)], none, z, x, Mask{});
    add_codes(be, p, k, codes, x.data());
    for (std::size_t l = 0; l < layers; ++l) {
      const auto next = l + 1 == layers ? y : be.template make<T, dyn, dyn, C.dim>(1, n);
      Layer::step(be, p.depformer_layers[l], frame.qkv[static_cast<Index>(l)].data(), k, x, next);
      x = next;
    }
  }

 private:
  /// Codes of one stream of (B, streams, T), as rows in the order batch, step.
  static CodeRows<std::int32_t> stream(Streams<const std::int32_t> codes, Index k) {
    const Index steps = codes.extent(2);
    return {codes.data() + k * steps, codes.extent(0), steps, {codes.extent(1) * steps, 1}};
  }

  /// Rows of one step, counted as those of z are.
  template <class Z, class U>
  static Sequence<U, C.dim> like(Sequence<Z, in> z, U* rows) {
    return {rows, {z.extent(0), z.extent(1), C.dim}};
  }

  /// x (N, dim) += emb_k(codes)
  static void add_codes(B& be, const Params& p, Index k, CodeRows<std::int32_t> codes, T* x) {
    const auto i = static_cast<std::size_t>(k);
    if (k == 0) {
      TextEmbedding::forward(be, p.depformer_text_emb, codes, x, Write::add);
    } else {
      AudioEmbedding::forward(be, p.depformer_emb[i - 1], codes, x, Write::add);
    }
  }
};

}  // namespace mttt
