// The moves that convolutions over (B, T, C) share: padding, gathering windows, adding overlapping windows.
//
// Formula: window t of a padded sequence x is x[t * stride + k * dilation], k in [0, kernel).
//          With dilation 1 and one group a window is kernel * C contiguous elements, so that a matrix of rows
//          `stride * C` apart, which overlap, holds them all without a copy.
// Shapes:  named on each functor.
// Units:   elements.
// Errors:  none.
// Not supported: channels-first activations.
// Source:  none.
#pragma once

#include "mttt/backend/backend.hpp"
#include "mttt/backend/fused.hpp"
#include "mttt/nn/elementwise.hpp"

namespace mttt::detail {

/// to = bias + earlier; a null one counts as zero.
template <class Team, class T>
MTTT_HD void begin_row(Team team, const T* bias, const T* earlier, T* to, Index n) {
  if (bias != nullptr && earlier != nullptr) {
    team.for_each(n, [=](Index c) { to[c] = static_cast<T>(wide(bias[c]) + wide(earlier[c])); });
  } else if (bias != nullptr || earlier != nullptr) {
    const T* only = bias != nullptr ? bias : earlier;
    team.for_each(n, [=](Index c) { to[c] = only[c]; });
  } else {
    team.for_each(n, [=](Index c) { to[c] = T(0); });
  }
}

/// Copies n elements of each active session, `block` elements a team.
template <class T>
struct CopySessions {
  const T* from;
  T* to;
  Index from_stride, to_stride, n, block;
  const std::uint8_t* mask;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index blocks = (n + block - 1) / block, b = row / blocks, first = row % blocks * block;
    if (!active(mask, b)) return;
    const T* source = from + b * from_stride + first;
    T* target = to + b * to_stride + first;
    team.for_each(block < n - first ? block : n - first, [=](Index i) { target[i] = source[i]; });
  }
};

/// The rows before the first input: zero, the row of an earlier chunk, or the first input repeated.
template <class T>
struct FillContext {
  const T *previous, *x;        // (B, context, C) or null; (B, x_stride) or null for zeros at the start
  const std::uint8_t* started;  // (B), or null where a fresh State's zeros are the padding
  T* padded;                    // (B, padded_stride)
  Index context, channels, x_stride, padded_stride;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index b = row / context, r = row % context;
    const bool continues = previous != nullptr && (started == nullptr || started[b] != 0);
    const T* source = continues ? previous + row * channels : x == nullptr ? nullptr : x + b * x_stride;
    T* target = padded + b * padded_stride + r * channels;
    begin_row(team, source, static_cast<const T*>(nullptr), target, channels);
  }
};

/// The last `context` of the rows (previous, F(x)) become `previous`, in place. A team a session and block of
/// channels.
template <class F, class T>
struct ShiftContext {
  const T* x;                   // (B, steps, C)
  T* previous;                  // (B, context, C)
  const std::uint8_t* started;  // (B), or null; where it is 0, F of the first sample stands for `previous`
  const std::uint8_t* mask;
  Index steps, context, channels, block;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index C = channels, blocks = (C + block - 1) / block, b = i / blocks, first = i % blocks * block;
    if (!active(mask, b)) return;
    const Index width = block < C - first ? block : C - first, n = steps, rows = context;
    const T* from = x + b * n * C + first;
    T* to = previous + b * rows * C + first;
    if (n >= rows) {
      from += (n - rows) * C;
      team.for_each(rows * width, [=](Index e) {
        const Index at = e / width * C + e % width;
        to[at] = static_cast<T>(F::f(wide(from[at])));
      });
      return;
    }
    const bool begun = started == nullptr || started[b] != 0;
    team.for_each(width, [=](Index c) {  // each channel row by row: a row is read before it is overwritten
      for (Index r = 0; r < rows; ++r) {
        const Index row = r + n;
        T& target = to[r * C + c];
        if (row >= rows || !begun) {
          target = static_cast<T>(F::f(wide(from[(row < rows ? 0 : row - rows) * C + c])));
        } else {
          target = to[row * C + c];
        }
      }
    });
  }
};

struct MarkStarted {
  std::uint8_t* started;  // (B)
  const std::uint8_t* mask;
  MTTT_HD void operator()(Index b) const {
    if (active(mask, b)) started[b] = 1;
  }
};

