// LayerScale: every channel times a learned number, small at first, so that a residual branch starts quiet.
//
// Formula: y = x * scale;  dx = dy * scale;  dscale += sum of dy * x over rows.
// Shapes:  x, y (B, T, dim); scale (dim).
// Units:   none.
// Errors:  none.
// Not supported: channels elsewhere than last.
// Source:  Touvron et al. 2021 (arXiv 2103.17239); kyutai-labs/moshi modules/transformer.py `LayerScale`.
#pragma once

#include "mttt/nn/norm.hpp"

namespace mttt {

struct LayerScaleConfig {
  Index dim;
  double init = 1e-4;
};

namespace detail {

template <class T>
struct ScaleRow {
  const T *x, *scale;
  T* y;
  Index dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *from = x + row * dim, *factor = scale;
    T* to = y + row * dim;
    team.map(dim, Product{}, to, from, factor);
  }
};

}  // namespace detail

template <LayerScaleConfig C, class B>
struct LayerScale {
  using T = typename B::Scalar;
  static constexpr Index in = C.dim, out = C.dim;

  struct Params {
    Tensor<T, C.dim> scale;
    static void visit(auto&& f, auto&&... p) { f("scale", p.scale...); }
  };
  struct Saved {
    Sequence<const T, in> x;
  };
  using State = NoState;

  static void init(Params& p, Rng&) { init_constant(p.scale, C.init); }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    saved.x = x;
    apply(be, p, x, y);
  }
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    apply(be, p, dy, dx);
    sum_product_columns(be, dy.data(), saved.x.data(), nullptr, nullptr, grad.scale.data(),
                        dy.flat_rows().extent(0), C.dim);
  }
  static void step(B& be, const Params& p, State&, Sequence<const T, in> x, Sequence<T, out> y, Mask) {
    apply(be, p, x, y);
  }
  static void reset(B&, const Params&, State&, Mask) {}

 private:
  static void apply(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y) {
    be.rows(x.flat_rows().extent(0), detail::ScaleRow<T>{x.data(), p.scale.data(), y.data(), C.dim}, 0,
            C.dim);
  }
};

}  // namespace mttt
