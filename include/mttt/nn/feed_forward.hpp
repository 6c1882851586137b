// FeedForward: two linear maps with an exact GELU between them, as in Mimi's transformers.
//
// Formula: h = x linear1^T,  y = gelu(h) linear2^T
// Shapes:  x, y (B, T, dim); linear1 (hidden, dim); linear2 (dim, hidden).
// Units:   none.
// Errors:  none.
// Not supported: biases.
// Source:  Vaswani et al. 2017; kyutai-labs/moshi modules/transformer.py
//          `StreamingTransformerLayer._ff_block`.
#pragma once

#include <cmath>

#include "mttt/core/concepts.hpp"
#include "mttt/math/scalar.hpp"
#include "mttt/nn/linear.hpp"

namespace mttt {

struct FeedForwardConfig {
  Index dim, hidden;
};

template <FeedForwardConfig C, class B>
struct FeedForward {
  using T = typename B::Scalar;
  static constexpr Index in = C.dim, out = C.dim, hidden = C.hidden;

  struct Params {
    Weight<B, hidden, in> linear1;
    Weight<B, out, hidden> linear2;
    static void visit(auto&& f, auto&&... p) {
      f("linear1.weight", p.linear1...);
      f("linear2.weight", p.linear2...);
    }
  };
  struct Saved {
    Sequence<const T, in> x;
    Sequence<const T, hidden> h;
  };
  using State = NoState;

  static void init(Params& p, Rng& rng) {
    init_truncated_normal(p.linear1, 1.0 / std::sqrt(static_cast<double>(in)), rng);
    init_truncated_normal(p.linear2, 1.0 / std::sqrt(static_cast<double>(hidden)), rng);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    const auto h = be.template make<T, dyn, dyn, hidden>(x.extent(0), x.extent(1));
    saved = {x, h};
    apply(be, p, x, y, h);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const auto g = be.template make<T, dyn, dyn, hidden>(dy.extent(0), dy.extent(1));
    const auto dg = be.template make<T, dyn, dyn, hidden>(dy.extent(0), dy.extent(1));
    const T* h = saved.h.data();
    be.map(g.size(), detail::Activate<Gelu>{}, g.data(), h);
    add_product(be, dy.matrix().t(), g.matrix(), grad.linear2.matrix());
    be.matmul(dy.matrix(), p.linear2.matrix(), dg.matrix());
    const auto dh = g;  // g has served
    be.map(dh.size(), detail::ActivateBackward<Gelu>{}, dh.data(), h, dg.data());
    be.matmul(dh.matrix(), p.linear1.matrix(), dx.matrix());
    add_product(be, dh.matrix().t(), saved.x.matrix(), grad.linear1.matrix());
  }

  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    const auto scope = be.scope();
    apply(be, p, x, y, be.template make<T, dyn, dyn, hidden>(x.extent(0), x.extent(1)));
  }
  static void reset(B&, const Params&, State&, Mask) {}

 private:
  static void apply(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y,
                    Sequence<T, hidden> h) {
    const auto scope = be.scope();
    const auto g = be.template make<T, dyn, dyn, hidden>(x.extent(0), x.extent(1));
    be.matmul(x.matrix(), p.linear1.matrix().t(), h.matrix());
    be.map(h.size(), detail::Activate<Gelu>{}, g.data(), h.data());
    be.matmul(g.matrix(), p.linear2.matrix().t(), y.matrix());
  }
};

}  // namespace mttt
