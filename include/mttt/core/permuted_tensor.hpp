// PermutedTensor: a Tensor whose axes lie in another order than in published checkpoints.
//
// Formula: stored axis i is published axis published_permutation[i], so that
//          stored(j0, j1, ...) = published at index j_i on axis published_permutation[i].
// Shapes:  E... are the stored extents; published_shape() gives the published ones.
// Units:   elements.
// Errors:  none.
// Not supported: strided storage; readers and writers of checkpoints copy element by element.
// Source:  none.
#pragma once

#include <utility>

#include "mttt/core/tensor.hpp"

namespace mttt {

/// `Order` is a std::index_sequence with one axis for each extent.
template <class T, class Order, Index... E>
class PermutedTensor;

template <class T, std::size_t... P, Index... E>
class PermutedTensor<T, std::index_sequence<P...>, E...> : public Tensor<T, E...> {
  static_assert(sizeof...(P) == sizeof...(E),
                "mttt: PermutedTensor names one published axis for each extent");
  static_assert(((E != dyn) && ...), "mttt: PermutedTensor has static extents");

 public:
  using Tensor<T, E...>::Tensor;
  static constexpr std::array<int, sizeof...(P)> published_permutation{static_cast<int>(P)...};

  static constexpr std::array<Index, sizeof...(P)> published_shape() {
    std::array<Index, sizeof...(P)> shape{};
    for (std::size_t i = 0; i < sizeof...(P); ++i)
      shape[published_permutation[i]] = Tensor<T, E...>::static_extents[i];
    return shape;
  }
};

template <class T, class Order, Index... E>
inline constexpr bool is_tensor<PermutedTensor<T, Order, E...>> = true;

/// A tensor type that says how its axes are permuted.
template <class Tens>
concept Permuted = requires {
  Tens::published_permutation;
};

namespace detail {

/// Calls f(stored offset, published offset) for every element.
template <Permuted Tens, class F>
void for_each_permuted(const F& f) {
  constexpr std::size_t rank = Tens::rank;
  constexpr auto shape = Tens::published_shape();
  std::array<Index, rank> stride{}, index{};  // strides of the published tensor, in stored order of axes
  for (std::size_t i = 0; i < rank; ++i) {
    Index step = 1;
    for (std::size_t axis = Tens::published_permutation[i] + 1u; axis < rank; ++axis) step *= shape[axis];
    stride[i] = step;
  }
  Index size = 1;
  for (const Index extent : shape) size *= extent;
  for (Index stored = 0; stored < size; ++stored) {
    Index published = 0;
    for (std::size_t i = 0; i < rank; ++i) published += index[i] * stride[i];
    f(stored, published);
    for (std::size_t i = rank; i-- > 0;) {
      if (++index[i] < Tens::static_extents[i]) break;
      index[i] = 0;
    }
  }
}

}  // namespace detail

/// Fills `tensor`, in host memory, from its elements in published order; a plain Tensor is copied.
template <class Tens, class U>
void from_published(const U* published, const Tens& tensor) {
  using T = typename Tens::value_type;
  if constexpr (Permuted<Tens>) {
    detail::for_each_permuted<Tens>(
        [&](Index s, Index p) { tensor.data()[s] = static_cast<T>(published[p]); });
  } else {
    for (Index i = 0; i < tensor.size(); ++i) tensor.data()[i] = static_cast<T>(published[i]);
  }
}

/// Writes the elements of `tensor`, in host memory, in published order.
template <class Tens, class U>
void to_published(const Tens& tensor, U* published) {
  if constexpr (Permuted<Tens>) {
    detail::for_each_permuted<Tens>(
        [&](Index s, Index p) { published[p] = static_cast<U>(tensor.data()[s]); });
  } else {
    for (Index i = 0; i < tensor.size(); ++i) published[i] = static_cast<U>(tensor.data()[i]);
  }
}

}  // namespace mttt
