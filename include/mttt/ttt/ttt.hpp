// Ttt: the test-time-training layer. It learns a small model of what it hears, while it hears it.
//
// The update, of one head over one mini-batch of C tokens that starts with the fast weights W:
//
//   q, k, target, lr   from x                                            ttt/prepare.hpp
//   l(W; s) = 1/2 |LN(net(k_s; W)) - target_s|^2                         ttt/inner_model.hpp
//   W_t     = W - scale_t (sum over s <= t of lr_s dl(W; s) / dW)        learn from token t ...
//   o_t     = q_t + LN(net(q_t; W_t))                                    ... before it is answered
//   W      <- W_C                                                        for the next mini-batch
//
// Two forms give the same numbers, which is a law: ttt/primal.hpp goes token by token, as `step` does in a
// stream; ttt/dual.hpp takes a mini-batch at once by matrix products, as `forward` and `backward` do.
//
// Formula: y = post_norm(o) Wo, with q, k, v = x Wq, x Wk, x Wv before preparation. net is one linear layer
//          (layers = 1: TTT-Linear) or a GELU network (layers = 2 to 5: TTT-MLP).
//          A segment of a long recording may start from the State that the one before it left, and leave its
//          own (core/carry.hpp); gradients go back through both. A State is one for streams too: `step` goes
//          on from it, at any place.
// Shapes:  x, y (B, T, dim). State per session: fast weights (H, size), what the running mini-batch has
//          gathered (H, size; or the tokens' factors, see TttMemory), position.
//          Its size is constant for any length of stream. The learned start (Params) is never written by a
//          stream.
// Units:   positions in tokens.
// Errors:  a config that contradicts itself fails to compile; carried states of another batch; forward from a
//          State inside of a mini-batch (on a GPU its numbers become NaN, unless check_carry is asked first);
//          a gradient of what an unfinished mini-batch left.
// Not supported: bidirectional mini-batches; segments that start inside of a mini-batch.
// Source:  Sun et al. 2024; ttt-lm-pytorch ttt.py: TTTLinear, TTTMLP; ttt-video-dit ttt_layer.py. Different
//          from the latter: both masks of the dual form are lower triangular here.
#pragma once

#include "mttt/core/carry.hpp"
#include "mttt/nn/norm.hpp"
#include "mttt/ttt/carry.hpp"
#include "mttt/ttt/dual.hpp"
#include "mttt/ttt/prepare.hpp"
#include "mttt/ttt/primal.hpp"

namespace mttt {

/// What a session keeps of a mini-batch that has not ended: the sums of its tokens' gradients, as large as
/// the fast weights and read and written with every token, or the tokens' factors of them. With factors a
/// step of a wide inner model moves two fifths of the bytes; no backend fuses it.
enum class TttMemory { sums, factors };

struct TttConfig {
  Index dim;
  Index num_heads;
  Index mini_batch_size = 16;
  Index layers = 1;     // of the inner model: 1 is TTT-Linear, 2 to 5 TTT-MLP
  Index expansion = 4;  // hidden width of a TTT-MLP, in head widths
  TttVariant variant = TttVariant::lm;
  TttMemory memory = TttMemory::sums;  // not the last member: clang++ 14 then computed with another config
  bool rope = true;
  double rope_theta = 10000;
  double base_lr = 1;  // initial value of the parameter of that name
  double inner_eps = 1e-6;
  double inner_clip = 0;  // the longest inner gradient of a token, see ttt/inner_model.hpp; 0: any

  constexpr Index head_dim() const { return dim / num_heads; }
  constexpr InnerModel model() const {
    return {head_dim(), expansion * head_dim(), layers, static_cast<float>(inner_clip),
            memory == TttMemory::factors ? mini_batch_size : 0};
  }
  /// The same layer as a CPU streams it fastest: TTT-MLPs keep what is fewer numbers. Replies are the same to
  /// rounding, weights to the bit; the State is another, so that conversations do not move to a GPU.
  constexpr TttConfig for_cpu_streams() const {
    TttConfig config = *this;
    config.memory = TttMemory::factors;
    return layers > 1 && config.model().gathered() < model().size() ? config : *this;
  }
};

/// The learned start of the inner model. Tensors of layers that the config does without have no elements.
template <TttConfig C, class T>
struct InnerWeights {
  static constexpr InnerModel model = C.model();
  template <Index L>
  using Weight = Tensor<T, (L < C.layers) ? C.num_heads : 0, model.in(L), model.out(L)>;
  template <Index L>
  using Bias = Tensor<T, (L < C.layers) ? C.num_heads : 0, 1, model.out(L)>;

