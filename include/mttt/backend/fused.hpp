// Arguments of the optional kernels that fuse a product with what stands around it in a streaming step. A
// block takes such a kernel by `if constexpr (requires { be.product_step<F>(...); })`; see backend.hpp.
//
// Formula: product_step   y = addend + scale * F(norm(x) W^T + bias)
//          gated_step     y = F(a) * b, [a | b] = norm(x) W^T
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

}  // namespace mttt
