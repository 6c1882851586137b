// Walks the tensors of one or several aggregates (Params, State) in lockstep, with their names.
//
// An aggregate names its members once:
//   static void visit(auto&& f, auto&&... p) { f("weight", p.weight...); f("bias", p.bias...); }
// A member is a Tensor, another such aggregate, a std::array of either, or a std::tuple of aggregates. The
// names of nested members are joined with dots, so that they spell the names of the published checkpoints.
// for_each_parameter takes a quantised weight (core/quantised.hpp) whole, for_each_tensor its values and scales.
//
// Shapes:  none.   Units: none.
// Errors:  Error when a joined name is longer than Path::capacity.
// Not supported: members of run-time number.
// Source:  none.
#pragma once

#include <array>
#include <charconv>
#include <cstring>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "mttt/core/tensor.hpp"

namespace mttt {

/// A weight of several tensors, core/quantised.hpp.
template <class T>
inline constexpr bool is_quantised = false;

/// A dotted name that grows and shrinks without allocating: walking a State must not allocate within a step.
class Path {
 public:
  static constexpr std::size_t capacity = 255;

  /// Appends ".name"; returns the length before, for `shrink`.
  std::size_t grow(std::string_view name) {
    const std::size_t before = size_;
    if (name.empty()) return before;
    if (size_ + name.size() + 1 > capacity) fail("parameter name", view(), "at most 255 characters");
    if (size_ > 0) text_[size_++] = '.';
    std::memcpy(text_ + size_, name.data(), name.size());
    size_ += name.size();
    return before;
  }
  std::size_t grow(std::size_t number) {
    char digits[20];
    const auto end = std::to_chars(digits, digits + sizeof digits, number).ptr;
    return grow(std::string_view(digits, static_cast<std::size_t>(end - digits)));
  }
  void shrink(std::size_t before) { size_ = before; }
  std::string_view view() const { return {text_, size_}; }

 private:
  char text_[capacity + 1];
  std::size_t size_ = 0;
};

namespace detail {

template <class T>
inline constexpr bool is_std_array = false;
template <class T, std::size_t N>
inline constexpr bool is_std_array<std::array<T, N>> = true;
template <class T>
inline constexpr bool is_std_tuple = false;
template <class... T>
inline constexpr bool is_std_tuple<std::tuple<T...>> = true;

template <class F, bool whole = false>
struct Walker {
  F& f;
  Path& path;

  template <class First, class... Rest>
  void operator()(std::string_view name, First&& first, Rest&&... rest) const {
    const std::size_t before = path.grow(name);
    enter(first, rest...);
    path.shrink(before);
  }

  template <class First, class... Rest>
  void enter(First& first, Rest&... rest) const {
    using T = std::remove_cvref_t<First>;
    if constexpr (is_tensor<T> || (whole && is_quantised<T>)) {
      f(path.view(), first, rest...);
    } else if constexpr (is_std_array<T>) {
      for (std::size_t i = 0; i < first.size(); ++i) element(i, first[i], rest[i]...);
    } else if constexpr (is_std_tuple<T>) {
      each(std::make_index_sequence<std::tuple_size_v<T>>{}, first, rest...);
    } else {
      T::visit(*this, first, rest...);
    }
  }

  template <class... P>
  void element(std::size_t i, P&... parts) const {
    const std::size_t before = path.grow(i);
    enter(parts...);
    path.shrink(before);
  }
  template <std::size_t... I, class... P>
  void each(std::index_sequence<I...>, P&... tuples) const {
    (at<I>(tuples...), ...);
  }
  template <std::size_t I, class... P>
  void at(P&... tuples) const {
    element(I, std::get<I>(tuples)...);
  }
};

}  // namespace detail

/// Calls f(name, tensor, tensors of the others at the same place...) for every tensor of `first`.
template <class F, class First, class... Rest>
void for_each_tensor(F&& f, First&& first, Rest&&... rest) {
  Path path;
  detail::Walker<F>{f, path}.enter(first, rest...);
}

/// The same with quantised weights whole: f(name, parameter, parameters of the others at the same place...).
template <class F, class First, class... Rest>
void for_each_parameter(F&& f, First&& first, Rest&&... rest) {
  Path path;
  detail::Walker<F, true>{f, path}.enter(first, rest...);
}

/// Whether a Store has left the tensor out.
template <class Tens>
bool left_out(const Tens& tensor) {
  return tensor.size() > 0 && tensor.data() == nullptr;
}

/// Whether it has left out all of them: no tensor of the aggregate trains.
template <class P>
bool all_left_out(const P& aggregate) {
  bool all = true;
  for_each_tensor([&](std::string_view, const auto& t) { all = all && (t.size() == 0 || left_out(t)); },
                  aggregate);
  return all;
}

/// The number of elements of all tensors.
template <class P>
Index count_elements(const P& aggregate) {
  Index n = 0;
  for_each_tensor([&](std::string_view, const auto& t) { n += t.size(); }, aggregate);
  return n;
}

}  // namespace mttt