  Weight<0> W1;
  Bias<0> b1;
  Weight<1> W2;
  Bias<1> b2;
  Weight<2> W3;
  Bias<2> b3;
  Weight<3> W4;
  Bias<3> b4;
  Weight<4> W5;
  Bias<4> b5;

  static void visit(auto&& f, auto&&... p) {
    f("W1", p.W1...), f("b1", p.b1...);
    if constexpr (C.layers > 1) f("W2", p.W2...), f("b2", p.b2...);
    if constexpr (C.layers > 2) f("W3", p.W3...), f("b3", p.b3...);
    if constexpr (C.layers > 3) f("W4", p.W4...), f("b4", p.b4...);
    if constexpr (C.layers > 4) f("W5", p.W5...), f("b5", p.b5...);
  }

  T* weight(Index l) const {
    return std::array{W1.data(), W2.data(), W3.data(), W4.data(), W5.data()}[as_size(l)];
  }
  T* bias(Index l) const {
    return std::array{b1.data(), b2.data(), b3.data(), b4.data(), b5.data()}[as_size(l)];
  }

 private:
  static std::size_t as_size(Index l) { return static_cast<std::size_t>(l); }
};

template <TttConfig C, class B>
struct Ttt {
  static_assert(C.num_heads > 0 && C.dim % C.num_heads == 0,
                "TttConfig: dim must be a multiple of num_heads");
  static_assert(C.layers >= 1 && C.layers <= max_inner_layers,
                "TttConfig: layers must be 1 (TTT-Linear) to 5");
  static_assert(C.mini_batch_size >= 1, "TttConfig: mini_batch_size must be at least 1");
  static_assert(!C.rope || C.head_dim() % 2 == 0, "TttConfig: RoPE needs an even head width");

  using T = typename B::Scalar;
  using A = typename B::Accum;
  static constexpr TttConfig config = C;
  static constexpr Index in = C.dim, out = C.dim, H = C.num_heads, F = C.head_dim();
  static constexpr InnerModel model = C.model();
  static constexpr Index size = model.size(), gathered = model.gathered();
  static constexpr bool video = C.variant == TttVariant::video, sums = C.memory == TttMemory::sums;

  using Projection = Linear<LinearConfig{.in = C.dim, .out = C.dim, .bias = video}, B>;
  using PostNorm = LayerNorm<NormConfig{.dim = C.dim, .eps = 1e-6}, B>;

  struct Params {
    typename Projection::Params q, k, v, o;
    Tensor<T, H, 1, C.dim> learnable_ttt_lr_weight;
    Tensor<T, H, 1> learnable_ttt_lr_bias;
    Tensor<T, H, F> ttt_norm_weight, ttt_norm_bias;
    Tensor<T, video ? 0 : C.mini_batch_size> learnable_token_idx;
    Tensor<T, 1> base_lr;  // the inner learning rate: saved with the weights, and frozen unless asked for
    typename PostNorm::Params post_norm;
    InnerWeights<C, T> inner;

    static void visit(auto&& f, auto&&... p) {
      f(video ? "wq" : "q_proj", p.q...);
      f(video ? "wk" : "k_proj", p.k...);
      f(video ? "wv" : "v_proj", p.v...);
      f(video ? "wo" : "o_proj", p.o...);
      f("learnable_ttt_lr_weight", p.learnable_ttt_lr_weight...);
      f("learnable_ttt_lr_bias", p.learnable_ttt_lr_bias...);
      f("ttt_norm_weight", p.ttt_norm_weight...);
      f("ttt_norm_bias", p.ttt_norm_bias...);
      if constexpr (!video) f("learnable_token_idx", p.learnable_token_idx...);
      f("base_lr", p.base_lr...);
      f("post_norm", p.post_norm...);
      f("", p.inner...);
    }
  };

