// Temporal: Moshi's temporal transformer, with TTT layers where the config wants them.
//
// Formula: h = x + mix(norm1(x)),  y = h + gating(norm2(h)), where mix(n) is
//            attention(n)                                  in a layer without TTT; with TTT, by placement:
//            attention(n) + tanh(alpha) ttt(n)             parallel: TTT hears what the window has lost
//            a + tanh(alpha) ttt(a),  a = attention(n)     after_attention
//            attention(n + tanh(alpha) ttt(n))             before_attention
//            ttt(n)                                        instead_of_attention
//          In training a segment may start from the fast weights that the one before it left
//          (core/carry.hpp). Attention carries nothing: its window starts anew with every segment. Its RoPE
//          turns by the distance of two frames alone, so that it is all one whether frames are counted from
//          the segment's start or the recording's; that of TTT turns by the place in the mini-batch, which is
//          0 where a segment starts.
// Shapes:  x, y (B, T, dim). State per session: key-value rings of `context` steps and fast weights.
// Units:   contexts and positions in frames (80 ms each).
// Errors:  a config that contradicts itself fails to compile.
// Not supported: LayerScale, cross attention (the published Moshi has neither); keys and values of an earlier
//          segment in training.
// Source:  kyutai-labs/moshi modules/transformer.py StreamingTransformerLayer; placements: ttt-video-dit
//          SeqModelingBlock (after_attention), ttt-lm-pytorch Block (instead_of_attention).
#pragma once

#include <array>

#include "mttt/core/units.hpp"
#include "mttt/nn/attention.hpp"
#include "mttt/nn/gating.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/nn/recompute.hpp"
#include "mttt/ttt/gate.hpp"
#include "mttt/ttt/ttt.hpp"

namespace mttt {

enum class Placement { after_attention, before_attention, parallel, instead_of_attention };

/// A set of layers, one bit each.
struct LayerSet {
  std::uint64_t bits = 0;
  constexpr bool contains(Index layer) const { return (bits >> layer & 1) != 0; }
  /// Layers first to last, both included.
  static constexpr LayerSet range(Index first, Index last) {
    LayerSet set;
    for (Index i = first; i <= last; ++i) set.bits |= std::uint64_t{1} << i;
    return set;
  }
};

struct TemporalConfig {
  Index dim, num_heads, num_layers;
  Index hidden;   // of the gating, see gating_hidden
  Index context;  // frames
  Index kv_repeat = 1;
  double max_period = 10000;
  double norm_eps = 1e-8;

  LayerSet ttt_layers = {};
  Placement placement = Placement::parallel;
  Index ttt_layer_context = 0;  // frames that attention sees in layers with TTT; 0: as in the others
  double initial_gating_alpha = 0.1;
  TttConfig ttt = {.dim = 0, .num_heads = 0};  // dim 0: that of the transformer; num_heads 0: likewise
  LoraConfig lora{.rank = 0};                  // adapters of attention and gating
  bool recompute = false;  // in training a layer keeps its input alone and runs forward again in backward

  constexpr bool has_ttt(Index layer) const { return ttt_layers.contains(layer); }
  constexpr Index num_ttt_layers() const {
    Index n = 0;
    for (Index i = 0; i < num_layers; ++i) n += ttt_layers.contains(i);
    return n;
  }
  constexpr TttConfig ttt_config() const {
    TttConfig config = ttt;
    config.dim = dim;
    if (config.num_heads == 0) config.num_heads = num_heads;
    return config;
  }
  /// The same transformer that trades time for memory, or does not; the numbers are the same.
  constexpr TemporalConfig with_recompute(bool on) const {
    TemporalConfig config = *this;
    config.recompute = on;
    return config;
  }
  constexpr AttentionConfig attention(bool beside_ttt) const {
    return {.dim = dim,
            .num_heads = num_heads,
            .kv_repeat = kv_repeat,
            .context = beside_ttt && ttt_layer_context > 0 ? ttt_layer_context : context,
            .max_period = max_period,
            .lora = lora};
  }
  /// The same transformer with the TttMemory that a CPU streams fastest with.
  constexpr TemporalConfig for_cpu_streams() const {
    TemporalConfig config = *this;
    config.ttt.memory = ttt_config().for_cpu_streams().memory;
    return config;
  }
  /// The same transformer without TTT: what the gates at 0 must reproduce.
  constexpr TemporalConfig without_ttt() const {
    TemporalConfig config = *this;
    config.ttt_layers = {};
    return config;
  }
};

/// One layer, with or without TTT.
template <TemporalConfig C, bool with_ttt, class B>
struct TemporalLayer {
  using T = typename B::Scalar;
  static constexpr Index in = C.dim, out = C.dim, dim = C.dim;
  static constexpr Placement placement = C.placement;
  static constexpr bool attends = !with_ttt || placement != Placement::instead_of_attention;

