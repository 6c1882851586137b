// Conv2d: a convolution over time and frequency with weight normalisation, for discriminators of spectra.
//
// Formula: y[t, f, o] = b[o] + sum over k, l, i of w[o, k, l, i] x[t + (k - (K - 1) / 2) dilation,
//          f stride + l - (L - 1) / 2, i], x zero outside; w[o] = g[o] v[o] / |v[o]|. activated: y becomes
//          max(y, slope y).
//          A plane of `stride` neighbouring bands is a row; one product with the weights of all taps gives what
//          each row adds to each output near it, and the taps are summed where they meet: nothing is unfolded
//          but the gradient, once for both of its products. Inputs of few channels are unfolded instead.
// Shapes:  x (B, T, S, in): S - 1 bands and a last slot of zeros; y (B, T, S', out) with S' - 1 =
//          (S - 2) / stride + 1 bands. v (out, K, L, in), g and b (out). Parameters are in the type to compute in.
// Units:   frames, bands.
// Errors:  S that `stride` does not divide.
// Not supported: strides in time, dilation in frequency, groups, streaming (it sees the future).
// Source:  facebookresearch/encodec modules/conv.py `NormConv2d`; Salimans and Kingma 2016 (weight norm).
#pragma once

#include "mttt/codec/windows.hpp"
#include "mttt/core/lanes.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/nn/linear.hpp"

namespace mttt {

struct Conv2dConfig {
  Index in, out, kernel_time, kernel_band;
  Index stride = 1, dilation = 1;
  bool activated = true;
};

/// (B, T, slots, channels): the last slot is 0.
template <class T, Index C>
using Planes = Tensor<T, dyn, dyn, dyn, C>;

namespace detail {

/// Where a weight stands in the matrix of a product, and which bands meet: the numbers of a Conv2dConfig.
template <int In, int Out, int KernelTime, int KernelBand, int Stride, int Dilation>
struct Conv2dPlaces {
  static constexpr int in = In, out = Out, stride = Stride, dilation = Dilation, taps_time = KernelTime,
                       middle = (KernelTime - 1) / 2, pad = (KernelBand - 1) / 2,
                       weights = KernelTime * KernelBand * In;  // of an output
  static constexpr bool unfolds = In < 8;
  static constexpr int least = unfolds ? 0 : -((pad + Stride - 1) / Stride);  // row nearest to band 0
  static constexpr int taps_band = unfolds ? KernelBand : (KernelBand - 1 - pad) / Stride - least + 1;
  // Multiples of 8: tensor cores want rows at multiples of 16 bytes.
  static constexpr int rows = unfolds ? (weights + 7) / 8 * 8 : Stride * In,
                       columns = unfolds ? Out : (KernelTime * taps_band * Out + 7) / 8 * 8;

