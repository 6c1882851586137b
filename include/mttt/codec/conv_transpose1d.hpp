// ConvTranspose1d: causal transposed convolution over time, offline and streamed.
//
// Formula: y[t * stride + k, o] += sum over i of w[k, o, i] * x[t, i], plus b[o]. The kernel - stride samples
//          that reach past the end are cut off offline, and kept for the next chunk when streamed.
//          With groups, input i reaches the outputs of its own group.
// Shapes:  x (B, T, in), y (B, T * stride, out). The weight is published as (in, out / groups, kernel) and
//          stored as (kernel, out / groups, in). State: kernel - stride unfinished samples of each session,
//          without bias.
// Units:   samples.
// Errors:  none.
// Not supported: kernels shorter than the stride; dilation.
// Source:  kyutai-labs/moshi modules/conv.py `StreamingConvTranspose1d`.
#pragma once

#include "mttt/codec/conv1d.hpp"

namespace mttt {

struct ConvTranspose1dConfig {
  Index in, out, kernel;
  Index stride = 1, groups = 1;
  bool bias = true;

  /// Samples that a chunk leaves unfinished.
  constexpr Index overlap() const { return kernel - stride; }
  constexpr bool depthwise() const { return groups > 1 && groups == in && groups == out; }
};

template <ConvTranspose1dConfig C, class B>
struct ConvTranspose1d {
  static_assert(C.in % C.groups == 0 && C.out % C.groups == 0,
                "mttt: ConvTranspose1d: groups must divide in and out");
  static_assert(C.stride >= 1 && C.kernel >= C.stride,
                "mttt: ConvTranspose1d: the kernel must cover the stride");

  using T = typename B::Scalar;
  static constexpr Index in = C.in, out = C.out, overlap = C.overlap();
  static constexpr Index group_in = C.in / C.groups, group_out = C.out / C.groups,
                         window = C.kernel * group_out;
  static constexpr bool depthwise = C.depthwise();
  static constexpr Index out_time(Index steps) { return steps * C.stride; }

  using Number = typename detail::ConvolutionNumber<B, depthwise ? 0 : window * C.in>::type;
  using Weight = PermutedTensor<Number, std::index_sequence<2, 1, 0>, C.kernel, group_out, C.in>;
  struct Params {
    Weight weight;
    Tensor<T, C.bias ? C.out : 0> bias;  // of no elements without bias
    static void visit(auto&& f, auto&&... p) {
      f("convtr.convtr.weight", p.weight...);
      if constexpr (C.bias) f("convtr.convtr.bias", p.bias...);
    }
  };
  struct Saved {
    Sequence<const T, in> x;
  };
  struct State {
    Tensor<T, dyn, overlap, C.out> partial;
    static void visit(auto&& f, auto&&... s) {
      if constexpr (overlap > 0) f("partial", s.partial...);
    }
  };

  static void init(Params& p, Rng& rng) {
    // kernel / stride inputs meet in every output sample
    const double terms = static_cast<double>(group_in * C.kernel) / static_cast<double>(C.stride);
    init_truncated_normal(p.weight, 1.0 / std::sqrt(terms), rng);
    if constexpr (C.bias) init_constant(p.bias, 0.0);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    saved.x = x;
    if constexpr (has_windows) {
      if (multiplies_windows(be)) return forward_windows(be, p, x, y);
    }
    const auto scope = be.scope();
    add_windows(be, p, x, multiply(be, p, x), nullptr, C.bias ? p.bias.data() : nullptr, 0, y);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    if constexpr (has_windows &&
                  std::is_same_v<T, typename std::remove_cvref_t<decltype(grad.weight)>::value_type>) {
      if (multiplies_windows(be)) return backward_windows(be, p, saved, dy, dx, grad);
    }
    constexpr bool aligned = C.groups == 1 || depthwise;
    const Index sessions = dy.extent(0), together = at_once && aligned ? sessions : 1;
    for (Index b = 0; b < sessions; b += together) {
      backward_some(be, p, saved, dy, dx, grad, b, together);
    }
    if constexpr (C.bias) {
      detail::sum_many_rows(be, dy.data(), grad.bias.data(), dy.flat_rows().extent(0), out);
    }
  }