  using Norm = RmsNorm<NormConfig{.dim = C.dim, .eps = C.norm_eps}, B>;
  using SelfAttention = Attention<C.attention(with_ttt), B>;
  using Learner = Ttt<C.ttt_config(), B>;
  using GatedLearner = Gated<GateConfig{.initial_alpha = C.initial_gating_alpha}, Learner, B>;
  using Gating = SiluGating<GatingConfig{.dim = C.dim, .hidden = C.hidden, .lora = C.lora}, B>;

  struct Params {
    typename Norm::Params norm1, norm2;
    typename SelfAttention::Params self_attn;
    typename Gating::Params gating;
    typename GatedLearner::Params ttt;
    static void visit(auto&& f, auto&&... p) {
      f("norm1", p.norm1...);
      if constexpr (attends) f("self_attn", p.self_attn...);
      f("norm2", p.norm2...);
      f("gating", p.gating...);
      if constexpr (with_ttt && attends) f("", p.ttt...);  // ttt.W1, ..., gating_alpha
      if constexpr (with_ttt && !attends) f("ttt", p.ttt.inner...);
    }
  };
  struct Saved {
    typename Norm::Saved norm1, norm2;
    typename SelfAttention::Saved self_attn;
    typename Gating::Saved gating;
    typename GatedLearner::Saved ttt;
  };
  struct State {
    typename SelfAttention::State self_attn;
    typename Learner::State ttt;
    static void visit(auto&& f, auto&&... s) {
      if constexpr (attends) f("self_attn", s.self_attn...);
      if constexpr (with_ttt) f("ttt", s.ttt...);
    }
  };

  /// Of the State, what segments in training hand on: the fast weights. A layer without TTT has none.
  struct Carried {
    typename Learner::Carried ttt;
    static void visit(auto&& f, auto&&... s) {
      if constexpr (with_ttt) f("ttt", s.ttt...);
    }
  };
  struct CarriedGradient {
    typename Learner::CarriedGradient ttt;
    static void visit(auto&& f, auto&&... s) {
      if constexpr (with_ttt) f("ttt", s.ttt...);
    }
  };
  static constexpr Index carry_multiple = with_ttt ? Learner::carry_multiple : 1;
  static Carried carried(const State& state) { return {state.ttt}; }

  static void init(Params& p, Rng& rng) {
    Norm::init(p.norm1, rng);
    if constexpr (attends) SelfAttention::init(p.self_attn, rng);
    Norm::init(p.norm2, rng);
    Gating::init(p.gating, rng);
    if constexpr (with_ttt && attends) GatedLearner::init(p.ttt, rng);
    if constexpr (with_ttt && !attends) Learner::init(p.ttt.inner, rng);
  }