/// windows (G, B * T, kernel, C / G) from padded (B, padded_stride).
template <class T>
struct GatherWindows {
  const T* padded;
  T* windows;
  Index sessions, steps, kernel, stride, dilation, groups, channels, padded_stride;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index b = row / steps, t = row % steps, width = channels / groups, count = sessions * steps;
    const T* source = padded + b * padded_stride + t * stride * channels;
    for (Index g = 0; g < groups; ++g) {
      T* target = windows + (g * count + row) * kernel * width;
      if (dilation == 1 && groups == 1) {
        team.for_each(kernel * width, [=](Index i) { target[i] = source[i]; });
        continue;
      }
      for (Index k = 0; k < kernel; ++k) {
        const T* from = source + k * dilation * channels + g * width;
        T* to = target + k * width;
        team.for_each(width, [=](Index i) { to[i] = from[i]; });
      }
    }
  }
};

/// Rows [first, first + count) of the sum of overlapping windows (G, B, T, kernel, C / G), plus a row `bias`,
/// plus (B, start_rows, C) at the rows [0, start_rows).
template <class T>
struct OverlapAdd {
  const T *windows, *start, *bias;  // the last two may be null
  T* y;                             // (B, count, C)
  Index sessions, steps, kernel, stride, dilation, groups, channels, first, count, start_rows;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index b = row / count, p = first + row % count, width = channels / groups;
    T* to = y + row * channels;
    const T* earlier = start != nullptr && p < start_rows ? start + (b * start_rows + p) * channels : nullptr;
    begin_row(team, bias, earlier, to, channels);
    for (Index k = 0; k < kernel; ++k) {
      const Index at = p - k * dilation, t = at / stride;
      if (at < 0 || t >= steps || t * stride != at) continue;
      for (Index g = 0; g < groups; ++g) {
        const T* from = windows + (((g * sessions + b) * steps + t) * kernel + k) * width;
        T* part = to + g * width;
        team.sync();
        team.for_each(width, [=](Index c) { part[c] += wide(from[c]); });
      }
    }
  }
};

/// The same for dilation 1 and one group, an element at a time: a GPU's threads then wait for no other.
template <class T>
struct OverlapSum {
  const T *windows, *start, *bias;
  T* y;
  Index steps, kernel, stride, channels, first, count, start_rows;
  MTTT_HD void operator()(Index i) const {
    const Index row = quotient(i, channels), c = i - row * channels, b = quotient(row, count),
                p = first + row - b * count, up_to = quotient(p, stride);
    Wide<T> total = bias == nullptr ? Wide<T>(0) : wide(bias[c]);
    if (start != nullptr && p < start_rows) total += wide(start[(b * start_rows + p) * channels + c]);
    const Index last = up_to < steps ? up_to : steps - 1;
    for (Index t = p < kernel ? 0 : quotient(p - kernel, stride) + 1; t <= last; ++t)
      total += wide(windows[((b * steps + t) * kernel + p - t * stride) * channels + c]);
    y[i] = static_cast<T>(total);
  }
};

/// Depthwise: y[t, c] = bias[c] + sum over k of padded[t * stride + k * dilation, c] * weight[k, c].
template <class T>
struct DepthwiseWindows {
  const T *padded, *weight, *bias;  // (B, padded_stride), (kernel, C), (C) or null
  T* y;                             // (B, T, C)
  Index steps, kernel, stride, dilation, channels, padded_stride;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T* source = padded + row / steps * padded_stride + row % steps * stride * channels;
    T* to = y + row * channels;
    begin_row(team, bias, static_cast<const T*>(nullptr), to, channels);
    for (Index k = 0; k < kernel; ++k) {
      const T *from = source + k * dilation * channels, *factor = weight + k * channels;
      team.sync();
      team.for_each(channels, [=](Index c) { to[c] += wide(from[c]) * wide(factor[c]); });
    }
  }
};

/// Its adjoint for the sequence, as OverlapAdd with the windows x[t, c] * weight[k, c].
template <class T>
struct DepthwiseOverlapAdd {
  const T *x, *weight, *start, *bias;  // (B, T, C), (kernel, C); the last two may be null
  T* y;                                // (B, count, C)
  Index steps, kernel, stride, dilation, channels, first, count, start_rows;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index b = row / count, p = first + row % count;
    T* to = y + row * channels;
    const T* earlier = start != nullptr && p < start_rows ? start + (b * start_rows + p) * channels : nullptr;
    begin_row(team, bias, earlier, to, channels);
    for (Index k = 0; k < kernel; ++k) {
      const Index at = p - k * dilation, t = at / stride;
      if (at < 0 || t >= steps || t * stride != at) continue;
      const T *from = x + (b * steps + t) * channels, *factor = weight + k * channels;
      team.sync();
      team.for_each(channels, [=](Index c) { to[c] += wide(from[c]) * wide(factor[c]); });
    }
  }
};