  struct State {
    Tensor<A, dyn, H, size> weights;
    Tensor<A, dyn, H, gathered> gradients;
    Tensor<std::int64_t, dyn> position;
    static void visit(auto&& f, auto&&... s) {
      f("weights", s.weights...);
      f(sums ? "gradients" : "factors", s.gradients...);
      f("position", s.position...);
    }
    static constexpr bool may_hold(std::string_view, Index, std::int64_t value) {
      return may_be_position(value);
    }
  };

  using Carried = State;
  struct CarriedGradient {
    Tensor<A, dyn, H, size> weights;
    static void visit(auto&& f, auto&&... s) { f("weights", s.weights...); }
  };
  static constexpr Index carry_multiple = C.mini_batch_size;

  /// What the inner loop reads, of one stretch of tokens.
  struct Inputs {
    Sequence<T, C.dim> raw_q, raw_k, v, q, k, target;
    Tensor<T, dyn, dyn, H> logit;
    Tensor<A, dyn, dyn, H> lr;
    Tensor<A, C.mini_batch_size> scale;
    Tensor<A, H, F> gamma, beta;
    Tensor<A, dyn, F / 2> cos, sin;  // RoPE, a line for each place or for each token
    bool line_per_token = false;
  };

  struct Saved {
    Inputs inputs;
    Tensor<A, dyn, dyn, H, size> checkpoints;  // (groups of mini-batches, B, H, size)
    bool carried = false;                      // the sessions in `continuing` started from a carried State
    Mask continuing;
    typename Projection::Saved q, k, v, o;
    typename PostNorm::Saved post_norm;
  };

