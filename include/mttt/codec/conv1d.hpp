// Conv1d: causal convolution over time, offline and streamed.
//
// Formula: y[t, o] = b[o] + sum over k, i of w[o, k, i] * x[t * stride + k * dilation - context, i] with
//          context = (kernel - 1) * dilation + 1 - stride. Before the first sample x is zero, or the first
//          sample repeated (`replicate`). With groups, output o sees the inputs of its own group.
//          dx and dw are its adjoints; with replicate, the repeated samples add to the gradient of the first.
// Shapes:  x (B, T, in) with T a multiple of stride, y (B, T / stride, out). The weight is published as
//          (out, in / groups, kernel) and stored as (out, kernel, in / groups), or (kernel, out, 1) where
//          every channel is a group. State: the last `context` samples of each session.
// Units:   samples.
// Errors:  Error when T is not a multiple of stride.
// Not supported: kernels shorter than the stride; padding on the right; weight normalisation (fold it into
//          the weight, as published checkpoints do).
// Source:  kyutai-labs/moshi modules/conv.py `StreamingConv1d`. There a stream that replicates its first
//          sample has to begin with `context` samples or more; here any chunk gives the offline result.
#pragma once

#include "mttt/codec/windows.hpp"
#include "mttt/core/permuted_tensor.hpp"
#include "mttt/nn/linear.hpp"

namespace mttt {

enum class PadMode { zero, replicate };

struct Conv1dConfig {
  Index in, out, kernel;
  Index stride = 1, dilation = 1, groups = 1;
  bool bias = true;
  PadMode pad_mode = PadMode::zero;

  /// Samples before the current ones that a window reaches.
  constexpr Index context() const { return (kernel - 1) * dilation + 1 - stride; }
  constexpr bool depthwise() const { return groups > 1 && groups == in && groups == out; }
};

namespace detail {

/// Fails unless the number of samples is a multiple of a convolution's stride.
inline void require_multiple(std::string_view what, Index steps, Index multiple) {
  if (steps % multiple != 0) {
    fail(what, std::to_string(steps) + " time steps", "a multiple of " + std::to_string(multiple),
         "pad the end with zeros, or keep the rest for the next chunk");
  }
}

}  // namespace detail

template <Conv1dConfig C, class B>
struct Conv1d {
  static_assert(C.in % C.groups == 0 && C.out % C.groups == 0, "mttt: Conv1d: groups must divide in and out");
  static_assert(C.kernel >= 1 && C.stride >= 1 && C.dilation >= 1,
                "mttt: Conv1d: kernel, stride, dilation >= 1");
  static_assert(C.context() >= 0, "mttt: Conv1d: the kernel with its dilation must cover the stride");

  using T = typename B::Scalar;
  static constexpr Index in = C.in, out = C.out, time_multiple = C.stride, context = C.context();
  static constexpr Index group_in = C.in / C.groups, group_out = C.out / C.groups,
                         window = C.kernel * group_in;
  static constexpr bool depthwise = C.depthwise();
  static constexpr bool replicate = C.pad_mode == PadMode::replicate && context > 0;
  static constexpr Index out_time(Index steps) { return steps / C.stride; }

  using Number = typename detail::ConvolutionNumber<B, depthwise ? 0 : C.out * window>::type;
  using Weight =
      std::conditional_t<depthwise, PermutedTensor<T, std::index_sequence<2, 0, 1>, C.kernel, C.out, 1>,
                         PermutedTensor<Number, std::index_sequence<0, 2, 1>, C.out, C.kernel, group_in>>;
  struct Params {
    Weight weight;
    Tensor<T, C.bias ? C.out : 0> bias;  // of no elements without bias
    static void visit(auto&& f, auto&&... p) {
      f("conv.conv.weight", p.weight...);
      if constexpr (C.bias) f("conv.conv.bias", p.bias...);
    }
  };
  struct Saved {
    Sequence<const T, in> padded;  // (B, context + T, in), or x where the backend multiplies windows
  };
  struct State {
    Tensor<T, dyn, context, C.in> previous;
    Tensor<std::uint8_t, dyn, 1> started;  // 0: the next sample is the first of its session
    static void visit(auto&& f, auto&&... s) {
      if constexpr (context > 0) f("previous", s.previous...);
      if constexpr (replicate) f("started", s.started...);
    }
  };

