// Whether whole numbers of a State that comes from a file are such that a step can go on from them.
//
// Steps take their positions and codes for granted: a negative position would write outside of its ring. A
// State that holds whole numbers therefore says what they may be,
//   static constexpr bool may_hold(std::string_view member, Index i, std::int64_t value)
// where `member` is the name that its visit gives the tensor, and i counts through the row of one session.
//
// Shapes:  as the State's.   Units: none.
// Errors:  Error with the tensor, the number and its place.
// Not supported: members that say nothing may hold anything.
// Source:  none.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/core/visit.hpp"
#include "mttt/io/file.hpp"

namespace mttt {

/// A State that says what its whole numbers may be.
template <class S>
concept BoundedState = requires(std::string_view member, Index i, std::int64_t value) {
  { S::may_hold(member, i, value) } -> std::same_as<bool>;
};

namespace detail {

/// Walks as for_each_tensor does, over values of the same layout that were read into host memory.
template <class Owner>
struct StateCheck {
  std::string_view file;
  Path& path;
  std::vector<std::vector<std::byte>>::const_iterator& values;
  std::string_view member = {};

  template <class Part>
  void operator()(std::string_view name, const Part& part) const {
    const std::size_t before = path.grow(name);
    StateCheck<Owner>{file, path, values, name}.enter(part);
    path.shrink(before);
  }

  template <class Part>
  void enter(const Part& part) const {
    if constexpr (is_tensor<Part>) {
      check(part);
    } else if constexpr (is_std_array<Part>) {
      for (std::size_t i = 0; i < part.size(); ++i) element(i, part[i]);
    } else if constexpr (is_std_tuple<Part>) {
      each(part, std::make_index_sequence<std::tuple_size_v<Part>>{});
    } else {
      Part::visit(StateCheck<Part>{file, path, values, member}, part);
    }
  }

 private:
  template <class Part>
  void element(std::size_t i, const Part& part) const {
    const std::size_t before = path.grow(i);
    enter(part);
    path.shrink(before);
  }
  template <class Tuple, std::size_t... I>
  void each(const Tuple& parts, std::index_sequence<I...>) const {
    (element(I, std::get<I>(parts)), ...);
  }

  template <class Tens>
  void check(const Tens& tensor) const {
    using T = std::remove_const_t<typename Tens::value_type>;
    const std::byte* const data = (values++)->data();
    if constexpr (std::integral<T> && BoundedState<Owner>) {
      const T* const x = reinterpret_cast<const T*>(data);
      const Index width = tensor.extent(0) == 0 ? 1 : tensor.size() / tensor.extent(0);
      for (Index i = 0; i < tensor.size(); ++i) {
        if (Owner::may_hold(member, i % width, static_cast<std::int64_t>(x[i]))) continue;
        fail(file, cat("tensor ", quote(path.view()), ": ", +x[i], " at element ", i),
             "a number that a conversation can have reached",
             "the file is damaged: start the conversation anew, or load an earlier state of it");
      }
    }
  }
};

/// `values`: the content of every tensor of the state, in the order of its visit.
template <class S>
void check_state(std::string_view file, const S& state, const std::vector<std::vector<std::byte>>& values) {
  Path path;
  auto at = values.begin();
  StateCheck<S>{file, path, at}.enter(state);
}

}  // namespace detail
}  // namespace mttt