  static void init(Params& p, Rng& rng) {
    for (auto* projection : {&p.q, &p.k, &p.v, &p.o}) Projection::init(*projection, rng);
    init_truncated_normal(p.learnable_ttt_lr_weight, 0.02, rng);
    init_constant(p.learnable_ttt_lr_bias, 0);
    init_constant(p.ttt_norm_weight, 1);
    init_constant(p.ttt_norm_bias, 0);
    init_constant(p.learnable_token_idx, 0);
    init_constant(p.base_lr, C.base_lr);
    PostNorm::init(p.post_norm, rng);
    for_each_tensor(
        [&](std::string_view name, auto& t) {
          name[0] == 'W' ? init_truncated_normal(t, 0.02, rng) : init_constant(t, 0);
        },
        p.inner);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      const Carry<State>& carry = {}) {
    const Index batch = x.extent(0), steps = x.extent(1);
    check_carry(be, carry, batch, C.mini_batch_size, host_reads);
    saved.carried = carry.from != nullptr;
    saved.continuing = detail::keep(be, carry.continuing);
    saved.inputs = prepare(be, p, x, saved);
    const auto scan_out = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    const auto normed = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    saved.checkpoints = be.template make<A, dyn, dyn, H, size>(groups(steps), batch);
    {
      const auto scope = be.scope();
      const auto weights = carry.to != nullptr ? carry.to->weights : be.template make<A, dyn, H, size>(batch);
      enter(be, p, carry, weights.data(), batch);
      const TttForward<T, A> scan{scan_of(saved.inputs, saved.checkpoints.data()), weights.data(),
                                  carry.to != nullptr ? carry.to->gradients.data() : nullptr,
                                  scan_out.data()};
      if constexpr (fused) {
        be.template ttt_forward<F, model.hidden, C.layers, C.mini_batch_size>(scan);
      } else {
        be.rows(batch * H, scan, scan.scratch(model, C.mini_batch_size) * bytes, steps * size * 4);
      }
    }
    if (carry.to != nullptr) {
      be.for_each(batch, detail::LeavePosition{carry.from == nullptr ? nullptr : carry.from->position.data(),
                                               carry.continuing.data(), carry.to->position.data(), steps});
    }
    PostNorm::forward(be, p.post_norm, scan_out, normed, saved.post_norm);
    Projection::forward(be, p.o, normed, y, saved.o);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad, const CarryGradient<CarriedGradient>& carry = {}) {
    const auto scope = be.scope();
    const Index batch = dy.extent(0), steps = dy.extent(1), n = batch * steps;
    check_gradient(carry, batch, steps);
    const auto make = [&] { return be.template make<T, dyn, dyn, C.dim>(batch, steps); };
    const auto dnormed = make(), dscan = make(), dq = make(), dk = make(), dtarget = make();
    Projection::backward(be, p.o, saved.o, dy, dnormed, grad.o);
    PostNorm::backward(be, p.post_norm, saved.post_norm, dnormed, dscan, grad.post_norm);

    const auto dlr = be.template make<A, dyn, dyn, H>(batch, steps);
    const auto dscale = zeros<H, C.mini_batch_size>(be, batch);
    const auto dgamma = zeros<H, F>(be, batch), dbeta = zeros<H, F>(be, batch);
    const auto dweights = zeros<H, size>(be, batch);
    if (carry.to != nullptr) be.copy(carry.to->weights.data(), dweights.data(), dweights.size());
    const TttBackward<T, A> scan{scan_of(saved.inputs, saved.checkpoints.data()),
                                 dscan.data(),
                                 dq.data(),
                                 dk.data(),
                                 dtarget.data(),
                                 dlr.data(),
                                 dscale.data(),
                                 dgamma.data(),
                                 dbeta.data(),
                                 dweights.data()};
    if constexpr (fused) {
      be.template ttt_backward<F, model.hidden, C.layers, C.mini_batch_size>(scan);
    } else {
      be.rows(batch * H, scan, scan.scratch(model, C.mini_batch_size) * bytes, steps * size * 12);
    }
    if (saved.carried || carry.from != nullptr) {
      be.rows(batch * H,
              detail::DivideGradient<A>{dweights.data(),
                                        carry.from == nullptr ? nullptr : carry.from->weights.data(),
                                        saved.continuing.data(), saved.carried, H, size},
              0, 2 * size);
    }

    const auto draw_q = make(), draw_k = make(), dv = make(), part = make();
    using Back = detail::PrepareBackward<C.variant, T, A>;
    const auto gamma_parts = be.template make<A, dyn, H, F>(Back::parts(n)),
               beta_parts = be.template make<A, dyn, H, F>(Back::parts(n));
    const Back back{prepare_of(p, saved.inputs, nullptr),
                    dq.data(),
                    dk.data(),
                    dtarget.data(),
                    draw_q.data(),
                    draw_k.data(),
                    dv.data(),
                    gamma_parts.data(),
                    beta_parts.data()};
    be.rows(back.count(), back, 0, back.cost());

    Projection::backward(be, p.q, saved.q, draw_q, dx, grad.q);
    Projection::backward(be, p.k, saved.k, draw_k, part, grad.k);
    add_to(be, part.data(), dx.data(), n * C.dim);
    Projection::backward(be, p.v, saved.v, dv, part, grad.v);
    add_to(be, part.data(), dx.data(), n * C.dim);
    learning_rate_backward(be, p, saved, dlr, dx, grad);

    using G = typename decltype(grad.base_lr)::value_type;
    if constexpr (video) {
      const auto add_parts = [&](const auto& parts, G* to) {
        if (to == nullptr) return;  // does not train
        be.for_each(H * F, detail::AddParts<A, G>{parts.data(), to, parts.extent(0), H * F});
      };
      add_parts(gamma_parts, grad.ttt_norm_weight.data());
      add_parts(beta_parts, grad.ttt_norm_bias.data());
    } else if (!left_out(grad.learnable_token_idx)) {
      be.rows(C.mini_batch_size,
              detail::TokenScaleBackward<A, G>{saved.inputs.scale.data(), dscale.data(),
                                               grad.learnable_token_idx.data(), batch * H, C.mini_batch_size},
              0, batch * H);
    }
    const auto sum_sessions = [&](const A* part_of, G* to, Index stride, Index offset, Index length) {
      if (to == nullptr) return;
      be.for_each(H * length, detail::SumSessions<A, G>{part_of, to, batch, H, stride, offset, length});
    };
    sum_sessions(dgamma.data(), grad.ttt_norm_weight.data(), F, 0, F);
    sum_sessions(dbeta.data(), grad.ttt_norm_bias.data(), F, 0, F);
    for (Index l = 0; l < C.layers; ++l) {
      sum_sessions(dweights.data(), grad.inner.weight(l), size, model.weight_at(l), model.in(l)*model.out(l));
      sum_sessions(dweights.data(), grad.inner.bias(l), size, model.bias_at(l), model.out(l));
    }
  }

  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    const auto scope = be.scope();
    const Index batch = x.extent(0), steps = x.extent(1);
    const auto scan_out = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    const auto normed = be.template make<T, dyn, dyn, C.dim>(batch, steps);
    learn_and_answer(be, p, state, x, scan_out, mask);
    advance(be, state.position.data(), batch, steps, mask);
    NoState none;
    PostNorm::step(be, p.post_norm, none, scan_out, normed, mask);
    Projection::step(be, p.o, none, normed, y, mask);
  }

