// Moshi: the language model over one text stream and n_q audio streams, of which it speaks the first dep_q.
//
// Formula: x_t = text_emb(c_0) + sum_k emb_k(c_k+1), c the codes delayed and one frame back (lm/delays.hpp);
//          z = out_norm(transformer(x));  text logits = text_linear z;  audio logits_k = linears_k of the
//          depformer's step k, given z and the delayed codes of the same frame.
//          A segment of a recording goes on from the one before it with the fast weights that it left
//          (core/carry.hpp) and its last 1 + max_delay() frames of codes, in whose place it reads the initial
//          codes otherwise. Attention starts anew. The last delay_k frames of a stream in a segment have no
//          prediction.
// Shapes:  codes (B, 1 + n_q, T), stream 0 text, 1 to dep_q Moshi's voice, the rest the user's;
//          text logits (B, T, text_card), audio logits (dep_q, B * T, card), rows (b, t) within a stream;
//          masks (1, B, T) and (dep_q, B, T). Logits are aligned with the codes that they predict.
// Units:   frames.
// Errors:  a code without an embedding; a config that contradicts itself fails to compile.
// Not supported: conditioning, several text streams, extra heads, classifier-free guidance.
// Source:  Moshi (arXiv 2410.00037); kyutai-labs/moshi models/lm.py `LMModel`.
#pragma once

#include "mttt/lm/delays.hpp"
#include "mttt/lm/depformer.hpp"
#include "mttt/lm/sampler.hpp"
#include "mttt/lm/temporal.hpp"

namespace mttt {

struct MoshiConfig {
  Index n_q, dep_q;       // audio streams read; of these spoken
  Index card, text_card;  // codes of an audio stream, of the text stream
  Delays delays;          // frames: text, then the n_q audio streams
  TemporalConfig temporal;
  DepformerConfig depformer;
  LoraConfig lora{.rank = 0, .scaling = 2, .frozen = false};  // adapters of all linear layers; 0: none
  std::int32_t existing_text_padding_id = 3, existing_text_end_padding_id = 0;

  constexpr Index streams() const { return 1 + n_q; }
  constexpr Index spoken_streams() const { return 1 + dep_q; }
  constexpr Index heard_streams() const { return n_q - dep_q; }
  constexpr Index max_delay() const { return delays.largest(streams()); }
  constexpr InitialCodes initial() const {
    return {static_cast<std::int32_t>(text_card), static_cast<std::int32_t>(card)};
  }
  constexpr bool delays_fit() const {
    for (Index k = 0; k < max_streams; ++k) {
      if (delays.of[k] < 0 || (k >= streams() && delays.of[k] != 0)) return false;
    }
    return true;
  }
  constexpr bool padding_fits() const {
    return existing_text_padding_id >= 0 && existing_text_padding_id < text_card &&
           existing_text_end_padding_id >= 0 && existing_text_end_padding_id < text_card;
  }
  constexpr DepformerConfig depformer_config() const {
    DepformerConfig config = depformer;
    config.steps = dep_q;
    config.in_dim = temporal.dim;
    config.card = card;
    config.text_card = text_card;
    config.lora = lora;
    return config;
  }
  constexpr TemporalConfig temporal_config() const {
    TemporalConfig config = temporal;
    config.lora = lora;
    return config;
  }
  /// The same model that trades time for memory in training, or does not; the numbers are the same.
  constexpr MoshiConfig with_recompute(bool on) const {
    MoshiConfig config = *this;
    config.temporal.recompute = config.depformer.recompute = on;
    return config;
  }
  /// The same model with adapters. What is frozen is the trainer's to say.
  constexpr MoshiConfig with_lora(Index rank, double scaling = 2) const {
    MoshiConfig config = *this;
    config.lora = {.rank = rank, .scaling = scaling, .frozen = false};
    return config;
  }
  /// The same model as a CPU streams it fastest, see TttConfig. It loads the same files.
  constexpr MoshiConfig for_cpu_streams() const {
    MoshiConfig config = *this;
    config.temporal = temporal.for_cpu_streams();
    return config;
  }
  /// The same model without TTT: what the gates at 0 must reproduce.
  constexpr MoshiConfig without_ttt() const {
    MoshiConfig config = *this;
    config.temporal = temporal.without_ttt();
    return config;
  }
};

namespace detail {

/// Row (k, b, t) of y is row (k, b, t + sign * delay) of x, 0 where that is outside.
template <class T>
struct ShiftRow {
  const T* x;
  T* y;
  Delays delays;
  Index first, batch, steps, width, sign;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index t = row % steps, from = t + sign * delays.of[first + row / steps / batch];
    const T* in = x + (row - t + from) * width;
    T* out = y + row * width;
    if (from < 0 || from >= steps) {
      team.for_each(width, [=](Index i) { out[i] = T(0); });
    } else {
      team.for_each(width, [=](Index i) { out[i] = in[i]; });
    }
  }
};

}  // namespace detail