  static void step(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                   Mask mask) {
    if constexpr (joins) {
      step_joined<Identity>(be, p, state, x, y, mask);
      return;
    }
    const auto scope = be.scope();
    const T* windows = multiply(be, p, x);
    const T* partial = overlap > 0 ? state.partial.data() : nullptr;
    add_windows(be, p, x, windows, partial, C.bias ? p.bias.data() : nullptr, 0, y);
    if constexpr (overlap > 0) {
      const auto tail = be.template make<T, dyn, dyn, out>(x.extent(0), overlap);
      add_windows(be, p, x, windows, partial, nullptr, y.extent(1), tail);
      detail::copy_sessions<B, T>(be, tail.data(), overlap * out, state.partial.data(), overlap * out,
                                  overlap * out, x.extent(0), mask.data());
    }
  }
  static void reset(B& be, const Params&, State& state, Mask mask) { clear_state(be, state, mask); }

  /// Whether the backend has one kernel for a step.
  static constexpr bool joins =
      C.groups == 1 && C.kernel % C.stride == 0 && requires(B & be, ConvTransposeStep<T> conv) {
    be.template conv_transpose_step<Identity>(conv);
  };
  /// The step of F(x): for composites that hand over the activation before it.
  template <class F>
  static void step_joined(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                          Mask mask) requires(joins) {
    const auto scope = be.scope();
    const Index sessions = x.extent(0);
    const auto tail = be.template make<T, dyn, overlap, out>(sessions);
    be.template conv_transpose_step<F>(
        ConvTransposeStep<T>{x.data(), p.weight.data(), C.bias ? p.bias.data() : nullptr,
                             overlap > 0 ? state.partial.data() : nullptr, y.data(), tail.data(), sessions,
                             x.extent(1), in, out, C.kernel, C.stride});
    detail::copy_sessions<B, T>(be, tail.data(), overlap * out, state.partial.data(), overlap * out,
                                overlap * out, sessions, mask.data());
  }

 private:
  /// Whether the backend may multiply windows as they lie in x and dy.
  static constexpr bool has_windows = C.groups == 1 && C.kernel % C.stride == 0 && requires(B & be) {
    be.multiplies_windows();
  };
  static constexpr Index taps = C.kernel / C.stride, width = C.stride * out;
  /// y in rows of `stride` samples: each of the kernel / stride rows of x that reach it.
  static void forward_windows(B& be, const Params& p, Sequence<const T, in> x,
                              Sequence<T, out> y) requires(has_windows) {
    const Index sessions = x.extent(0), steps = x.extent(1);
    be.multiply_windows({x.data(), sessions, steps, taps * in, in, -(taps - 1) * in, steps * in, steps * in},
                        {p.weight.data() + (taps - 1) * width * in, in, -width * in, 1, in},
                        Matrix<T>{y.data(), sessions * steps, width, width}, C.bias ? p.bias.data() : nullptr,
                        out);
  }
  /// The samples that were cut off have no gradient.
  static void backward_windows(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                               Sequence<T, in> dx, auto& grad) requires(has_windows) {
    const Index sessions = dx.extent(0), steps = dx.extent(1);
    const Windows<T> windows{dy.data(), sessions, steps, window, width, 0, steps * width, steps * width};
    be.add_window_gradient(windows, saved.x.matrix(), grad.weight.data(), in, 1);
    if constexpr (C.bias) {  // a product with no columns but that of ones
      const Index rows = sessions * steps * C.stride;
      be.add_window_gradient({dy.data(), 1, rows, 0, out, 0, 0, rows * out}, dy.matrix(), nullptr, 0, 0,
                             grad.bias.data());
    }
    be.multiply_windows(windows, {p.weight.data(), window, 0, in, 1}, dx.matrix());
  }

  /// The weights of one group, (window, group_in).
  template <class W>  // Weight, or that of gradients
  static Matrix<typename W::value_type> group_weight(const W& weight, Index g) {
    return {weight.data() + g * group_in, window, group_in, in};
  }

  /// Every input's window of outputs, (groups, B * T, kernel, group_out); null when depthwise.
  static const T* multiply(B& be, const Params& p, Sequence<const T, in> x) {
    if constexpr (depthwise) {
      return nullptr;
    } else {
      const Index rows = x.flat_rows().extent(0);
      const auto windows = be.template make<T, C.groups, dyn, window>(rows);
      for (Index g = 0; g < C.groups; ++g) {
        be.matmul(Matrix<const T>{x.data() + g * group_in, rows, group_in, in}, group_weight(p.weight, g).t(),
                  windows[g].matrix());
      }
      return windows.data();
    }
  }