  static void forward(B& be, const Params& p, Sequence<const T, dim> x, Sequence<T, dim> y, Saved& saved,
                      const Carry<Carried>& carry = {}) {
    const auto n = like(be, x), h = like(be, x), m = like(be, x);
    Norm::forward(be, p.norm1, x, n, saved.norm1);
    mix(be, p, n, h, saved, detail::part_of<typename Learner::Carried>(carry, OfTtt{}));
    add_to(be, x.data(), h.data(), h.size());
    Norm::forward(be, p.norm2, h, m, saved.norm2);
    Gating::forward(be, p.gating, m, y, saved.gating);
    add_to(be, h.data(), y.data(), y.size());
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, dim> dy,
                       Sequence<T, dim> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    const auto scope = be.scope();
    const auto dm = like(be, dy), dh = like(be, dy), dn = like(be, dy);
    Gating::backward(be, p.gating, saved.gating, dy, dm, grad.gating);
    Norm::backward(be, p.norm2, saved.norm2, dm, dh, grad.norm2);
    add_to(be, dy.data(), dh.data(), dh.size());
    mix_backward(be, p, saved, dh, dn, grad,
                 detail::gradient_part_of<typename Learner::CarriedGradient>(carry, OfTtt{}));
    Norm::backward(be, p.norm1, saved.norm1, dn, dx, grad.norm1);
    add_to(be, dh.data(), dx.data(), dx.size());
  }

  /// `tap`, if given, receives what a layer with TTT makes of the frames.
  using Tap = typename GatedLearner::Tap;
  static void step(B& be, const Params& p, State& state, Sequence<const T, dim> x, Sequence<T, dim> y,
                   Mask mask, const Tap* tap = nullptr) {
    const auto scope = be.scope();
    const auto n = like(be, x), h = like(be, x), m = like(be, x);
    NoState none;
    if constexpr (requires { be.steps_products(Index{1}, p.gating.linear_in.weight.matrix()); }) {
      if (be.steps_products(x.matrix().rows, p.gating.linear_in.weight.matrix()) &&
          be.steps_products(x.matrix().rows, p.gating.linear_out.weight.matrix())) {
        if constexpr (with_ttt) {
          Norm::step(be, p.norm1, none, x, n, mask);
          mix_step(be, p, state, n, h, mask, tap);
          add_to(be, x.data(), h.data(), h.size());
        } else {
          SelfAttention::residual_step(be, p.self_attn, state.self_attn, Norm::rows(p.norm1), x, h, mask);
        }
        Gating::residual_step(be, p.gating, Norm::rows(p.norm2), h, y);
        return;
      }
    }
    Norm::step(be, p.norm1, none, x, n, mask);
    mix_step(be, p, state, n, h, mask, tap);
    add_to(be, x.data(), h.data(), h.size());
    Norm::step(be, p.norm2, none, h, m, mask);
    Gating::step(be, p.gating, none, m, y, mask);
    add_to(be, h.data(), y.data(), y.size());
  }

  static void reset(B& be, const Params& p, State& state, Mask mask) {
    if constexpr (attends) SelfAttention::reset(be, p.self_attn, state.self_attn, mask);
    if constexpr (with_ttt) Learner::reset(be, p.ttt.inner, state.ttt, mask);
  }

 private:
  struct OfTtt {
    auto& operator()(auto& carried) const { return carried.ttt; }
  };