template <MoshiConfig C, class B>
struct Moshi {
  static_assert(C.n_q >= 1 && C.n_q < max_streams, "MoshiConfig: n_q must be 1 to max_streams - 1");
  static_assert(C.dep_q >= 1 && C.dep_q <= C.n_q, "MoshiConfig: dep_q must be 1 to n_q");
  static_assert(C.card >= 1 && C.text_card >= 1, "MoshiConfig: card and text_card must be positive");
  static_assert(C.delays_fit(), "MoshiConfig: delays must not be negative, nor more than 1 + n_q");
  static_assert(C.padding_fits(), "MoshiConfig: the padding ids must be text codes");

  using T = typename B::Scalar;
  static constexpr MoshiConfig config = C;
  static constexpr Index dim = C.temporal.dim, depth = C.depformer.dim, K = C.dep_q;

  using Transformer = Temporal<C.temporal_config(), B>;
  using AudioEmbedding = Embedding<EmbeddingConfig{.card = C.card + 1, .dim = dim}, B>;
  using TextEmbedding = Embedding<EmbeddingConfig{.card = C.text_card + 1, .dim = dim}, B>;
  using OutNorm = RmsNorm<NormConfig{.dim = dim, .eps = C.temporal.norm_eps}, B>;
  using TextLinear = WithLora<C.lora, Linear<LinearConfig{.in = dim, .out = C.text_card}, B>>;
  using Depth = Depformer<C.depformer_config(), B>;
  using Linears = PerStep<WithLora<C.lora, Linear<LinearConfig{.in = depth, .out = C.card}, B>>, K, B>;

  struct Params {
    static constexpr bool frozen_without_gradient = true;  // see train/trainer.hpp
    std::array<typename AudioEmbedding::Params, static_cast<std::size_t>(C.n_q)> emb;
    typename TextEmbedding::Params text_emb;
    typename Transformer::Params transformer;
    typename OutNorm::Params out_norm;
    typename TextLinear::Params text_linear;
    typename Depth::Params depformer;
    typename Linears::Params linears;
    static void visit(auto&& f, auto&&... p) {
      f("emb", p.emb...);
      f("text_emb", p.text_emb...);
      f("transformer", p.transformer...);
      f("out_norm", p.out_norm...);
      f("text_linear", p.text_linear...);
      f("", p.depformer...);  // depformer_in, depformer_emb, depformer_text_emb, depformer.layers
      f("linears", p.linears...);
    }
    static void visit_units(auto&& f, auto& p) {  // core/units.hpp
      f(std::tie(p.emb, p.text_emb));
      Transformer::Params::visit([&](std::string_view, auto& layer) { f(layer); }, p.transformer);
      f(p.out_norm);
      f(p.text_linear);
      f(std::tie(p.depformer.depformer_in, p.depformer.depformer_emb, p.depformer.depformer_text_emb));
      for (auto& layer : p.depformer.depformer_layers) f(layer);
      f(p.linears);
    }
  };
  /// The numbers of the units; 0 are the embeddings.
  static constexpr Index first_layer = 1, norm_unit = first_layer + C.temporal.num_layers,
                         text_unit = norm_unit + 1, depth_unit = text_unit + 1,
                         linears_unit = depth_unit + 1 + C.depformer.num_layers;
  using Carried = typename Transformer::Carried;
  using CarriedGradient = typename Transformer::CarriedGradient;
  static constexpr Index carry_multiple = Transformer::carry_multiple;