  /// y = output samples [first, first + y.extent(1)) of x, plus what earlier chunks left.
  static void add_windows(B& be, const Params& p, Sequence<const T, in> x, const T* windows, const T* partial,
                          const T* bias, Index first, Sequence<T, out> y) {
    const Index sessions = x.extent(0), steps = x.extent(1), count = y.extent(1);
    if constexpr (depthwise) {
      be.rows(sessions * count,
              detail::DepthwiseOverlapAdd<T>{x.data(), p.weight.data(), partial, bias, y.data(), steps,
                                             C.kernel, C.stride, 1, out, first, count, overlap},
              0, C.kernel * out);
    } else {
      detail::overlap_add(
          be, detail::OverlapAdd<T>{windows, partial, bias, y.data(), sessions, steps, C.kernel, C.stride, 1,
                                    C.groups, out, first, count, overlap});
    }
  }

  static constexpr bool at_once = detail::wants_large<B>;  // all sessions in one product
  /// Rows of `stride` samples that a session's dy takes with what was cut off.
  static constexpr Index rows_of(Index steps) { return steps + (overlap + C.stride - 1) / C.stride; }

  /// Of sessions [first, first + sessions).
  static void backward_some(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                            Sequence<T, in> dx, auto& grad, Index first, Index sessions) {
    const auto scope = be.scope();
    const Index steps = dx.extent(1), apart = rows_of(steps), stride = apart * C.stride * out;
    const T* x = saved.x[first].data();
    const T* windows = dy[first].data();
    if constexpr (overlap > 0) {  // the samples that were cut off have no gradient
      const auto padded = be.template make<T, dyn, dyn>(sessions, stride);
      be.fill(padded.data(), padded.size(), T(0));
      detail::copy_sessions<B, T>(be, windows, dy.extent(1) * out, padded.data(), stride, dy.extent(1) * out,
                                  sessions);
      windows = padded.data();
    }
    if constexpr (depthwise) {
      using G = typename decltype(grad.weight)::value_type;
      be.rows(sessions * steps,
              detail::DepthwiseWindows<T>{windows, p.weight.data(), nullptr, dx[first].data(), steps,
                                          C.kernel, C.stride, 1, in, stride},
              0, C.kernel * in);
      be.rows(C.kernel,
              detail::DepthwiseWeightGradient<T, G>{windows, x, grad.weight.data(), sessions, steps, C.stride,
                                                    1, in, stride},
              0, sessions * steps * in);
    } else {
      Matrix<const T> w{windows, steps, window, C.stride * out};
      if constexpr (C.groups > 1) {
        const auto gathered = be.template make<T, C.groups, dyn, window>(steps);
        be.rows(steps,
                detail::GatherWindows<T>{windows, gathered.data(), 1, steps, C.kernel, C.stride, 1, C.groups,
                                         out, 0},
                0, C.kernel * out);
        w = {gathered.data(), steps, window, window};
      }
      for (Index g = 0; g < C.groups; ++g, w.data += steps * window) {
        be.matmul_grid(sessions, 1, MatrixGrid<const T>{w, stride, 0},
                       MatrixGrid<const T>{group_weight(p.weight, g), 0, 0},
                       MatrixGrid<T>{{dx[first].data() + g * group_in, steps, group_in, in}, steps * in, 0});
        weight_gradient(be, w, x + g * group_in, sessions, apart, group_weight(grad.weight, g));
      }
    }
  }

  /// The windows of all sessions are one overlapping plane, with rows between those of two sessions that are
  /// neither's: their x is 0.
  static void weight_gradient(B& be, Matrix<const T> windows, const T* x, Index sessions, Index apart,
                              auto to) {
    const auto scope = be.scope();
    const Index steps = windows.rows;
    Matrix<const T> rows{x, steps, group_in, in};
    if (sessions > 1) {
      const auto spread = be.template make<T, dyn, in>(sessions * apart);
      be.fill(spread.data(), spread.size(), T(0));
      detail::copy_sessions<B, T>(be, x, steps * in, spread.data(), apart * in, steps * in, sessions);
      rows = {spread.data(), (sessions - 1) * apart + steps, group_in, in};
      windows.rows = rows.rows;
    }
    detail::add_tall_product(be, windows, rows, to);
  }
};

}  // namespace mttt
