// Lora: a linear layer and an adapter of low rank beside it, kept apart.
//
// Formula: low = x A^T;  y = inner(x) + s low B^T;
//          dlow = s dy B;  dB += s dy^T low;  dA += dlow^T x;  dx = inner's dx + dlow A.
//          The adapter that io/matcher.hpp fuses is the same function with W + s B A, rounded once.
// Shapes:  x (B, T, in), A (rank, in), low (B, T, rank), B (out, rank), y (B, T, out).
// Units:   none.
// Errors:  expect_lora: an adapter of another rank or scaling.
// Not supported: dropout of x. In bf16 y is rounded twice.
// Source:  Hu et al. 2021 (arXiv 2106.09685); kyutai-labs/moshi modules/lora.py `LoRALinear`, whose A starts
//          as uniform numbers of variance 1 / (3 in), and B as zeros.
#pragma once

#include "mttt/nn/linear.hpp"

namespace mttt {

struct LoraConfig {
  Index rank;
  double scaling = 2;
  /// Backward leaves the inner layer's gradients as they are, and saves what they cost; only A and B learn.
  bool frozen = true;
};

/// What a model has beside those tensors that it adapts: initialised where a file has none of it.
inline bool is_lora_name(std::string_view name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
}

/// Refuses an adapter whose config.json says something else than the type does; a rank of 0 says nothing.
template <LoraConfig C>
void expect_lora(std::string_view subject, Index rank, double scaling) {
  if ((rank == 0 || rank == C.rank) && scaling == C.scaling) return;
  const auto text = [](Index r, double s) {
    return "rank " + std::to_string(r) + ", scaling " + std::to_string(s);
  };
  fail(subject, text(rank, scaling), text(C.rank, C.scaling),
       "compile the model with the LoraConfig of the adapter, or fuse the adapter at load");
}

/// `Inner` is a Linear, or what has its members. Its parameters keep their names.
template <LoraConfig C, class Inner>
struct Lora {
  static_assert(C.rank > 0, "Lora: the rank must be positive");

  using T = typename Inner::T;
  static constexpr Index in = Inner::in, out = Inner::out, rank = C.rank;

  struct Params {
    typename Inner::Params inner;
    Tensor<T, C.rank, Inner::in> a;
    Tensor<T, Inner::out, C.rank> b;
    static void visit(auto&& f, auto&&... p) {
      f("", p.inner...);
      f("lora_A.weight", p.a...);
      f("lora_B.weight", p.b...);
    }
  };
  struct Saved {
    typename Inner::Saved inner;
    Sequence<const T, in> x;
    Sequence<const T, rank> low;
  };
  using State = typename Inner::State;

  /// An adapter that changes nothing yet.
  static void init(Params& p, Rng& rng) {
    Inner::init(p.inner, rng);
    init_truncated_normal(p.a, 1.0 / std::sqrt(3.0 * static_cast<double>(in)), rng);
    init_constant(p.b, 0.0);
  }

  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    Inner::forward(be, p.inner, x, y, saved.inner);
    saved.x = x;
    saved.low = add_adapter(be, p, x, y);
  }

  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    if constexpr (C.frozen) {
      be.matmul(dy.matrix(), p.inner.weight.matrix(), dx.matrix());
    } else {
      Inner::backward(be, p.inner, saved.inner, dy, dx, grad.inner);
    }
    const auto dlow = be.template make<T, dyn, dyn, rank>(dy.extent(0), dy.extent(1));
    be.matmul(dy.matrix(), p.b.matrix(), dlow.matrix(), C.scaling);
    be.matmul(dy.matrix().t(), saved.low.matrix(), grad.b.matrix(), C.scaling, 1);
    be.matmul(dlow.matrix().t(), saved.x.matrix(), grad.a.matrix(), 1, 1);
    be.matmul(dlow.matrix(), p.a.matrix(), dx.matrix(), 1, 1);
  }

  template <class B>
  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    Inner::step(be, p.inner, state, x, y, mask);
    const auto scope = be.scope();
    add_adapter(be, p, x, y);
  }
  template <class B>
  static void reset(B& be, const Params& p, State& state, Mask mask) {
    Inner::reset(be, p.inner, state, mask);
  }

 private:
  /// y += s x A^T B^T; what lies between them.
  template <class B>
  static Sequence<const T, rank> add_adapter(B& be, const Params& p, Sequence<const T, in> x,
                                             Sequence<T, out> y) {
    const auto low = be.template make<T, dyn, dyn, rank>(x.extent(0), x.extent(1));
    be.matmul(x.matrix(), p.a.matrix().t(), low.matrix());
    be.matmul(low.matrix(), p.b.matrix().t(), y.matrix(), C.scaling, 1);
    return low;
  }
};

}  // namespace mttt