  struct Saved {
    Streams<const std::int32_t> inputs, delayed;  // (B, 1 + n_q, T): what is read, what is predicted
    typename Transformer::Saved transformer;
    typename OutNorm::Saved out_norm;
    typename TextLinear::Saved text_linear;
    typename Depth::Saved depformer;
    typename Linears::Saved linears;
  };
  /// In the arena. A backward pass may overwrite the logits with their own gradient.
  struct Output {
    Sequence<T, C.text_card> text_logits;  // (B, T, text_card)
    Sequence<T, C.card> logits;            // (dep_q, B * T, card)
    Streams<std::uint8_t> text_mask;       // (1, B, T)
    Streams<std::uint8_t> mask;            // (dep_q, B, T)
  };

  static void init(Params& p, Rng& rng) {
    for (auto& one : p.emb) AudioEmbedding::init(one, rng);
    TextEmbedding::init(p.text_emb, rng);
    Transformer::init(p.transformer, rng);
    OutNorm::init(p.out_norm, rng);
    TextLinear::init(p.text_linear, rng);
    Depth::init(p.depformer, rng);
    Linears::init(p.linears, rng);
  }

  /// Step k of the depformer's frame, in the order 0, 1, ..., and the logits of its code: z (N, 1, dim), the N
  /// codes of the step before, logits (1, N, card).
  static void depth_step(B& be, const Params& p, typename Depth::Frame& frame, Index k,
                         Sequence<const T, dim> z, CodeRows<std::int32_t> before,
                         Sequence<T, C.card> logits) {
    const auto scope = be.scope();
    const auto y = be.template make<T, dyn, dyn, depth>(1, z.extent(0) * z.extent(1));
    Depth::step(be, p.depformer, frame, k, z, before, y);
    Linears::step(be, p.linears, k, y, logits);
  }

  /// All steps of one session's frame, with `draw` of each code, in one kernel: z (1, 1, dim), codes (1 + K), the
  /// text's first, as are `forced`, which may be null; logits (K, 1, card) may be empty. False, and nothing done,
  /// where the backend has none.
  static bool depth_frame(B& be, const Params& p, Sequence<const T, dim> z, std::int32_t* codes,
                          const std::int32_t* forced, Sequence<T, C.card> logits,
                          const detail::SampleRow<T>& draw) {
    if constexpr (C.lora.rank == 0 && requires(DepthAtOnce frame) {
                    be.template depth_frame<dim, depth, C.depformer.hidden, Depth::head_dim, C.card>(frame);
                  }) {
      DepthAtOnce frame{z.data(), logits.data(), codes, forced, ungenerated_code, draw, {}, {}};
      const auto& d = p.depformer;
      using Norm = typename Depth::Layer::Norm;
      for (std::size_t l = 0; l < Depth::layers; ++l)
        frame.norms[l] = {Norm::rows(d.depformer_layers[l].norm1), Norm::rows(d.depformer_layers[l].norm2)};
      for (std::size_t k = 0; k < frame.steps.size(); ++k) frame.steps[k] = depth_weights(p, k);
      return be.template depth_frame<dim, depth, C.depformer.hidden, Depth::head_dim, C.card>(frame);
    } else {
      return false;
    }
  }

  static constexpr CodeRange codes_known{zero_code, C.initial().text, C.initial().audio};