/// Its adjoint for the weight: grad[k, c] += sum over rows of windows[t, k, c] * y[t, c]; a team a k.
template <class T, class G>
struct DepthwiseWeightGradient {
  const T *padded, *y;  // (B, padded_stride), (B, T, C)
  G* grad;              // (kernel, C)
  Index sessions, steps, stride, dilation, channels, padded_stride;
  template <class Team>
  MTTT_HD void operator()(Team team, Index k) const {
    const Index B = sessions, n = steps, C = channels, hop = stride * channels, session = padded_stride;
    const T *first = padded + k * dilation * channels, *values = y;
    G* to = grad + k * channels;
    team.for_each(C, [=](Index c) {
      Wide<T> total = 0;
      for (Index b = 0; b < B; ++b) {
#ifdef __CUDA_ARCH__  // many reads under way
        MTTT_PRAGMA(unroll 16)
#endif
        for (Index t = 0; t < n; ++t) {
          total += wide(first[b * session + t * hop + c]) * wide(values[(b * n + t) * C + c]);
        }
      }
      to[c] += static_cast<G>(total);
    });
  }
};

/// The first row of each session receives what the rows before it, which repeat it, have of the gradient.
template <class T>
struct AddRepeated {
  const T* before;  // (B, context, C)
  T* dx;            // (B, dx_stride)
  Index context, channels, dx_stride;
  MTTT_HD void operator()(Index i) const {
    const Index b = i / channels, c = i % channels;
    Wide<T> total = 0;
    for (Index r = 0; r < context; ++r) total += wide(before[(b * context + r) * channels + c]);
    T& to = dx[b * dx_stride + c];
    to = static_cast<T>(wide(to) + total);
  }
};

/// Whether large pieces of work pay: a GPU wants few large ones, the caches of a CPU small ones.
template <class B>
inline constexpr bool wants_large = !requires {
  requires B::host_memory;
};

/// y of OverlapAdd.
template <class B, class T>
void overlap_add(B& be, const OverlapAdd<T>& add) {
  if (wants_large<B> && add.dilation == 1 && add.groups == 1) {
    be.for_each(add.sessions * add.count * add.channels,
                OverlapSum<T>{add.windows, add.start, add.bias, add.y, add.steps, add.kernel, add.stride,
                              add.channels, add.first, add.count, add.start_rows});
  } else {
    be.rows(add.sessions * add.count, add, 0, add.kernel * add.channels);
  }
}

/// grad (m, n) += a^T b of so many rows that a plain product, whose tiles are few, would leave most of a GPU
/// idle: slices of the rows give parts of it.
template <class B, class T, class G>
void add_tall_product(B& be, Matrix<const T> a, Matrix<const T> b, Matrix<G> grad) {
  constexpr Index slice = 4096, least = 8;
  const Index slices = a.rows / slice, done = slices * slice, n = grad.rows * grad.cols;
  if (!wants_large<B> || slices < least || grad.transposed || grad.ld != grad.cols) {
    be.matmul(a.t(), b, grad, 1, 1);
    return;
  }
  const auto scope = be.scope();
  const auto parts = be.template make<G, dyn, dyn>(slices, n);
  const auto some = [&](Matrix<const T> m, Index first, Index count) {
    return Matrix<const T>{m.data + first * m.ld, count, m.cols, m.ld};
  };
  be.matmul_grid(slices, 1, MatrixGrid<const T>{some(a, 0, slice).t(), slice * a.ld, 0},
                 MatrixGrid<const T>{some(b, 0, slice), slice * b.ld, 0},
                 MatrixGrid<G>{{parts.data(), grad.rows, grad.cols, grad.cols}, n, 0});
  sum_columns(be, static_cast<const G*>(parts.data()), grad.data, slices, n);
  if (done < a.rows) be.matmul(some(a, done, a.rows - done).t(), some(b, done, a.rows - done), grad, 1, 1);
}

/// sum_columns of dy (rows, width) in two stages where the parts of one are still too many for a thread each.
template <class B, class T, class G>
void sum_many_rows(B& be, const T* dy, G* grad, Index rows, Index width) {
  using A = typename B::Accum;
  if (rows < 1 << 15) return sum_columns(be, dy, grad, rows, width);
  const auto scope = be.scope();
  const auto parts = sum_column_parts(be, dy, static_cast<const T*>(nullptr), nullptr, nullptr, rows, width);
  sum_columns(be, static_cast<const A*>(parts.data()), grad, parts.extent(0), width);
}

/// Copies n elements a session, masked.
template <class B, class T>
void copy_sessions(B& be, const T* from, Index from_stride, T* to, Index to_stride, Index n, Index sessions,
                   const std::uint8_t* mask = nullptr) {
  constexpr Index block = 8192;
  if (n == 0) return;
  be.rows(sessions * ((n + block - 1) / block),
          CopySessions<T>{from, to, from_stride, to_stride, n, block, mask}, 0, block < n ? block : n);
}

}  // namespace mttt::detail