  static void init(Params& p, Rng& rng) {
    init_truncated_normal(p.weight, 1.0 / std::sqrt(static_cast<double>(window)), rng);
    if constexpr (C.bias) init_constant(p.bias, 0.0);
  }

  static void forward(B& be, const Params& p, Sequence<const T, in> x, Sequence<T, out> y, Saved& saved) {
    if constexpr (has_windows) {
      if (multiplies_windows(be)) {
        detail::require_multiple("Conv1d", x.extent(1), C.stride);
        saved.padded = x;
        be.multiply_windows(windows_of(x), {p.weight.data(), window, 0, 1, window}, y.matrix(),
                            C.bias ? p.bias.data() : nullptr, out);
        return;
      }
    }
    if constexpr (context == 0) {
      saved.padded = x;
    } else {
      const auto padded = make_padded(be, x);
      fill_context(be, nullptr, nullptr, replicate ? x.data() : nullptr, padded);
      saved.padded = padded;
    }
    apply(be, p, saved.padded, y);
  }

  /// A null dx, of extents all the same, is left out: nobody asks for the gradient of a recording.
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    if constexpr (has_windows &&
                  std::is_same_v<T, typename std::remove_cvref_t<decltype(grad.weight)>::value_type>) {
      if (multiplies_windows(be)) return backward_windows(be, p, saved, dy, dx, grad);
    }
    const bool aligned = !overlapping || saved.padded.extent(1) % C.stride == 0;
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
    } else if constexpr (context == 0) {
      apply(be, p, x, y);
    } else {
      const auto scope = be.scope();
      const auto padded = make_padded(be, x);
      fill_context(be, state.previous.data(), replicate ? state.started.data() : nullptr, x.data(), padded);
      apply(be, p, padded, y);
      const Index steps = x.extent(1), sessions = x.extent(0);
      detail::copy_sessions<B, T>(be, padded.data() + steps * in, padded.extent(1) * in,
                                  state.previous.data(), context * in, context * in, sessions, mask.data());
      if constexpr (replicate) be.for_each(sessions, detail::MarkStarted{state.started.data(), mask.data()});
    }
  }
  static void reset(B& be, const Params&, State& state, Mask mask) { clear_state(be, state, mask); }

  /// Whether the backend has one kernel for a step.
  static constexpr bool joins = C.groups == 1 && C.dilation == 1 && requires(B & be, ConvStep<T> conv) {
    be.template conv_step<Identity>(conv, Finish<T>{});
  };
  /// The step of F(x), plus `addend` if given: for composites that hand over what stands beside it.
  template <class F>
  static void step_joined(B& be, const Params& p, State& state, Sequence<const T, in> x, Sequence<T, out> y,
                          Mask mask, const T* addend = nullptr) requires(joins) {
    const Index sessions = x.extent(0), steps = x.extent(1);
    detail::require_multiple("Conv1d", steps, C.stride);
    const std::uint8_t* started = replicate ? state.started.data() : nullptr;
    const T* previous = context > 0 ? state.previous.data() : nullptr;
    be.template conv_step<F>(ConvStep<T>{x.data(), previous, started, p.weight.data(), y.data(), sessions,
                                         y.extent(1), in, out, C.kernel, C.stride},
                             Finish<T>{C.bias ? p.bias.data() : nullptr, nullptr, addend});
    if constexpr (context > 0) {
      constexpr Index block = in < 128 ? in : 128;
      be.rows(sessions * ((in + block - 1) / block),
              detail::ShiftContext<F, T>{x.data(), state.previous.data(), started, mask.data(), steps,
                                         context, in, block},
              0, context * block * 8);
      if constexpr (replicate) be.for_each(sessions, detail::MarkStarted{state.started.data(), mask.data()});
    }
  }

 private:
  /// Whether the backend may multiply windows as they lie in x.
  static constexpr bool has_windows =
      C.groups == 1 && C.dilation == 1 && C.kernel % C.stride == 0 && !replicate && requires(B & be) {
    be.multiplies_windows();
  };
  static Windows<T> windows_of(Sequence<const T, in> x) {
    const Index steps = x.extent(1);
    return {x.data(),      x.extent(0),   steps / C.stride, window,
            C.stride * in, -context * in, steps * in,       steps * in};
  }
  /// dx in rows of `stride` samples: each of the kernel / stride rows of dy that it was seen by.
  static void backward_windows(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                               Sequence<T, in> dx, auto& grad) requires(has_windows) {
    const Index sessions = dy.extent(0), rows = dy.extent(1);
    be.add_window_gradient(windows_of(saved.padded), dy.matrix(), grad.weight.data(), 1, window,
                           C.bias ? grad.bias.data() : nullptr);
    if (dx.data() == nullptr) return;
    constexpr Index taps = C.kernel / C.stride, width = C.stride * in;
    be.multiply_windows({dy.data(), sessions, rows, taps * out, out, 0, rows * out, rows * out},
                        {p.weight.data() + (taps - 1) * width, out, -width, window, 1},
                        Matrix<T>{dx.data(), sessions * rows, width, width});
  }

  /// (B, context + T, in), the last T steps filled.
  static Sequence<T, in> make_padded(B& be, Sequence<const T, in> x) {
    const Index sessions = x.extent(0), steps = x.extent(1);
    const auto padded = be.template make<T, dyn, dyn, in>(sessions, context + steps);
    detail::copy_sessions<B, T>(be, x.data(), steps * in, padded.data() + context * in,
                                (context + steps) * in, steps * in, sessions);
    return padded;
  }
  static void fill_context(B& be, const T* previous, const std::uint8_t* started, const T* x,
                           Sequence<T, in> padded) {
    const Index sessions = padded.extent(0), rows = padded.extent(1);
    be.rows(sessions * context,
            detail::FillContext<T>{previous, x, started, padded.data(), context, in, (rows - context) * in,
                                   rows * in},
            0, in);
  }

  /// windows (groups, rows, window) of sessions that lie padded_stride apart
  static Tensor<T, C.groups, dyn, window> gather(B& be, const T* padded, Index sessions, Index steps,
                                                 Index padded_stride) {
    const auto windows = be.template make<T, C.groups, dyn, window>(sessions * steps);
    be.rows(sessions * steps,
            detail::GatherWindows<T>{padded, windows.data(), sessions, steps, C.kernel, C.stride, C.dilation,
                                     C.groups, in, padded_stride},
            0, C.kernel * in);
    return windows;
  }
  /// The weights of one group, (group_out, window).
  template <class W>  // Weight, or that of gradients
  static Matrix<typename W::value_type> group_weight(const W& weight, Index g) {
    return {weight.data() + g * group_out * window, group_out, window, window};
  }
  static constexpr bool overlapping = C.dilation == 1 && C.groups == 1;  // windows need no copy
  static constexpr bool at_once = detail::wants_large<B>;                // all sessions in one product

  static void apply(B& be, const Params& p, Sequence<const T, in> padded, Sequence<T, out> y) {
    detail::require_multiple("Conv1d", padded.extent(1) - context, C.stride);
    if constexpr (depthwise) {
      be.rows(y.extent(0) * y.extent(1),
              detail::DepthwiseWindows<T>{padded.data(), p.weight.data(), C.bias ? p.bias.data() : nullptr,
                                          y.data(), y.extent(1), C.kernel, C.stride, C.dilation, in,
                                          padded.extent(1) * in},
              0, C.kernel * in);
    } else {
      multiply_windows(be, p, padded, y);
      if constexpr (C.bias) add_row(be, p.bias.data(), y.data(), y.flat_rows().extent(0), out);
    }
  }

  static void multiply_windows(B& be, const Params& p, Sequence<const T, in> padded, Sequence<T, out> y) {
    const Index sessions = y.extent(0), steps = y.extent(1), stride = padded.extent(1) * in;
    constexpr Index few = 16;  // rows a session below which the weights should be read once for all sessions
    if constexpr (overlapping && at_once) {
      if (steps >= few)
        return be.matmul_grid(sessions, 1,
                              MatrixGrid<const T>{{padded.data(), steps, window, C.stride * in}, stride, 0},
                              MatrixGrid<const T>{group_weight(p.weight, 0).t(), 0, 0},
                              MatrixGrid<T>{{y.data(), steps, out, out}, steps * out, 0});
    }
    if (overlapping && (sessions == 1 || steps >= few)) {
      for (Index b = 0; b < sessions; ++b) {
        const Matrix<const T> windows{padded.data() + b * stride, steps, window, C.stride * in};
        be.matmul(windows, group_weight(p.weight, 0).t(), y[b].matrix());
      }
      return;
    }
    const auto scope = be.scope();
    const auto windows = gather(be, padded.data(), sessions, steps, stride);
    for (Index g = 0; g < C.groups; ++g) {
      be.matmul(windows[g].matrix(), group_weight(p.weight, g).t(),
                Matrix<T>{y.data() + g * group_out, sessions * steps, group_out, out});
    }
  }

  /// Of sessions [first, first + sessions).
  static void backward_some(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                            Sequence<T, in> dx, auto& grad, Index first, Index sessions) {
    const auto scope = be.scope();
    const Index rows = dy.extent(1), steps = dx.extent(1), stride = saved.padded.extent(1) * in;
    const T *padded = saved.padded[first].data(), *upper = dy[first].data();
    const auto add_windows = [&](Index from, Index count, const T* windows, T* to) {
      if constexpr (depthwise) {
        be.rows(sessions * count,
                detail::DepthwiseOverlapAdd<T>{upper, p.weight.data(), nullptr, nullptr, to, rows, C.kernel,
                                               C.stride, C.dilation, in, from, count, 0},
                0, C.kernel * in);
      } else {
        detail::overlap_add(be, detail::OverlapAdd<T>{windows, nullptr, nullptr, to, sessions, rows, C.kernel,
                                                      C.stride, C.dilation, C.groups, in, from, count, 0});
      }
    };
    T* dwindows = nullptr;
    if constexpr (depthwise) {
      using G = typename decltype(grad.weight)::value_type;
      be.rows(C.kernel,
              detail::DepthwiseWeightGradient<T, G>{padded, upper, grad.weight.data(), sessions, rows,
                                                    C.stride, C.dilation, in, stride},
              0, sessions * rows * in);
    } else {
      const Index all = sessions * rows;
      weight_gradient(be, padded, stride, upper, sessions, rows, grad);
      if (dx.data() == nullptr) return;
      dwindows = be.template make<T, C.groups, dyn, window>(all).data();
      for (Index g = 0; g < C.groups; ++g) {
        be.matmul(Matrix<const T>{upper + g * group_out, all, group_out, out}, group_weight(p.weight, g),
                  Matrix<T>{dwindows + g * all * window, all, window, window});
      }
    }
    if (dx.data() == nullptr) return;
    add_windows(context, steps, dwindows, dx[first].data());
    if constexpr (replicate) {
      const auto before = be.template make<T, dyn, context, in>(sessions);
      add_windows(0, context, dwindows, before.data());
      be.for_each(sessions * in,
                  detail::AddRepeated<T>{before.data(), dx[first].data(), context, in, steps * in});
    }
  }

  /// The windows of all sessions are one overlapping plane too, with `context / stride` rows between those of
  /// two sessions that are neither's: their dy is 0.
  static void weight_gradient(B& be, const T* padded, Index stride, const T* upper, Index sessions,
                              Index rows, auto& grad) {
    const auto scope = be.scope();
    if constexpr (overlapping) {
      const Index apart = stride / (C.stride * in);  // rows from session to session
      Matrix<const T> d{upper, rows, out, out};
      if (sessions > 1) {
        const auto spread = be.template make<T, dyn, out>(sessions * apart);
        be.fill(spread.data(), spread.size(), T(0));
        detail::copy_sessions<B, T>(be, upper, rows * out, spread.data(), apart * out, rows * out, sessions);
        d = {spread.data(), (sessions - 1) * apart + rows, out, out};
      }
      detail::add_tall_product(be, d, Matrix<const T>{padded, d.rows, window, C.stride * in},
                               group_weight(grad.weight, 0));
    } else {
      const auto windows = gather(be, padded, sessions, rows, stride);
      for (Index g = 0; g < C.groups; ++g) {
        be.matmul(Matrix<const T>{upper + g * group_out, sessions * rows, group_out, out}.t(),
                  windows[g].matrix(), group_weight(grad.weight, g), 1, 1);
      }
    }
  }
};

}  // namespace mttt