  /// Of weight e of output o, e = (k * KernelBand + l) * In + i.
  MTTT_HD static Index place(Index o, Index e) {
    if (unfolds) return e * columns + o;
    const Index i = e % In, l = e / In % KernelBand, k = e / In / KernelBand;
    const Index away = l - pad - least * Stride;  // from 0
    return (away % Stride * In + i) * columns + (k * taps_band + away / Stride) * Out + o;
  }
};

/// matrix of w, from v and g; norms[o] = |v[o]|.
template <class P, class T, class A>
struct NormaliseWeights {
  const A *v, *g;
  A* norms;
  T* matrix;
  template <class Team>
  MTTT_HD void operator()(Team team, Index o) const {
    const A* row = v + o * P::weights;
    const A norm = std::sqrt(team.template sum<A>(P::weights, [=](Index e) { return row[e] * row[e]; }));
    const A scale = g[o] / norm;
    T* to = matrix;
    team.for_each(P::weights, [=](Index e) { to[P::place(o, e)] = static_cast<T>(scale * row[e]); });
    if (team.leader()) norms[o] = norm;
  }
};

/// Gradients of v and g from that of the matrix.
template <class P, class A>
struct NormaliseWeightsBackward {
  const A *v, *g, *norms, *dmatrix;
  A *dv, *dg;
  template <class Team>
  MTTT_HD void operator()(Team team, Index o) const {
    const A *row = v + o * P::weights, *from = dmatrix;
    A* to = dv + o * P::weights;
    const A norm = norms[o], scale = g[o] / norm;
    const A along =
        team.template sum<A>(P::weights, [=](Index e) { return from[P::place(o, e)] * row[e]; }) / norm;
    team.for_each(P::weights,
                  [=](Index e) { to[e] += scale * (from[P::place(o, e)] - along * row[e] / norm); });
    if (team.leader()) dg[o] += along;
  }
};

/// Channels that a thread takes at a time: 16 bytes, where they are whole.
template <class T, int channels>
inline constexpr int lanes_of = channels % static_cast<int>(16 / sizeof(T)) == 0
                                    ? static_cast<int>(16 / sizeof(T))
                                    : 1;

/// y of a frame: the sum of its taps, bias, activation; the last slot 0. A team a frame.
template <class P, class T, class A>
struct SumTaps {
  const T* parts;  // (B, T, rows, columns)
  const A* bias;
  T* y;  // (B, T, slots, out)
  Index steps, rows, slots;
  A slope;
  template <class Team>
  MTTT_HD void operator()(Team team, Index frame) const {
    constexpr int W = lanes_of<T, P::out>, packs = P::out / W;
    const auto all = *this;
    const Index t = frame % steps;
    T* to = y + frame * slots * P::out;
    team.for_each(slots * packs, [=](Index at) {
      const int i = static_cast<int>(at), f = i / packs, o = i % packs * W;  // ints: they divide fast
      A total[W];
      for (int lane = 0; lane < W; ++lane) total[lane] = f + 1 == all.slots ? A(0) : all.bias[o + lane];
      const auto add = [&](const T* from) {
        const auto lanes = load_lanes<W>(from);
        for (int lane = 0; lane < W; ++lane) total[lane] += wide(lanes.of[lane]);
      };
      if constexpr (P::unfolds) {
        if (f + 1 < all.slots) add(all.parts + (frame * all.rows + f) * P::columns + o);
      } else {
        for (int k = 0; k < P::taps_time; ++k) {
          const int away = (k - P::middle) * P::dilation;
          if (t + away < 0 || t + away >= all.steps || f + 1 == all.slots) continue;
          for (int j = 0; j < P::taps_band; ++j) {
            const int p = f + P::least + j;
            if (p < 0 || p >= all.rows) continue;
            add(all.parts + ((frame + away) * all.rows + p) * P::columns + (k * P::taps_band + j) * P::out +
                o);
          }
        }
      }
      Lanes<T, W> result;
      for (int lane = 0; lane < W; ++lane)
        result.of[lane] = static_cast<T>(total[lane] > 0 ? total[lane] : all.slope * total[lane]);
      store_lanes(to + i * W, result);
    });
  }
};

/// Its adjoint: what each tap of each row has of the gradient.
template <class P, class T>
struct SpreadTaps {
  const T* dy;  // (B, T, slots, out), the last slot 0
  T* parts;     // (B, T, rows, columns)
  Index steps, rows, slots;
  template <class Team>
  MTTT_HD void operator()(Team team, Index frame) const {
    constexpr int W = lanes_of<T, P::out>, packs = P::columns / W;
    const auto all = *this;
    const Index t = frame % steps;
    T* to = parts + frame * rows * P::columns;
    team.for_each(rows * packs, [=](Index at) {
      const int i = static_cast<int>(at), p = i / packs, column = i % packs * W, o = column % P::out,
                tap = column / P::out, k = tap / P::taps_band, f = p - P::least - tap % P::taps_band;
      const int away = (k - P::middle) * P::dilation;
      const bool met = k < P::taps_time && t - away >= 0 && t - away < all.steps && f >= 0 && f < all.slots;
      Lanes<T, W> lanes{};
      if (met) lanes = load_lanes<W>(all.dy + ((frame - away) * all.slots + f) * P::out + o);
      store_lanes(to + i * W, lanes);
    });
  }
};

/// The windows of a frame's outputs, for inputs of few channels: of each frame in reach, neighbours in memory.
template <class P, class T, class A>
struct UnfoldBands {
  const A* x;  // (B, T, slots, in)
  T* windows;  // (B, T, slots, rows)
  Index steps, slots;
  template <class Team>
  MTTT_HD void operator()(Team team, Index frame) const {
    constexpr int W = lanes_of<T, P::rows>, packs = P::rows / W, span = P::taps_band * P::in;
    const auto all = *this;
    const Index t = frame % steps;
    T* to = windows + frame * slots * P::rows;
    team.for_each(slots * packs, [=](Index at) {
      const int i = static_cast<int>(at), f = i / packs, first = i % packs * W;
      const int width = static_cast<int>(all.slots) * P::in;
      Lanes<T, W> lanes;
      for (int lane = 0; lane < W; ++lane) {
        const int e = first + lane, k = e / span, q = (f - P::pad) * P::in + e % span;
        const int away = (k - P::middle) * P::dilation;
        const bool met = k < P::taps_time && t + away >= 0 && t + away < all.steps && q >= 0 && q < width;
        lanes.of[lane] = met ? static_cast<T>(all.x[(frame + away) * width + q]) : T(0);
      }
      store_lanes(to + i * W, lanes);
    });
  }
};

/// Its adjoint.
template <class P, class T, class A>
struct FoldBands {
  const T* windows;
  A* dx;
  Index steps, slots;
  template <class Team>
  MTTT_HD void operator()(Team team, Index frame) const {
    const auto all = *this;
    const Index t = frame % steps;
    A* to = dx + frame * slots * P::in;
    team.for_each(slots * P::in, [=](Index at) {
      const int i = static_cast<int>(at), p = i / P::in, c = i % P::in;
      A total = 0;
      for (int k = 0; k < P::taps_time; ++k) {
        const int away = (k - P::middle) * P::dilation;
        if (t - away < 0 || t - away >= all.steps) continue;
        for (int l = 0; l < P::taps_band; ++l) {
          const int f = p - l + P::pad;
          if (f < 0 || f >= all.slots) continue;
          total += wide(
              all.windows[((frame - away) * all.slots + f) * P::rows + (k * P::taps_band + l) * P::in + c]);
        }
      }
      to[i] = total;
    });
  }
};

}  // namespace detail

template <Conv2dConfig C, class B>
struct Conv2d {
  static_assert(C.kernel_time % 2 == 1 && C.kernel_band % 2 == 1, "mttt: Conv2d: kernels have a middle");
  using T = typename B::Scalar;
  using A = typename B::Accum;
  using Places = detail::Conv2dPlaces<static_cast<int>(C.in), static_cast<int>(C.out),
                                      static_cast<int>(C.kernel_time), static_cast<int>(C.kernel_band),
                                      static_cast<int>(C.stride), static_cast<int>(C.dilation)>;
  static_assert(!Places::unfolds || C.stride == 1, "mttt: Conv2d: few channels, and a stride");
  static constexpr Index in = C.in, out = C.out;
  static constexpr bool unfolds = Places::unfolds;
  using Input = std::conditional_t<unfolds, A, T>;  // spectra are not rounded before they are unfolded