  static void reset(B& be, const Params& p, State& state, Mask mask) {
    clear_state(be, state, mask);
    start(be, p, state.weights.data(), state.position.extent(0), mask);
  }

  /// What the inner loop of a stream that stands at `position` reads of x, for those who look
  /// (ttt/probe.hpp).
  static Inputs inputs_of(B& be, const Params& p, Sequence<const T, in> x, const std::int64_t* position) {
    Inputs inputs = project(be, p, x, nullptr);
    prepare_inputs(be, p, position, inputs);
    return inputs;
  }

 private:
  static constexpr Index bytes = static_cast<Index>(sizeof(A));

  /// Whether the backend has kernels for this layer's scans. They keep the weights of every 16th mini-batch
  /// and compute those between again, where the composed scans of ttt/dual.hpp keep them all.
  static constexpr bool fused = C.inner_clip == 0 && sums && requires {
    requires B::template fuses_ttt<F, model.hidden, C.layers, C.mini_batch_size>;
  };
  static constexpr Index group = fused ? 16 : 1;

  static constexpr Index groups(Index steps) {
    return (steps + group * C.mini_batch_size - 1) / (group * C.mini_batch_size);
  }

  template <Index... E>
  static Tensor<A, dyn, E...> zeros(B& be, Index batch) {
    const auto t = be.template make<A, dyn, E...>(batch);
    be.fill(t.data(), t.size(), A(0));
    return t;
  }

  static constexpr bool host_reads = requires { requires B::host_memory; };

  /// A gradient arrives where the segment ended; what an unfinished mini-batch has gathered gets none.
  static void check_gradient(const CarryGradient<CarriedGradient>& carry, Index batch, Index steps) {
    const CarriedGradient* const both[] = {carry.to,
                                           carry.from};  // nvcc 13 misreads a list in the loop's head
    for (const CarriedGradient* one : both) {
      if (one == nullptr || one->weights.extent(0) == batch) continue;
      fail("Ttt: gradient of a carried state", std::to_string(one->weights.extent(0)) + " sessions",
           std::to_string(batch), "use one of as many sessions as the batch");
    }
    if (carry.to == nullptr || steps % C.mini_batch_size == 0) return;
    fail("Ttt: gradient of the state after a segment", std::to_string(steps) + " steps",
         "a multiple of mini_batch_size = " + std::to_string(C.mini_batch_size),
         "cut recordings into segments of whole mini-batches; only the last may have any length");
  }

  /// The weights that a segment starts from, carried in or learned.
  static void enter(B& be, const Params& p, const Carry<State>& carry, A* weights, Index batch) {
    if (carry.from == nullptr) {
      start(be, p, weights, batch, Mask{});
      return;
    }
    const auto learned = be.template make<A, H, size>();
    start(be, p, learned.data(), 1, Mask{});
    be.rows(batch * H,
            detail::EnterWeights<A>{learned.data(), carry.from->weights.data(), carry.from->position.data(),
                                    carry.continuing.data(), weights, H, size, C.mini_batch_size},
            0, size);
  }

