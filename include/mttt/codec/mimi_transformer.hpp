// MimiTransformer: the pre-norm transformer on either side of Mimi's quantiser.
//
// Formula: a layer is  h = x + layer_scale_1 * attention(norm1(x)),  y = h + layer_scale_2 * ffn(norm2(h)),
//          with LayerNorm, rotary sliding-window attention and an exact GELU.
// Shapes:  x, y (B, T, d_model). State: the attention's ring of `context` steps.
// Units:   steps of the encoder frame rate (25 Hz in Mimi), two of which make a frame.
// Errors:  none.
// Not supported: other norms, gatings and positions than Mimi's.
// Source:  kyutai-labs/moshi modules/transformer.py `ProjectedTransformer`, `StreamingTransformerLayer`;
//          models/loaders.py `_transformer_kwargs`.
#pragma once

#include "mttt/backend/fused.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/feed_forward.hpp"
#include "mttt/nn/layer_scale.hpp"
#include "mttt/nn/named.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/sequential.hpp"

namespace mttt {

struct MimiTransformerConfig {
  Index d_model = 512, num_heads = 8, num_layers = 8, dim_feedforward = 2048, context = 250;
  double layer_scale = 0.01, max_period = 10000;
};

template <MimiTransformerConfig C, class B>
struct MimiTransformerLayer {
  using T = typename B::Scalar;
  static constexpr Index in = C.d_model, out = C.d_model;
  static_assert(C.context > 0, "mttt: MimiTransformer streams, so its context must be finite");

  static constexpr double eps = 1e-5;
  using Norm = LayerNorm<NormConfig{.dim = C.d_model, .eps = eps}, B>;
  using SelfAttention = Attention<
      AttentionConfig{
          .dim = C.d_model, .num_heads = C.num_heads, .context = C.context, .max_period = C.max_period},
      B>;
  using Scale = LayerScale<LayerScaleConfig{.dim = C.d_model, .init = C.layer_scale}, B>;
  using Ffn = FeedForward<FeedForwardConfig{.dim = C.d_model, .hidden = C.dim_feedforward}, B>;

  struct Params {
    typename Norm::Params norm1, norm2;
    typename SelfAttention::Params self_attn;
    typename Scale::Params layer_scale_1, layer_scale_2;
    typename Ffn::Params ffn;
    static void visit(auto&& f, auto&&... p) {
      f("self_attn", p.self_attn...);
      f("norm1", p.norm1...);
      f("norm2", p.norm2...);
      f("", p.ffn...);  // linear1 and linear2 belong to the layer itself
      f("layer_scale_1", p.layer_scale_1...);
      f("layer_scale_2", p.layer_scale_2...);
    }
  };
  struct Saved {
    typename Norm::Saved norm1, norm2;
    typename SelfAttention::Saved self_attn;
    typename Scale::Saved layer_scale_1, layer_scale_2;
    typename Ffn::Saved ffn;
  };
  struct State {
    typename SelfAttention::State self_attn;
    static void visit(auto&& f, auto&&... s) { f("self_attn", s.self_attn...); }
  };

  static void init(Params& p, Rng& rng) {
    Norm::init(p.norm1, rng);
    Norm::init(p.norm2, rng);
    SelfAttention::init(p.self_attn, rng);
    Scale::init(p.layer_scale_1, rng);
    Scale::init(p.layer_scale_2, rng);
    Ffn::init(p.ffn, rng);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const auto make = [&] { return be.template make<T, dyn, dyn, in>(x.extent(0), x.extent(1)); };
    const auto normed = make(), attended = make(), h = make(), normed_h = make(), fed = make();
    Norm::forward(be, p.norm1, x, normed, saved.norm1);
    SelfAttention::forward(be, p.self_attn, normed, attended, saved.self_attn);
    Scale::forward(be, p.layer_scale_1, attended, h, saved.layer_scale_1);
    add_to(be, x.data(), h.data(), h.size());
    Norm::forward(be, p.norm2, h, normed_h, saved.norm2);
    Ffn::forward(be, p.ffn, normed_h, fed, saved.ffn);
    Scale::forward(be, p.layer_scale_2, fed, y, saved.layer_scale_2);
    add_to<B, T>(be, h.data(), y.data(), y.size());
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const auto make = [&] { return be.template make<T, dyn, dyn, in>(dy.extent(0), dy.extent(1)); };
    const auto da = make(), db = make(), dh = make();
    Scale::backward(be, p.layer_scale_2, saved.layer_scale_2, dy, da, grad.layer_scale_2);
    Ffn::backward(be, p.ffn, saved.ffn, da, db, grad.ffn);
    Norm::backward(be, p.norm2, saved.norm2, db, dh, grad.norm2);
    add_to(be, dy.data(), dh.data(), dh.size());
    Scale::backward(be, p.layer_scale_1, saved.layer_scale_1, dh, da, grad.layer_scale_1);
    SelfAttention::backward(be, p.self_attn, saved.self_attn, da, db, grad.self_attn);
    Norm::backward(be, p.norm1, saved.norm1, db, dx, grad.norm1);
    add_to<B, T>(be, dh.data(), dx.data(), dx.size());
  }

  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    const auto scope = be.scope();
    const auto make = [&] { return be.template make<T, dyn, dyn, in>(x.extent(0), x.extent(1)); };
    const auto a = make(), b = make(), h = make();
    if constexpr (requires { be.template product_step<Gelu>(x.matrix(), {}, x.matrix(), y.matrix()); }) {
      const auto qkv = be.template make<T, dyn, dyn, SelfAttention::qkv_dim>(x.extent(0), x.extent(1));
      const auto hidden = be.template make<T, dyn, dyn, C.dim_feedforward>(x.extent(0), x.extent(1));
      be.template product_step<Identity>(x.matrix(), rows(p.norm1), p.self_attn.in_proj.weight.matrix(),
                                         qkv.matrix());
      SelfAttention::mix_step(be, state.self_attn, qkv, a, mask);
      be.template product_step<Identity>(a.matrix(), {}, p.self_attn.out_proj.weight.matrix(), h.matrix(),
                                         {.scale = p.layer_scale_1.scale.data(), .addend = x.data()});
      be.template product_step<Gelu>(h.matrix(), rows(p.norm2), p.ffn.linear1.matrix(), hidden.matrix());
      be.template product_step<Identity>(hidden.matrix(), {}, p.ffn.linear2.matrix(), y.matrix(),
                                         {.scale = p.layer_scale_2.scale.data(), .addend = h.data()});
      return;
    }
    NoState none;
    Norm::step(be, p.norm1, none, x, a, mask);
    SelfAttention::step(be, p.self_attn, state.self_attn, a, b, mask);
    Scale::step(be, p.layer_scale_1, none, b, h, mask);
    add_to(be, x.data(), h.data(), h.size());
    Norm::step(be, p.norm2, none, h, a, mask);
    Ffn::step(be, p.ffn, none, a, b, mask);
    Scale::step(be, p.layer_scale_2, none, b, y, mask);
    add_to<B, T>(be, h.data(), y.data(), y.size());
  }
  static void reset(B& be, const Params& p, State& state, Mask mask) {
    SelfAttention::reset(be, p.self_attn, state.self_attn, mask);
  }

 private:
  static NormRows<T> rows(const typename Norm::Params& p) { return {p.weight.data(), p.bias.data(), eps}; }
};

template <MimiTransformerConfig C, class B>
using MimiTransformer = Named<"transformer.layers", Repeat<C.num_layers, MimiTransformerLayer<C, B>>>;

}  // namespace mttt