  template <class U>
  static Sequence<T, dim> like(B& be, Sequence<U, dim> x) {
    return be.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1));
  }

  static void mix(B& be, const Params& p, Sequence<const T, dim> n, Sequence<T, dim> y, Saved& saved,
                  [[maybe_unused]] const Carry<typename Learner::Carried>& carry) {
    if constexpr (!with_ttt) {
      SelfAttention::forward(be, p.self_attn, n, y, saved.self_attn);
    } else if constexpr (placement == Placement::instead_of_attention) {
      Learner::forward(be, p.ttt.inner, n, y, saved.ttt.inner, carry);
    } else if constexpr (placement == Placement::before_attention) {
      const auto heard = like(be, n);
      GatedLearner::forward(be, p.ttt, n, heard, saved.ttt, carry);
      SelfAttention::forward(be, p.self_attn, heard, y, saved.self_attn);
    } else {
      const auto a = like(be, n);
      SelfAttention::forward(be, p.self_attn, n, a, saved.self_attn);
      GatedLearner::forward_onto(be, p.ttt, a, placement == Placement::parallel ? n : a, y, saved.ttt, carry);
    }
  }

  static void mix_backward(B& be, const Params& p, const Saved& saved, Sequence<const T, dim> dy,
                           Sequence<T, dim> dn, auto& grad,
                           [[maybe_unused]] const CarryGradient<typename Learner::CarriedGradient>& carry) {
    if constexpr (!with_ttt) {
      SelfAttention::backward(be, p.self_attn, saved.self_attn, dy, dn, grad.self_attn);
    } else if constexpr (placement == Placement::instead_of_attention) {
      Learner::backward(be, p.ttt.inner, saved.ttt.inner, dy, dn, grad.ttt.inner, carry);
    } else if constexpr (placement == Placement::before_attention) {
      const auto dheard = like(be, dy);
      SelfAttention::backward(be, p.self_attn, saved.self_attn, dy, dheard, grad.self_attn);
      GatedLearner::backward(be, p.ttt, saved.ttt, dheard, dn, grad.ttt, carry);
    } else if constexpr (placement == Placement::parallel) {
      const auto part = like(be, dy);
      SelfAttention::backward(be, p.self_attn, saved.self_attn, dy, dn, grad.self_attn);
      GatedLearner::backward_onto(be, p.ttt, saved.ttt, dy, part, grad.ttt, carry);
      add_to(be, part.data(), dn.data(), dn.size());
    } else {
      const auto da = like(be, dy);
      GatedLearner::backward(be, p.ttt, saved.ttt, dy, da, grad.ttt, carry);
      SelfAttention::backward(be, p.self_attn, saved.self_attn, da, dn, grad.self_attn);
    }
  }

  static void mix_step(B& be, const Params& p, State& state, Sequence<const T, dim> n, Sequence<T, dim> y,
                       Mask mask, [[maybe_unused]] const Tap* tap) {
    if constexpr (!with_ttt) {
      SelfAttention::step(be, p.self_attn, state.self_attn, n, y, mask);
    } else if constexpr (placement == Placement::instead_of_attention) {
      Learner::step(be, p.ttt.inner, state.ttt, n, y, mask);
      if (tap != nullptr) GatedLearner::keep(be, *tap, n, n, y);
    } else if constexpr (placement == Placement::before_attention) {
      const auto heard = like(be, n);
      GatedLearner::step(be, p.ttt, state.ttt, n, heard, mask, tap);
      SelfAttention::step(be, p.self_attn, state.self_attn, heard, y, mask);
    } else {
      const auto a = like(be, n);
      SelfAttention::step(be, p.self_attn, state.self_attn, n, a, mask);
      GatedLearner::step_onto(be, p.ttt, state.ttt, a, placement == Placement::parallel ? n : a, y, mask,
                              tap);
    }
  }
};

namespace detail {

/// "layers.0" to "layers.63", as text that lives as long as the program.
struct LayerNames {
  char text[64][16]{};
  constexpr LayerNames() {
    for (int i = 0; i < 64; ++i) {
      const char* prefix = "layers.";
      int at = 0;
      while (prefix[at] != 0) text[i][at] = prefix[at], ++at;
      if (i >= 10) text[i][at++] = static_cast<char>('0' + i / 10);
      text[i][at] = static_cast<char>('0' + i % 10);
    }
  }
};
inline constexpr LayerNames layer_names;

}  // namespace detail

template <TemporalConfig C, class B>
struct Temporal {
  static_assert(C.num_layers >= 1 && C.num_layers <= 64, "TemporalConfig: num_layers must be 1 to 64");
  static_assert(C.num_layers == 64 || (C.ttt_layers.bits >> C.num_layers) == 0,
                "TemporalConfig: ttt_layers names a layer that does not exist");

  using T = typename B::Scalar;
  static constexpr TemporalConfig config = C;
  static constexpr Index in = C.dim, out = C.dim, dim = C.dim;
  static constexpr std::size_t with_ttt = static_cast<std::size_t>(C.num_ttt_layers());
  static constexpr std::size_t without = static_cast<std::size_t>(C.num_layers) - with_ttt;
  template <class Layer>
  using Kept = std::conditional_t<C.recompute, Recompute<Layer>, Layer>;
  using Plain = Kept<TemporalLayer<C, false, B>>;
  using Learning = Kept<TemporalLayer<C, true, B>>;