  static constexpr Index out_slots(Index slots) { return (slots - 2) / C.stride + 2; }
  /// Multiplications of a frame.
  static constexpr Index work(Index slots) { return out_slots(slots) * out * Places::weights; }

  struct Params {
    Tensor<A, out, C.kernel_time, C.kernel_band, in> weight_v;
    Tensor<A, out> weight_g, bias;
    static void visit(auto&& f, auto&&... p) {
      f("conv.weight_v", p.weight_v...);
      f("conv.weight_g", p.weight_g...);
      f("conv.bias", p.bias...);
    }
  };
  /// Of a pass, made from Params by `derive`.
  struct Weights {
    Matrix<T> matrix;
    A* norms;
  };
  struct Saved {
    Planes<const T, in> x;
    Tensor<const T, dyn, dyn, dyn, Places::rows> windows;  // where unfolded
    Planes<const T, out> y;
    /// Of sessions [first, first + count).
    Saved part(Index first, Index count) const {
      const auto some = [&](auto planes) {
        using P = decltype(planes);
        auto extents = planes.extents();
        const Index each = extents[0] == 0 ? 0 : planes.size() / extents[0];
        extents[0] = count;
        return P(planes.data() == nullptr ? nullptr : planes.data() + first * each, extents);
      };
      return {some(x), some(windows), some(y)};
    }
  };

  /// In the host's memory.
  static void init(Params& p, Rng& rng) {
    const double fan_in = static_cast<double>(Places::weights);
    init_truncated_normal(p.weight_v, 1 / std::sqrt(3 * fan_in), rng);
    for (Index o = 0; o < out; ++o) {
      A sum = 0;
      for (Index e = 0; e < Places::weights; ++e)
        sum += p.weight_v.data()[o * Places::weights + e] * p.weight_v.data()[o * Places::weights + e];
      p.weight_g(o) = std::sqrt(sum);
    }
    init_constant(p.bias, 0.0);
  }

  static Weights derive(B& be, const Params& p) {
    const auto matrix = be.template make<T, dyn, dyn>(Places::rows, Places::columns);
    const Weights w{matrix.matrix(), be.template make<A, out>().data()};
    be.fill(matrix.data(), matrix.size(), T(0));
    be.rows(
        out,
        detail::NormaliseWeights<Places, T, A>{p.weight_v.data(), p.weight_g.data(), w.norms, matrix.data()},
        0, 4 * Places::weights);
    return w;
  }