  /// `bad_code`, if given, receives what find_bad_code finds, for a caller who refuses it later
  /// (refuse_bad_code); such codes read as none. Else the host waits here, and refuses them. `before`
  /// (B, 1 + n_q, any number) are the frames that come before a segment's codes. They were codes themselves
  /// and are not checked again; for a session that starts anew, let them be the initial codes.
  static Output forward(B& be, const Params& p, Streams<const std::int32_t> codes, Saved& saved,
                        Index* bad_code = nullptr, const Carry<Carried>& carry = {},
                        Streams<const std::int32_t> before = {}, const UnitHooks& hooks = {}) {
    const Index batch = codes.extent(0), steps = codes.extent(2);
    if (codes.extent(1) != C.streams()) {
      fail("Moshi: codes", std::to_string(codes.extent(1)) + " streams", std::to_string(C.streams()),
           "pass the text stream and n_q audio streams");
    }
    if (before.data() != nullptr && (before.extent(0) != batch || before.extent(1) != C.streams())) {
      fail("Moshi: codes before a segment",
           std::to_string(before.extent(0)) + " sessions of " + std::to_string(before.extent(1)) + " streams",
           std::to_string(batch) + " of " + std::to_string(C.streams()),
           "pass the last frames of the same recordings");
    }
    check_carry(be, carry, batch, carry_multiple, bad_code == nullptr);
    bad_code == nullptr ? check_streams(be, "Moshi: codes", codes, 0, codes_known)
                        : find_bad_code(be, codes, 0, codes_known, Mask{}, bad_code);
    const auto inputs = be.template make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), steps);
    const auto delayed = be.template make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), steps);
    delay_codes(be, codes, C.delays, C.initial(), 1, inputs, before);
    delay_codes(be, codes, C.delays, C.initial(), 0, delayed, before);
    saved.inputs = inputs;
    saved.delayed = delayed;

    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(batch, steps); };
    const auto x = make(), h = make(), z = make();
    hooks.read(0);
    embed(be, p, inputs, x);
    Transformer::forward(be, p.transformer, x, h, saved.transformer, carry, hooks.from(first_layer));
    hooks.read(norm_unit);
    OutNorm::forward(be, p.out_norm, h, z, saved.out_norm);
    Output out;
    out.text_logits = be.template make<T, dyn, dyn, C.text_card>(batch, steps);
    hooks.read(text_unit);
    TextLinear::forward(be, p.text_linear, shifted<0, 1>(be, z, batch, +1), out.text_logits,
                        saved.text_linear);
    const auto y = be.template make<T, dyn, dyn, depth>(K, batch * steps);
    Depth::forward(be, p.depformer, z, delayed, y, saved.depformer, hooks.from(depth_unit));

    out.logits = be.template make<T, dyn, dyn, C.card>(K, batch * steps);
    out.text_mask = be.template make<std::uint8_t, dyn, dyn, dyn>(1, batch, steps);
    out.mask = be.template make<std::uint8_t, dyn, dyn, dyn>(K, batch, steps);
    hooks.read(linears_unit);
    Linears::forward(be, p.linears, shifted<1, K>(be, y, batch, +1), out.logits, saved.linears);
    delay_mask(be, codes, C.delays, 0, out.text_mask);
    delay_mask(be, codes, C.delays, 1, out.mask);
    return out;
  }

  static void backward(B& be, const Params& p, const Saved& saved,
                       Sequence<const T, C.text_card> dtext_logits, Sequence<const T, C.card> dlogits,
                       auto& grad, const CarryGradient<CarriedGradient>& carry = {},
                       const UnitHooks& hooks = {}) {
    const auto scope = be.scope();
    const Index batch = dtext_logits.extent(0), steps = dtext_logits.extent(1);
    const auto make = [&] { return be.template make<T, dyn, dyn, dim>(batch, steps); };
    const auto part = make();
    hooks.read_and_add(text_unit);
    TextLinear::backward(be, p.text_linear, saved.text_linear, dtext_logits, part, grad.text_linear);
    hooks.added(text_unit);
    const auto dz = shifted<0, 1>(be, part, batch, -1);
    const auto dys = be.template make<T, dyn, dyn, depth>(K, batch * steps);
    hooks.read_and_add(linears_unit);
    Linears::backward(be, p.linears, saved.linears, dlogits, dys, grad.linears);
    hooks.added(linears_unit);
    Depth::backward(be, p.depformer, saved.depformer, shifted<1, K>(be, dys, batch, -1), dz, grad.depformer,
                    hooks.from(depth_unit));
    const bool embeddings = !all_left_out(grad.text_emb) || !all_left_out(grad.emb);
    const auto dh = make(), dx = embeddings ? make() : Sequence<T, dim>{};
    hooks.read_and_add(norm_unit);
    OutNorm::backward(be, p.out_norm, saved.out_norm, dz, dh, grad.out_norm);
    hooks.added(norm_unit);
    Transformer::backward(be, p.transformer, saved.transformer, dh, dx, grad.transformer, carry,
                          hooks.from(first_layer));
    if (!embeddings) return;
    hooks.add(0);
    TextEmbedding::backward(be, stream(saved.inputs, 0), dx.data(), grad.text_emb);
    for (std::size_t k = 0; k < grad.emb.size(); ++k)
      AudioEmbedding::backward(be, stream(saved.inputs, static_cast<Index>(k) + 1), dx.data(), grad.emb[k]);
    hooks.added(0);
  }

  /// x (B, T, dim): the sum of the embeddings of codes (B, 1 + n_q, T).
  static void embed(B& be, const Params& p, Streams<const std::int32_t> codes, Sequence<T, dim> x) {
    TextEmbedding::forward(be, p.text_emb, stream(codes, 0), x.data());
    for (std::size_t k = 0; k < p.emb.size(); ++k)
      AudioEmbedding::forward(be, p.emb[k], stream(codes, static_cast<Index>(k) + 1), x.data(), Write::add);
  }

 private:
  using DepthMatrix = decltype(std::declval<const Weight<B, depth, depth>&>().matrix());
  using DepthAtOnce =
      DepthFrame<T, DepthMatrix, detail::SampleRow<T>, Depth::layers, static_cast<std::size_t>(K)>;
  static DepthStep<T, DepthMatrix, Depth::layers> depth_weights(const Params& p, std::size_t k) {
    const auto& d = p.depformer;
    DepthStep<T, DepthMatrix, Depth::layers> step{
        k == 0 ? d.depformer_text_emb.weight.data() : d.depformer_emb[k - 1].weight.data(),
        k == 0 ? C.text_card + 1 : C.card + 1,
        d.depformer_in[k].weight.matrix(),
        p.linears.of[k].weight.matrix(),
        {}};
    for (std::size_t l = 0; l < Depth::layers; ++l) {
      const auto& layer = d.depformer_layers[l];
      step.layers_of[l] = {layer.in_projs.of[k].weight.matrix(), layer.out_projs.of[k].weight.matrix(),
                           layer.gating.of[k].linear_in.weight.matrix(),
                           layer.gating.of[k].linear_out.weight.matrix()};
    }
    return step;
  }

  static CodeRows<std::int32_t> stream(Streams<const std::int32_t> codes, Index k) {
    const Index steps = codes.extent(2);
    return {codes.data() + k * steps, codes.extent(0), steps, {codes.extent(1) * steps, 1}};
  }

  /// Rows (Count, B, T) of streams [First, First + Count), each moved by its delay: +1 to the time of the
  /// codes, -1 back. x itself where no stream is delayed.
  template <Index First, Index Count, Index Width>
  static Sequence<T, Width> shifted(B& be, Sequence<T, Width> x, Index batch, Index sign) {
    constexpr bool delayed = [] {
      for (Index k = First; k < First + Count; ++k) {
        if (C.delays.of[k] != 0) return true;
      }
      return false;
    }();
    if constexpr (!delayed) {
      return x;
    } else {
      const auto y = be.template make<T, dyn, dyn, Width>(x.extent(0), x.extent(1));
      const Index rows = x.extent(0) * x.extent(1);
      be.rows(
          rows,
          detail::ShiftRow<T>{x.data(), y.data(), C.delays, First, batch, rows / Count / batch, Width, sign},
          0, Width);
      return y;
    }
  }
};

}  // namespace mttt
