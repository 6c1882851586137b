// Arguments of the optional kernels that fuse a product with what stands around it in a streaming step. A
// block takes such a kernel by `if constexpr (requires { be.product_step<F>(...); })`; see backend.hpp.
//
// Formula: product_step   y = addend + scale * F(norm(x) W^T + bias)
//          gated_step     y = F(a) * b, [a | b] = norm(x) W^T
//          layers_step    lm/temporal.hpp's step of layers without TTT
//          depth_frame    the steps of lm/depformer.hpp in a frame, with the draws of their codes
//          conv_step      y = addend + scale * (conv(F(x)) + bias), the convolution of codec/conv1d.hpp
//          conv_transpose_step
//                         y = conv_transpose(F(x)) + partial + bias, and the samples past the end
//          norm is LayerNorm, without a bias RmsNorm; a null pointer leaves its term out.
// Shapes:  x (rows, in), W (out, in), of gated_step (2 out, in), y and addend (rows, out), scale and bias (out).
// Units:   samples.
// Errors:  none.
// Not supported: groups, dilation; weights that are written by work of this backend just before: they are
//          parameters, and may be read before the kernel before has ended.
// Source:  cuBLASLt's epilogues.
#pragma once

#include <array>

#include "mttt/core/tensor.hpp"

namespace mttt {

struct Identity {
  template <class T>
  MTTT_HD static T f(T x) {
    return x;
  }
};

/// What becomes of a product before it is written.
template <class T>
struct Finish {
  const T *bias = nullptr, *scale = nullptr, *addend = nullptr;
};

/// LayerNorm of the rows that are multiplied, RmsNorm where bias is null, none where weight is null.
template <class T>
struct NormRows {
  const T *weight = nullptr, *bias = nullptr;
  double eps = 0;
};

/// A layer of attention to a ring and of gating, as layers_step runs it for one session; matrices as products of
/// steps take them.
template <class T, class Weights>
struct LayerStep {
  NormRows<T> norm1, norm2;
  Weights in_proj, out_proj, up, down;  // (3 dim, dim), (dim, dim), (2 hidden, dim), (dim, hidden)
  T *keys, *values;                     // (heads, context, head_dim)
  std::int64_t* position;               // steps seen, the same in all layers; advanced
  const std::int64_t* context;          // steps attended to, if fewer than the ring holds; 0: all
};
template <class T, class Weights, std::size_t n>
struct LayersStep {
  const T* x;
  T* y;
  const std::uint8_t* mask;
  Index context;
  double max_period;
  std::array<LayerStep<T, Weights>, n> layers;
};

/// A frame of the depformer's steps with the draws of their codes, as depth_frame runs it for one session.
template <class Weights>
struct DepthLayer {
  Weights in_proj, out_proj, up, down;
};
template <class T, class Weights, std::size_t layers>
struct DepthStep {
  const T* embedding;  // of the code before: (embedding_card, dim)
  Index embedding_card;
  Weights in, linear;  // (dim, in_dim), (card, dim)
  std::array<DepthLayer<Weights>, layers> layers_of;
};
template <class T, class Weights, class Draw, std::size_t layers, std::size_t n>
struct DepthFrame {
  const T* z;
  T* logits;                   // (n, card); null: not wanted
  std::int32_t* codes;         // (1 + n): the text's, and those that are drawn
  const std::int32_t* forced;  // (1 + n), instead of a draw unless `unforced`; null: none
  std::int32_t unforced;
  Draw draw;  // of the first step; the others are of the streams after
  std::array<std::array<NormRows<T>, 2>, layers> norms;
  std::array<DepthStep<T, Weights, layers>, n> steps;
};

template <class T>
struct ConvStep {
  const T *x, *previous;        // (B, T * stride, in), (B, context, in) or null
  const std::uint8_t* started;  // (B); where it is 0 the first sample stands for `previous`; may be null
  const T* weight;              // (out, kernel, in)
  T* y;                         // (B, T, out)
  Index sessions, steps, in, out, kernel, stride;

  MTTT_HD constexpr Index context() const { return kernel - stride; }
};

/// The kernel is a multiple of the stride: taps = kernel / stride inputs meet in a sample.
template <class T>
struct ConvTransposeStep {
  const T *x, *weight, *bias, *partial;  // (B, T, in), (kernel, out, in), (out) or null, (B, overlap, out)
  T *y, *tail;                           // (B, T * stride, out), (B, overlap, out)
  Index sessions, steps, in, out, kernel, stride;

  MTTT_HD constexpr Index taps() const { return kernel / stride; }
};

/// Rows t of sessions b of a sequence, which may overlap: `cols` elements from x + b * session + first + t * step
/// on. Those outside of the session's [0, length) are 0.
template <class T>
struct Windows {
  const T* x;
  Index sessions, rows, cols, step, first, session, length;
};
/// Element (k, n) is w[k / inner * outer_stride + k % inner * inner_stride + n * column_stride].
template <class T>
struct WindowWeights {
  const T* w;
  Index inner, outer_stride, inner_stride, column_stride;
};

/// Whether be multiplies windows (backend/cuda/windows.cuh) as it is set.
template <class B>
bool multiplies_windows(const B& be) {
  if constexpr (requires { be.multiplies_windows(); }) return be.multiplies_windows();
  return false;
}

}  // namespace mttt