  static void forward(B& be, const Params& p, const Weights& w, Planes<const Input, in> x, Planes<T, out> y,
                      Saved& saved, double slope) {
    const Index sessions = x.extent(0), steps = x.extent(1), slots = x.extent(2);
    if (slots % C.stride != 0)
      fail("Conv2d", std::to_string(slots) + " slots of bands", "a multiple of " + std::to_string(C.stride),
           "take windows that are multiples of 16");
    saved.y = y;
    const A kept = C.activated ? static_cast<A>(slope) : A(1);
    const auto finish = [&](const T* parts, T* to, Index count, Index rows) {
      be.rows(count * steps,
              detail::SumTaps<Places, T, A>{parts, p.bias.data(), to, steps, rows, y.extent(2), kept}, 0,
              work(slots) / in);
    };
    if constexpr (unfolds) {
      const auto windows = be.template make<T, dyn, dyn, dyn, Places::rows>(sessions, steps, slots);
      saved.windows = windows;
      be.rows(sessions * steps, detail::UnfoldBands<Places, T, A>{x.data(), windows.data(), steps, slots}, 0,
              slots * Places::rows);
      const auto scope = be.scope();
      const auto parts = be.template make<T, dyn, dyn, dyn, out>(sessions, steps, slots);
      be.matmul(windows.matrix(), w.matrix, parts.matrix());
      finish(parts.data(), y.data(), sessions, slots);
    } else {
      saved.x = x;
      const Index rows = slots / C.stride, together = detail::wants_large<B> ? sessions : 1;
      for (Index b = 0; b < sessions; b += together) {
        const auto scope = be.scope();
        const auto parts = be.template make<T, dyn, Places::columns>(together * steps * rows);
        be.matmul(Matrix<const T>{x[b].data(), parts.extent(0), Places::rows, Places::rows}, w.matrix,
                  parts.matrix());
        finish(parts.data(), y[b].data(), together, rows);
      }
    }
  }

  /// `dy` is that of the sum before the activation, 0 in the last slot. `dx` may be empty: what it has in its
  /// last slot is of no use. `grad` may be null.
  static void backward(B& be, const Params& p, const Weights& w, const Saved& saved, Planes<const T, out> dy,
                       Planes<Input, in> dx, Params* grad) {
    const auto scope = be.scope();
    const auto dmatrix = be.template make<A, dyn, dyn>(Places::rows, Places::columns);
    if (grad != nullptr) be.fill(dmatrix.data(), dmatrix.size(), A(0));
    const Index sessions = dy.extent(0), steps = dy.extent(1), slots = dy.extent(2);
    if constexpr (unfolds) {
      if (grad != nullptr)
        detail::add_tall_product(be, saved.windows.matrix(), dy.matrix(), dmatrix.matrix());
      if (!dx.empty()) {
        const auto windows = be.template make<T, dyn, dyn, dyn, Places::rows>(sessions, steps, slots);
        be.matmul(dy.matrix(), w.matrix.t(), windows.matrix());
        be.rows(sessions * steps, detail::FoldBands<Places, T, A>{windows.data(), dx.data(), steps, slots}, 0,
                slots * Places::weights);
      }
    } else {
      const Index rows = saved.x.extent(2) / C.stride, together = detail::wants_large<B> ? sessions : 1;
      for (Index b = 0; b < sessions; b += together) {
        const auto inner = be.scope();
        const auto parts = be.template make<T, dyn, Places::columns>(together * steps * rows);
        be.rows(together * steps,
                detail::SpreadTaps<Places, T>{dy[b].data(), parts.data(), steps, rows, slots}, 0,
                rows * Places::columns);
        if (grad != nullptr)
          detail::add_tall_product(
              be, Matrix<const T>{saved.x[b].data(), parts.extent(0), Places::rows, Places::rows},
              Matrix<const T>(parts.matrix()), dmatrix.matrix());
        if (!dx.empty())
          be.matmul(parts.matrix(), w.matrix.t(),
                    Matrix<T>{dx[b].data(), parts.extent(0), Places::rows, Places::rows});
      }
    }
    if (grad == nullptr) return;
    be.rows(out,
            detail::NormaliseWeightsBackward<Places, A>{p.weight_v.data(), p.weight_g.data(), w.norms,
                                                        dmatrix.data(), grad->weight_v.data(),
                                                        grad->weight_g.data()},
            0, 8 * Places::weights);
    detail::sum_many_rows(be, dy.data(), grad->bias.data(), dy.flat_rows().extent(0), out);
  }
};

}  // namespace mttt
