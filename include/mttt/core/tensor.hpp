// Tensor: a pointer with extents; Matrix: a strided, possibly transposed plane of one.
//
// A Tensor never owns memory. Parameters, gradients and states live in a Store (core/store.hpp), activations
// in the backend's arena. Copying a Tensor copies a pointer.
//
// Shapes:  row-major and contiguous. Each extent is a compile-time number or `dyn`; the two mix freely, and a
//          conversion from `dyn` to a number is checked at run time.
// Units:   elements.
// Errors:  Error when a run-time extent contradicts a static one.
// Not supported: strides other than a matrix's leading dimension.
// Source:  the extents of std::mdspan (P0009).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "mttt/core/error.hpp"
#include "mttt/core/macros.hpp"

namespace mttt {

using Index = std::ptrdiff_t;

/// An extent that is known at run time only.
inline constexpr Index dyn = -1;

/// A plane of `rows` x `cols` whose rows lie `ld` elements apart; `transposed` swaps the two when it is read.
template <class T>
struct Matrix {
  T* data;
  Index rows, cols, ld;
  bool transposed = false;

  constexpr Matrix t() const { return {data, cols, rows, ld, !transposed}; }
  constexpr operator Matrix<const T>() const requires(!std::is_const_v<T>) {  // NOLINT: implicit on purpose
    return {data, rows, cols, ld, transposed};
  }
};

/// A grid of outer x inner equal planes, `outer_stride` and `inner_stride` elements apart (batch and heads).
template <class T>
struct MatrixGrid {
  Matrix<T> first;
  Index outer_stride, inner_stride;

  constexpr MatrixGrid t() const { return {first.t(), outer_stride, inner_stride}; }
  constexpr Matrix<T> at(Index outer, Index inner) const {
    Matrix<T> plane = first;
    plane.data += outer * outer_stride + inner * inner_stride;
    return plane;
  }
  constexpr operator MatrixGrid<const T>() const requires(!std::is_const_v<T>) {  // NOLINT
    return {first, outer_stride, inner_stride};
  }
};

template <class T, Index... E>
class Tensor {
 public:
  using value_type = T;
  static constexpr std::size_t rank = sizeof...(E);
  static constexpr std::array<Index, rank> static_extents{E...};
  static constexpr bool is_static = ((E != dyn) && ...);

  constexpr Tensor() {
    for (std::size_t i = 0; i < rank; ++i) extents_[i] = static_extents[i] == dyn ? 0 : static_extents[i];
  }
  constexpr Tensor(T* data, std::array<Index, rank> extents) : data_(data), extents_(extents) { check(); }
  constexpr explicit Tensor(T* data) requires(is_static) : data_(data), extents_(static_extents) {}

  /// From a tensor of compatible extents: same type, or adding const.
  template <class U, Index... F>
  requires(sizeof...(F) == rank && std::is_convertible_v<U (*)[], T (*)[]> &&
           ((E == dyn || F == dyn || E == F) &&
            ...)) constexpr Tensor(const Tensor<U, F...>& other)  // NOLINT: implicit on purpose
      : data_(other.data()), extents_(other.extents()) {
    if constexpr (((E != dyn && F == dyn) || ...)) check();
  }

  constexpr T* data() const { return data_; }
  constexpr const std::array<Index, rank>& extents() const { return extents_; }
  constexpr Index extent(std::size_t i) const {
    return static_extents[i] == dyn ? extents_[i] : static_extents[i];
  }
  constexpr Index size() const {
    Index n = 1;
    for (std::size_t i = 0; i < rank; ++i) n *= extent(i);
    return n;
  }
  constexpr bool empty() const { return data_ == nullptr || size() == 0; }

  /// One element; as many indices as extents.
  template <class... I>
  requires(sizeof...(I) == rank) constexpr T& operator()(I... indices) const {
    Index at = 0;
    std::size_t i = 0;
    ((at = at * extent(i++) + static_cast<Index>(indices)), ...);
    return data_[at];
  }

  /// The sub-tensor at index i of the first extent.
  constexpr auto operator[](Index i) const requires(rank > 1) {
    return sub(i, std::make_index_sequence<rank - 1>{});
  }

  /// All extents but the last folded into one: (rows, last).
  constexpr auto flat_rows() const {
    constexpr Index last = static_extents[rank - 1];
    const Index width = extent(rank - 1);
    return Tensor<T, dyn, last>(data_, {width == 0 ? 0 : size() / width, width});
  }
  constexpr Tensor<T, dyn> flat() const { return Tensor<T, dyn>(data_, {size()}); }

  /// The same elements under other extents of the same product.
  template <Index... F>
  constexpr Tensor<T, F...> reshape(std::array<Index, sizeof...(F)> extents) const {
    return Tensor<T, F...>(data_, extents);
  }

  /// As a matrix of all rows.
  constexpr Matrix<T> matrix() const {
    const Index width = extent(rank - 1);
    return {data_, width == 0 ? 0 : size() / width, width, width};
  }

 private:
  template <std::size_t... K>
  constexpr auto sub(Index i, std::index_sequence<K...>) const {
    const Index stride = extent(0) == 0 ? 0 : size() / extent(0);
    return Tensor<T, static_extents[K + 1]...>(data_ + i * stride, {extent(K + 1)...});
  }

  constexpr void check() const {
    for (std::size_t i = 0; i < rank; ++i) {
      if (static_extents[i] != dyn && extents_[i] != static_extents[i]) {
        fail("tensor extent " + std::to_string(i), std::to_string(extents_[i]),
             std::to_string(static_extents[i]), "check the shape of the tensor that is passed");
      }
    }
  }

  T* data_ = nullptr;
  std::array<Index, rank> extents_{};
};

/// Activations of a block: (B, T, C) = sessions, time steps, channels.
template <class T, Index C>
using Sequence = Tensor<T, dyn, dyn, C>;

/// One flag a session: 0 leaves its State bit-identical. An empty mask means "all". Shape (B).
using Mask = Tensor<const std::uint8_t, dyn>;

/// Whether session b takes part.
MTTT_HD constexpr bool active(const std::uint8_t* mask, Index b) { return mask == nullptr || mask[b] != 0; }

template <class T>
inline constexpr bool is_tensor = false;
template <class T, Index... E>
inline constexpr bool is_tensor<Tensor<T, E...>> = true;

}  // namespace mttt