  /// The learned start into the fast weights of the active sessions.
  static void start(B& be, const Params& p, A* weights, Index batch, Mask mask) {
    const auto copy = [&](const T* learned, Index offset, Index length) {
      be.rows(batch * H, detail::StartWeights<T, A>{learned, weights, mask.data(), H, size, offset, length},
              0, length);
    };
    for (Index l = 0; l < C.layers; ++l) {
      copy(p.inner.weight(l), model.weight_at(l), model.in(l)*model.out(l));
      copy(p.inner.bias(l), model.bias_at(l), model.out(l));
    }
  }

  /// A stream's tokens from x to the answers, before post_norm.
  static void learn_and_answer(B& be, const Params& p, State& state, Sequence<const T, in> x,
                               Sequence<T, C.dim> scan_out, Mask mask) {
    const Index batch = x.extent(0), steps = x.extent(1);
    Inputs inputs = project(be, p, x, nullptr);
    if constexpr (C.inner_clip == 0 && sums &&
                  requires { requires B::template steps_ttt<F, model.hidden, C.layers>; }) {
      const TttStreamStep<C.variant, T, A> step{batch,
                                                steps,
                                                H,
                                                C.mini_batch_size,
                                                inputs.raw_q.data(),
                                                inputs.raw_k.data(),
                                                inputs.v.data(),
                                                inputs.logit.data(),
                                                p.learnable_ttt_lr_bias.data(),
                                                p.base_lr.data(),
                                                p.learnable_token_idx.data(),
                                                p.ttt_norm_weight.data(),
                                                p.ttt_norm_bias.data(),
                                                state.weights.data(),
                                                state.gradients.data(),
                                                state.position.data(),
                                                mask.data(),
                                                scan_out.data(),
                                                static_cast<A>(C.inner_eps),
                                                C.rope,
                                                C.rope_theta};
      if (be.template ttt_step<F, C.layers>(step)) return;
    }
    prepare_inputs(be, p, state.position.data(), inputs);
    be.fill(scan_out.data(), scan_out.size(), T(0));  // rows of inactive sessions
    be.rows(batch * H,
            TttStep<T, A>{model, steps, H, C.mini_batch_size, inputs.q.data(), inputs.k.data(),
                          inputs.target.data(), inputs.lr.data(), inputs.scale.data(), inputs.gamma.data(),
                          inputs.beta.data(), state.weights.data(), state.gradients.data(),
                          state.position.data(), mask.data(), scan_out.data(), static_cast<A>(C.inner_eps)},
            TttStep<T, A>::scratch(model) * bytes, steps * size * 4);
  }

  /// Projections and all that the inner loop reads.
  static Inputs prepare(B& be, const Params& p, Sequence<const T, in> x, Saved& saved) {
    Inputs inputs = project(be, p, x, &saved);
    prepare_inputs(be, p, nullptr, inputs);
    return inputs;
  }

  /// `saved` is null in a stream.
  static Inputs project(B& be, const Params& p, Sequence<const T, in> x, Saved* saved) {
    const Index batch = x.extent(0), steps = x.extent(1);
    const auto make = [&] { return be.template make<T, dyn, dyn, C.dim>(batch, steps); };
    Inputs inputs;
    inputs.raw_q = make(), inputs.raw_k = make(), inputs.v = make();
    inputs.logit = be.template make<T, dyn, dyn, H>(batch, steps);
    typename Projection::Saved unused;
    Projection::forward(be, p.q, x, inputs.raw_q, saved != nullptr ? saved->q : unused);
    Projection::forward(be, p.k, x, inputs.raw_k, saved != nullptr ? saved->k : unused);
    Projection::forward(be, p.v, x, inputs.v, saved != nullptr ? saved->v : unused);
    be.matmul(x.matrix(), lr_weight(p).t(), inputs.logit.matrix());
    return inputs;
  }

