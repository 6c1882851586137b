// The model: a language model of the library's blocks. tokens -> Embedding -> Temporal -> RmsNorm -> Linear.
//
// Shapes:  tokens (B, T); logits (B, T, card). State per session: that of Temporal.
// Errors:  those of the blocks.
#pragma once

#include "mttt/lm/temporal.hpp"
#include "mttt/nn/embedding.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/train/loss.hpp"
#include "mttt/train/trainer.hpp"
#include "task.hpp"

namespace why {

template <TemporalConfig C, class B>
struct Recaller {
  using T = typename B::Scalar;
  static constexpr Index dim = C.dim;
  using Codes = Embedding<EmbeddingConfig{.card = card, .dim = dim}, B>;
  using Transformer = Temporal<C, B>;
  using OutNorm = RmsNorm<NormConfig{.dim = dim}, B>;
  using Head = Linear<LinearConfig{.in = dim, .out = card}, B>;

  struct Params {
    typename Codes::Params emb;
    typename Transformer::Params transformer;
    typename OutNorm::Params out_norm;
    typename Head::Params head;
    static void visit(auto&& f, auto&&... p) {
      f("emb", p.emb...), f("transformer", p.transformer...);
      f("out_norm", p.out_norm...), f("head", p.head...);
    }
  };
  struct Saved {
    typename Transformer::Saved transformer;
    typename OutNorm::Saved out_norm;
    typename Head::Saved head;
  };
  using State = typename Transformer::State;

  static void init(Params& p, Rng& rng) {
    Codes::init(p.emb, rng);
    Transformer::init(p.transformer, rng);
    OutNorm::init(p.out_norm, rng);
    Head::init(p.head, rng);
  }

  static Sequence<T, card> forward(B& be, const Params& p, Tensor<const std::int32_t, dyn, dyn> tokens,
                                   Saved& saved) {
    const Index batch = tokens.extent(0), steps = tokens.extent(1);
    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(batch, steps); };
    const auto x = make(), y = make(), z = make();
    const auto logits = be.template make<T, dyn, dyn, card>(batch, steps);
    Codes::forward(be, p.emb, CodeRows<std::int32_t>(tokens.data(), batch, steps, {steps, 1}), x.data());
    Transformer::forward(be, p.transformer, x, y, saved.transformer);
    OutNorm::forward(be, p.out_norm, y, z, saved.out_norm);
    Head::forward(be, p.head, z, logits, saved.head);
    return logits;
  }

  /// Adds the gradient of the mean loss.
  static MicroBatch loss_and_gradient(B& be, const Params& p, const Streamed& data, auto& grad) {
    const auto scope = be.scope();
    const Index batch = data.tokens.extent(0), steps = data.tokens.extent(1), rows = batch * steps;
    Saved saved;
    const auto logits = forward(be, p, data.tokens, saved);
    const auto result =
        cross_entropy(be, logits, Tensor<const std::int32_t, dyn>(data.targets.data(), {rows}),
                      Tensor<const float, dyn>(data.weights.data(), {rows}), logits);
    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(batch, steps); };
    const auto dz = make(), dy = make(), dx = make();
    Head::backward(be, p.head, saved.head, logits, dz, grad.head);
    OutNorm::backward(be, p.out_norm, saved.out_norm, dz, dy, grad.out_norm);
    Transformer::backward(be, p.transformer, saved.transformer, dy, dx, grad.transformer);
    Codes::backward(be, CodeRows<std::int32_t>(data.tokens.data(), batch, steps, {steps, 1}), dx.data(),
                    grad.emb);
    return {result.loss, rows};
  }

  /// The logits (B, 1, card) of token t of all streams.
  static Sequence<T, card> step(B& be, const Params& p, State& state,
                                Tensor<const std::int32_t, dyn, dyn> tokens, Index t) {
    const Index batch = tokens.extent(0);
    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(batch, 1); };
    const auto x = make(), y = make(), z = make();
    const auto logits = be.template make<T, dyn, dyn, card>(batch, 1);
    NoState none;
    Codes::forward(be, p.emb, CodeRows<std::int32_t>(tokens.data() + t, batch, 1, {tokens.extent(1), 1}),
                   x.data());
    Transformer::step(be, p.transformer, state, x, y, Mask{});
    OutNorm::step(be, p.out_norm, none, y, z, Mask{});
    Head::step(be, p.head, none, z, logits, Mask{});
    return logits;
  }
};

template <class B>
void add_hits(B& be, const Streamed& data, const std::uint8_t* hits, Accuracy& to) {
  const auto n = static_cast<std::size_t>(data.tokens.size());
  std::vector<std::int32_t> distances(n);
  std::vector<std::uint8_t> hit(n);
  be.to_host(data.distances.data(), distances.data(), data.tokens.size());
  be.to_host(hits, hit.data(), data.tokens.size());
  for (std::size_t i = 0; i < n; ++i) to.add(distances[i], hit[i] != 0);
}

/// Accuracy of a forward pass over whole streams.
template <class Model, class B>
void add_offline(B& be, const typename Model::Params& p, const Streamed& data, Accuracy& to) {
  const auto scope = be.scope();
  typename Model::Saved saved;
  const auto logits = Model::forward(be, p, data.tokens, saved);
  const auto hits = be.template make<std::uint8_t, dyn, dyn>(data.tokens.extent(0), data.tokens.extent(1));
  const Index steps = data.tokens.extent(1);
  be.for_each(hits.size(),
              Hit<typename B::Scalar>{logits.data(), data.targets.data(), hits.data(), steps, 0, steps});
  add_hits(be, data, hits.data(), to);
}

/// Accuracy of a stream that is heard token by token.
template <class Model, class B>
void add_streamed(B& be, const typename Model::Params& p, const Streamed& data, Accuracy& to) {
  const auto scope = be.scope();
  const Index batch = data.tokens.extent(0), steps = data.tokens.extent(1);
  const auto hits = be.template make<std::uint8_t, dyn, dyn>(batch, steps);
  Store<typename Model::State, B> state(be, batch);
  Model::Transformer::reset(be, p.transformer, *state, Mask{});
  for (Index t = 0; t < steps; ++t) {
    const auto of_step = be.scope();
    const auto logits = Model::step(be, p, *state, data.tokens, t);
    be.for_each(batch, Hit<typename B::Scalar>{logits.data(), data.targets.data(), hits.data(), steps, t, 1});
  }
  add_hits(be, data, hits.data(), to);
}

}  // namespace why
