// Weights in 8 and 4 bits: their formats, and the tensor of them that stands where a Tensor stood.
//
// A parameter of a block gets its type in one place:  Weight<B, out, in> weight;  It is Tensor<T, out, in> on
// Cpu<T> and Cuda<T>, and QuantisedTensor<Int8, out, in> on WithWeights<Int8, Cuda<T>>
// (backend/with_weights.hpp). What is large and multiplied with is a Weight; embeddings, norms, biases and
// what a TTT layer starts from stay Tensors.
//
// Formula: Int8   w(r, i) = scale(r) value(r, i), value in [-127, 127], scale = max |w(r, .)| / 127
//          Int4   w(r, i) = scale(r, i / 32) (nibble - 8), nibble in [0, 15]: byte j of a group's 16 holds
//                 weight j in its low half and j + 16 in its high one. The last group is filled up with 8s,
//                 which are zeros.
//          Int4's scale is what errs least, in squares, of ten: the group's weight of largest modulus, on -8
//          or somewhat beyond. It is symmetric: of normal numbers the error is 8.2 % of their deviation; an
//          offset for each group would make that 7.6 %, and 12 % more bytes.
// Shapes:  weights (out, in); values (out, Format::values(in)), scales (out, Format::scales(in)): 1 byte a
//          weight and 4 a row, 9/16 of a byte.
// Units:   none.
// Errors:  none here; io/checkpoint.hpp and quantise (core/quantise.hpp) refuse NaN and infinity.
// Not supported: training. A gradient of such a weight does not compile.
// Source:  symmetric rows: bitsandbytes `int8_vectorwise_quant`; groups of 32: ggml `block_q4_0`, whose bytes
//          lie likewise.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "mttt/core/f16.hpp"
#include "mttt/core/visit.hpp"

namespace mttt {

namespace detail {
/// The whole number nearest to x, of two the even one, for |x| < 2^22: 1.5 * 2^23 leaves it in the lowest
/// bits. Without a branch, as loops need it that the compiler is to vectorise.
MTTT_INLINE int nearest_whole(float x) { return std::bit_cast<std::int32_t>(x + 0x1.8p23f) - 0x4b400000; }
}  // namespace detail

struct Int8 {
  using Value = std::int8_t;
  using Scale = float;
  static constexpr int bits = 8;

  /// Stored for a row of `in` weights.
  MTTT_HD static constexpr Index values(Index in) { return in; }
  MTTT_HD static constexpr Index scales(Index) { return 1; }

  /// Weight i of a row.
  MTTT_HD static float weight(const Value* row, const Scale* scale, Index i) {
    return scale[0] * static_cast<float>(row[i]);
  }
  /// A row of finite numbers.
  static void quantise(const float* weights, Index in, Value* row, Scale* scale) {
    float largest = 0;
    for (Index i = 0; i < in; ++i) largest = std::max(largest, std::abs(weights[i]));
    scale[0] = largest / 127;
    const float s = scale[0];
    // A scale that is subnormal may be off by half, and the quotient beyond 127 with it.
    for (Index i = 0; i < in; ++i) {
      const float quotient = s > 0 ? std::min(std::max(weights[i] / s, -127.0f), 127.0f) : 0.0f;
      row[i] = static_cast<Value>(detail::nearest_whole(quotient));
    }
  }
};

struct Int4 {
  using Value = std::uint8_t;
  using Scale = bf16;
  static constexpr int bits = 4;
  static constexpr Index group = 32;

  MTTT_HD static constexpr Index values(Index in) { return scales(in) * (group / 2); }
  MTTT_HD static constexpr Index scales(Index in) { return (in + group - 1) / group; }

  MTTT_HD static float weight(const Value* row, const Scale* scale, Index i) {
    const Index g = i / group, j = i % group;
    const int byte = row[g * (group / 2) + j % (group / 2)];
    return float(scale[g]) * static_cast<float>((j < group / 2 ? byte & 15 : byte >> 4) - 8);
  }
  static void quantise(const float* weights, Index in, Value* row, Scale* scale) {
    for (Index g = 0; g < scales(in); ++g) {
      float w[group] = {};
      std::copy_n(weights + g * group, std::min(group, in - g * group), w);
      scale[g] = best_scale(w);
      const float s = scale[g], per = s == 0 ? 0.0f : 1 / s;
      int nibble[group];
      MTTT_SIMD
      for (Index j = 0; j < group; ++j) nibble[j] = 8 + whole(w[j] * per);
      for (Index j = 0; j < group / 2; ++j)
        row[g * (group / 2) + j] = static_cast<Value>(nibble[j] | nibble[j + group / 2] << 4);
    }
  }