  static void prepare_inputs(B& be, const Params& p, const std::int64_t* position, Inputs& inputs) {
    const Index batch = inputs.v.extent(0), steps = inputs.v.extent(1), tokens = batch * steps;
    const auto make = [&] { return be.template make<T, dyn, dyn, C.dim>(batch, steps); };
    inputs.q = make(), inputs.k = make(), inputs.target = make();
    inputs.lr = be.template make<A, dyn, dyn, H>(batch, steps);
    inputs.scale = be.template make<A, C.mini_batch_size>();
    inputs.gamma = be.template make<A, H, F>(), inputs.beta = be.template make<A, H, F>();
    // A stream often brings fewer tokens than there are places.
    inputs.line_per_token = C.rope && position != nullptr && tokens < C.mini_batch_size;
    const Index lines = !C.rope ? 0 : inputs.line_per_token ? tokens : C.mini_batch_size;
    if constexpr (C.rope) {
      inputs.cos = be.template make<A, dyn, F / 2>(lines);
      inputs.sin = be.template make<A, dyn, F / 2>(lines);
    }
    const detail::InnerTables<T, A> tables{video ? nullptr : p.learnable_token_idx.data(),
                                           p.ttt_norm_weight.data(),
                                           p.ttt_norm_bias.data(),
                                           inputs.scale.data(),
                                           inputs.gamma.data(),
                                           inputs.beta.data(),
                                           inputs.cos.data(),
                                           inputs.sin.data(),
                                           inputs.line_per_token ? position : nullptr,
                                           steps,
                                           C.mini_batch_size,
                                           H * F,
                                           lines,
                                           F / 2,
                                           C.rope_theta};
    be.for_each(tables.count(), tables);
    const auto rows = prepare_of(p, inputs, position);
    be.rows(rows.count(), rows, 0, rows.cost());
  }

  static detail::Prepare<C.variant, T, A> prepare_of(const Params& p, const Inputs& i,
                                                     const std::int64_t* position) {
    return {i.raw_q.data(),
            i.raw_k.data(),
            i.v.data(),
            i.q.data(),
            i.k.data(),
            i.target.data(),
            i.logit.data(),
            p.learnable_ttt_lr_bias.data(),
            p.base_lr.data(),
            i.lr.data(),
            i.cos.data(),
            i.sin.data(),
            i.gamma.data(),
            i.beta.data(),
            position,
            i.q.extent(0) * i.q.extent(1),
            i.q.extent(1),
            H,
            F,
            C.mini_batch_size,
            i.line_per_token};
  }

  static TttScan<T, A> scan_of(const Inputs& i, A* checkpoints) {
    return {model,
            i.q.extent(0),
            i.q.extent(1),
            H,
            C.mini_batch_size,
            i.q.data(),
            i.k.data(),
            i.target.data(),
            i.lr.data(),
            i.scale.data(),
            i.gamma.data(),
            i.beta.data(),
            checkpoints,
            static_cast<A>(C.inner_eps),
            group};
  }

  static Matrix<const T> lr_weight(const Params& p) {
    return {p.learnable_ttt_lr_weight.data(), H, C.dim, C.dim};
  }

  static void learning_rate_backward(B& be, const Params& p, const Saved& saved, Tensor<A, dyn, dyn, H> dlr,
                                     Sequence<T, in> dx, auto& grad) {
    const auto& i = saved.inputs;
    const T* bias = p.learnable_ttt_lr_bias.data();
    const auto dlogit = be.template make<T, dyn, dyn, H>(dlr.extent(0), dlr.extent(1));
    be.for_each(dlr.size(), detail::LearningRateBackward<T, A>{i.logit.data(), bias, p.base_lr.data(),
                                                               dlr.data(), dlogit.data(), H, F});
    using G = typename decltype(grad.base_lr)::value_type;
    if (!left_out(grad.base_lr)) {
      detail::BaseRateBackward<T, A> rates{i.logit.data(), bias, dlr.data(), nullptr, dlr.size(), H, F};
      rates.parts = be.template make<A, dyn>(rates.count()).data();
      be.rows(rates.count(), rates, 0, 8 * rates.part);
      be.rows(1, detail::AddTotal<A, G>{rates.parts, grad.base_lr.data(), rates.count()}, 0, rates.count());
    }
    be.matmul(dlogit.matrix(), lr_weight(p), dx.matrix(), 1, 1);
    add_product(be, dlogit.matrix().t(), saved.q.x.matrix(),
                Matrix<G>{grad.learnable_ttt_lr_weight.data(), H, C.dim, C.dim});
    sum_columns(be, dlogit.data(), grad.learnable_ttt_lr_bias.data(), dlogit.flat_rows().extent(0), H);
  }
};

}  // namespace mttt
