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
  Index rank;  // 0: no adapters, see WithLora
  double scaling = 2;
  /// Backward leaves the inner layer's gradients as they are, and saves what they cost; only A and B learn.
  /// Whole models leave that to the trainer's rules: a gradient without memory costs nothing either.
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
  using Accum = typename Inner::Accum;
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
    Sequence<T, rank> low;
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
    forward(be, p, x, y, saved, make_low(be, x.extent(0), x.extent(1)));
  }

  template <class B>
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    weight_backward(be, saved, saved.inner.x, dy, input_backward(be, p, dy, dx.matrix()), grad);
  }

  /// Forward and backward in parts, as those of Linear: low, and its gradient, which is made in the arena.
  using Low = Sequence<T, rank>;
  template <class B>
  static Low make_low(B& be, Index batch, Index steps) {
    return be.template make<T, dyn, dyn, rank>(batch, steps);
  }
  template <class B>
  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved,
                      Low low) {
    Inner::forward(be, p.inner, x, y, saved.inner);
    saved.low = low;
    add_adapter(be, p, x, y, low);
  }
  template <class B>
  static Low input_backward(B& be, const Params& p, Sequence<const T, out> dy, Matrix<T> dx, Accum beta = 0) {
    const auto dlow = make_low(be, dy.extent(0), dy.extent(1));
    be.matmul(dy.matrix(), p.b.matrix(), dlow.matrix(), scaling);
    Inner::input_backward(be, p.inner, dy, dx, beta);
    be.matmul(dlow.matrix(), p.a.matrix(), dx, 1, 1);
    return dlow;
  }
  template <class B>
  static void weight_backward(B& be, const Saved& saved, Sequence<const T, in> x, Sequence<const T, out> dy,
                              Low dlow, auto& grad) {
    if constexpr (!C.frozen) Inner::weight_backward(be, saved.inner, x, dy, {}, grad.inner);
    add_product(be, dy.matrix().t(), saved.low.matrix(), grad.b.matrix(), scaling);
    add_product(be, dlow.matrix().t(), x.matrix(), grad.a.matrix());
  }

  template <class B>
  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    Inner::step(be, p.inner, state, x, y, mask);
    const auto scope = be.scope();
    add_adapter(be, p, x, y, make_low(be, x.extent(0), x.extent(1)));
  }
  template <class B>
  static void reset(B& be, const Params& p, State& state, Mask mask) {
    Inner::reset(be, p.inner, state, mask);
  }

 private:
  static constexpr Accum scaling = static_cast<Accum>(C.scaling);

  /// low = x A^T,  y += s low B^T
  template <class B>
  static void add_adapter(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Low low) {
    be.matmul(x.matrix(), p.a.matrix().t(), low.matrix());
    be.matmul(low.matrix(), p.b.matrix().t(), y.matrix(), scaling, 1);
  }
};

namespace detail {
template <LoraConfig C, class Inner, bool adapted>
struct AdaptedIf {
  using type = Lora<C, Inner>;
};
template <LoraConfig C, class Inner>
struct AdaptedIf<C, Inner, false> {
  using type = Inner;
};
}  // namespace detail

/// The linear layer with its adapter, or alone where the config has none.
template <LoraConfig C, class Inner>
using WithLora = typename detail::AdaptedIf<C, Inner, C.rank != 0>::type;

/// W of a linear layer, adapted or not.
template <class P>
const auto& weight_of(const P& params) {
  if constexpr (requires { params.inner; }) {
    return params.inner.weight;
  } else {
    return params.weight;
  }
}

/// W += s B A, then B = 0, for all adapters of a model: the same function in the layers that they stand
/// beside. Where a Store has left W out, its B is 0 all the same.
template <class B, class P>
void fuse_adapters(B& be, P& params, double scaling) {
  using T = typename B::Scalar;
  Matrix<T> weight{}, a{};
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        using Tens = std::remove_cvref_t<decltype(t)>;
        if constexpr (Tens::rank == 2) {
          if constexpr (std::is_same_v<typename Tens::value_type, T>) {
            const auto matrix = t.matrix();  // names come in the order weight, lora_A, lora_B
            if (name.ends_with(".lora_A.weight")) {
              a = matrix;
            } else if (name.ends_with(".lora_B.weight")) {
              if (weight.data != nullptr)
                be.matmul(Matrix<const T>(matrix), Matrix<const T>(a), weight,
                          static_cast<typename B::Accum>(scaling), 1);
              be.fill(t.data(), t.size(), T(0));
            } else {
              weight = matrix;
            }
          }
        }
      },
      params);
}

}  // namespace mttt