  /// Two kinds of layers in two arrays; `get` finds layer i among its kind.
  template <class P, class L>
  struct Layers {
    std::array<P, without> plain;
    std::array<L, with_ttt> learning;

    static void visit(auto&& f, auto&&... layers) {
      for (Index i = 0; i < C.num_layers; ++i) {
        const auto name = detail::layer_names.text[i];
        C.ttt_layers.contains(i) ? f(name, layers.learning[rank(i)]...) : f(name, layers.plain[rank(i)]...);
      }
    }
  };
  using Params = Layers<typename Plain::Params, typename Learning::Params>;
  using State = Layers<typename Plain::State, typename Learning::State>;
  struct Saved {
    std::array<typename Plain::Saved, without> plain;
    std::array<typename Learning::Saved, with_ttt> learning;
  };
  using Carried = Layers<typename Plain::Carried, typename Learning::Carried>;
  using CarriedGradient = Layers<typename Plain::CarriedGradient, typename Learning::CarriedGradient>;
  static constexpr Index carry_multiple = with_ttt > 0 ? Learning::carry_multiple : 1;

  /// What segments in training hand on, of the state of a stream, in place.
  static Carried carried(const State& state) {
    Carried part;
    for (std::size_t i = 0; i < with_ttt; ++i)
      part.learning[i] = TemporalLayer<C, true, B>::carried(state.learning[i]);
    return part;
  }

  static void init(Params& p, Rng& rng) {
    each([&](auto layer, auto member, std::size_t i) { decltype(layer)::Block::init(member(p)[i], rng); });
  }