 private:
  MTTT_INLINE static int whole(float quotient) {
    const int nearest = detail::nearest_whole(quotient), low = nearest < -8 ? -8 : nearest;
    return low > 7 ? 7 : low;
  }
  static float sum_of(float* x) {
    for (Index n = group / 2; n >= 8; n /= 2) {
      MTTT_SIMD
      for (Index i = 0; i < n; ++i) x[i] += x[i + n];
    }
    return (x[0] + x[1]) + (x[2] + x[3]) + ((x[4] + x[5]) + (x[6] + x[7]));
  }
  static Scale best_scale(const float* w) {
    float low[8] = {}, high[8] = {};  // eight at once, here and below
    for (Index i = 0; i < group; ++i) {
      low[i % 8] = std::min(low[i % 8], w[i]);
      high[i % 8] = std::max(high[i % 8], w[i]);
    }
    const float lowest = *std::min_element(low, low + 8), highest = *std::max_element(high, high + 8);
    const float extreme = highest > -lowest ? highest : lowest;
    if (std::abs(extreme) < 0x1p-122f) return Scale(0);  // so that 1 / scale is a number
    Scale best(extreme / -8);
    float least = std::numeric_limits<float>::infinity();
    for (int shrink = 0; shrink < 10; ++shrink) {
      const Scale scale(extreme / -8 * (1.0f - 0.03f * static_cast<float>(shrink)));
      const float s = scale, per = 1 / s;
      float error[group];
      MTTT_SIMD
      for (Index i = 0; i < group; ++i) {
        const float rest = w[i] - s * static_cast<float>(whole(w[i] * per));
        error[i] = rest * rest;
      }
      const float sum = sum_of(error);
      if (sum < least) least = sum, best = scale;
    }
    return best;
  }
};

template <class Format>
struct TransposedQuantised;

/// What products read: `rows` x `cols` weights.
template <class Format>
struct QuantisedMatrix {
  const typename Format::Value* values;
  const typename Format::Scale* scales;
  Index rows, cols;

  constexpr TransposedQuantised<Format> t() const { return {*this}; }
  MTTT_HD constexpr const typename Format::Value* row(Index r) const {
    return values + r * Format::values(cols);
  }
  MTTT_HD constexpr const typename Format::Scale* row_scales(Index r) const {
    return scales + r * Format::scales(cols);
  }
  /// Rows [begin, end).
  constexpr QuantisedMatrix take_rows(Index begin, Index end) const {
    return {row(begin), row_scales(begin), end - begin, cols};
  }
};

/// x W^T is the one product with such weights, so that what is transposed is a type of its own.
template <class Format>
struct TransposedQuantised {
  QuantisedMatrix<Format> weight;
};

/// Weights (out, in) in a format. Named "weight", it is stored as "weight" and "weight.scale".
template <class F, Index Out, Index In>
struct QuantisedTensor {
  using Format = F;
  static constexpr Index out = Out, in = In;
  Tensor<typename Format::Value, out, Format::values(in)> values;
  Tensor<typename Format::Scale, out, Format::scales(in)> scales;
  static void visit(auto&& f, auto&&... w) {
    f("", w.values...);
    f("scale", w.scales...);
  }

  static constexpr Index size() { return out * in; }
  constexpr QuantisedMatrix<Format> matrix() const { return {values.data(), scales.data(), out, in}; }
};

template <class Format, Index out, Index in>
inline constexpr bool is_quantised<QuantisedTensor<Format, out, in>> = true;

namespace detail {

template <class B>
concept OwnWeights = requires {
  typename B::Weights;
};
template <class B>
concept NarrowWeights = OwnWeights<B> && NarrowNumber<typename B::Weights>;

template <class B, Index out, Index in>
struct WeightOf {
  using type = Tensor<typename B::Scalar, out, in>;
};
template <OwnWeights B, Index out, Index in>
struct WeightOf<B, out, in> {
  using type = QuantisedTensor<typename B::Weights, out, in>;
};
template <NarrowWeights B, Index out, Index in>
struct WeightOf<B, out, in> {
  using type = Tensor<typename B::Weights, out, in>;
};

/// The numbers that a convolution's weights are. Those of less than half a million lie in a cache, and meet
/// many samples there: the backend's own serve better.
template <class B, Index count>
struct ConvolutionNumber {
  using type = typename B::Scalar;
};
template <NarrowWeights B, Index count>
requires(count >= (Index{1} << 19)) struct ConvolutionNumber<B, count> {
  using type = typename B::Weights;
};

/// One row of weights as numbers.
template <class Format, class T>
struct DequantiseRow {
  QuantisedMatrix<Format> from;
  T* to;  // (rows, cols)
  template <class Team>
  MTTT_HD void operator()(Team team, Index r) const {
    const auto* row = from.row(r);
    const auto* scales = from.row_scales(r);
    T* out = to + r * from.cols;
    team.for_each(from.cols, [=](Index i) { out[i] = static_cast<T>(Format::weight(row, scales, i)); });
  }
};

}  // namespace detail

/// A large weight of a block on the backend B.
template <class B, Index out, Index in>
using Weight = typename detail::WeightOf<B, out, in>::type;

}  // namespace mttt