  /// `hooks`: layer i is unit i.
  static void forward(B& be, const Params& p, Sequence<const T, dim> x, Sequence<T, dim> y, Saved& saved,
                      const Carry<Carried>& carry = {}, const UnitHooks& hooks = {}) {
    Index left = C.num_layers;
    each([&](auto layer, auto member, std::size_t i) {
      hooks.read(C.num_layers - left);
      const auto to = --left == 0 ? y : be.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1));
      using Block = typename decltype(layer)::Block;
      const auto part = [&](auto& all) -> auto& { return member(all)[i]; };
      Block::forward(be, part(p), x, to, part(saved), detail::part_of<typename Block::Carried>(carry, part));
      x = to;
    });
  }

  /// dx may be null, if nobody wants it: the pass then ends at the first layer in which something trains.
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, dim> dy,
                       Sequence<T, dim> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {},
                       const UnitHooks& hooks = {}) {
    const auto scope = be.scope();
    const bool whole = dx.data() != nullptr || carry.to != nullptr || carry.from != nullptr;
    const Index last = whole ? 0 : first_that_trains(grad);
    const std::array ping{be.template make<T, dyn, dyn, dim>(dy.extent(0), dy.extent(1)),
                          be.template make<T, dyn, dyn, dim>(dy.extent(0), dy.extent(1))};
    Index left = C.num_layers;
    each_reversed([&](auto layer, auto member, std::size_t i) {
      if (--left < last) return;
      hooks.read_and_add(left);
      const auto to = left == 0 && dx.data() != nullptr ? dx : ping[static_cast<std::size_t>(left % 2)];
      using Block = typename decltype(layer)::Block;
      const auto part = [&](auto& all) -> auto& { return member(all)[i]; };
      Block::backward(be, part(p), part(saved), dy, to, part(grad),
                      detail::gradient_part_of<typename Block::CarriedGradient>(carry, part));
      hooks.added(left);
      dy = to;
    });
  }

  /// One for each layer with TTT.
  using Taps = std::array<typename TemporalLayer<C, true, B>::Tap, with_ttt>;
  /// `taps`, if given, receives what the TTT layers make of the frames; null costs nothing.
  static void step(B& be, const Params& p, State& state, Sequence<const T, dim> x, Sequence<T, dim> y,
                   Mask mask, const Taps* taps = nullptr) {
    const auto scope = be.scope();
    if constexpr (with_ttt == 0 && C.kv_repeat == 1 && C.context > 0 && C.lora.rank == 0 &&
                  requires(Step all) {
                    be.template layers_step<C.dim, C.hidden, C.dim / C.num_heads>(all);
                  }) {
      if (x.extent(0) * x.extent(1) == 1 &&
          be.template layers_step<C.dim, C.hidden, C.dim / C.num_heads>(at_once(p, state, x, y, mask)))
        return;
    }
    const std::array ping{be.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1)),
                          be.template make<T, dyn, dyn, dim>(x.extent(0), x.extent(1))};
    Index left = C.num_layers;
    each([&](auto layer, auto member, std::size_t i) {
      const auto to = --left == 0 ? y : ping[static_cast<std::size_t>(left % 2)];
      if constexpr (std::is_same_v<typename decltype(layer)::Block, Learning>) {
        Learning::step(be, member(p)[i], member(state)[i], x, to, mask,
                       taps == nullptr ? nullptr : &(*taps)[i]);
      } else {
        Plain::step(be, member(p)[i], member(state)[i], x, to, mask);
      }
      x = to;
    });
  }

  static void reset(B& be, const Params& p, State& state, Mask mask) {
    each([&](auto layer, auto member, std::size_t i) {
      decltype(layer)::Block::reset(be, member(p)[i], member(state)[i], mask);
    });
  }

 private:
  using WeightMatrix = decltype(std::declval<const Weight<B, C.dim, C.dim>&>().matrix());
  using Step = LayersStep<T, WeightMatrix, without>;
  static Step at_once(const Params& p, State& state, Sequence<const T, dim> x, Sequence<T, dim> y,
                      Mask mask) {
    Step step{x.data(), y.data(), mask.data(), C.context, C.max_period, {}};
    for (std::size_t i = 0; i < without; ++i) {
      const auto& layer = p.plain[i];
      auto& ring = state.plain[i].self_attn;
      using Norm = typename TemporalLayer<C, false, B>::Norm;
      step.layers[i] = {Norm::rows(layer.norm1),
                        Norm::rows(layer.norm2),
                        layer.self_attn.in_proj.weight.matrix(),
                        layer.self_attn.out_proj.weight.matrix(),
                        layer.gating.linear_in.weight.matrix(),
                        layer.gating.linear_out.weight.matrix(),
                        ring.k.data(),
                        ring.v.data(),
                        ring.position.data(),
                        ring.context.data()};
    }
    return step;
  }

  template <class L>
  struct Kind {
    using Block = L;
  };
  struct PlainMember {
    auto& operator()(auto& layers) const { return layers.plain; }
  };
  struct LearningMember {
    auto& operator()(auto& layers) const { return layers.learning; }
  };

  static Index first_that_trains(const auto& grad) {
    Index first = 0;
    bool found = false;
    each([&](auto, auto member, std::size_t i) {
      found = found || !all_left_out(member(grad)[i]);
      first += !found;
    });
    return first;
  }

  /// The place of layer i among the layers of its kind.
  static std::size_t rank(Index i) {
    std::size_t before = 0;
    for (Index j = 0; j < i; ++j) before += C.ttt_layers.contains(j) == C.ttt_layers.contains(i);
    return before;
  }
  /// f(Kind, member, place) for layer i: two instantiations, whatever the number of layers.
  template <class F>
  static void visit_layer(Index i, const F& f) {
    if (C.ttt_layers.contains(i)) {
      if constexpr (with_ttt > 0) f(Kind<Learning>{}, LearningMember{}, rank(i));
    } else {
      if constexpr (without > 0) f(Kind<Plain>{}, PlainMember{}, rank(i));
    }
  }
  template <class F>
  static void each(const F& f) {
    for (Index i = 0; i < C.num_layers; ++i) visit_layer(i, f);
  }
  template <class F>
  static void each_reversed(const F& f) {
    for (Index i = C.num_layers - 1; i >= 0; --i) visit_layer(i, f);
  }
};

}  // namespace mttt
