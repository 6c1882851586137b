// Element-wise helpers that blocks share: sums, products with a row, activations, masked clearing of states.
//
// Formula: named on each function.
// Shapes:  flat arrays of n elements, or rows of `width`.
// Units:   elements.
// Errors:  none.
// Not supported: broadcasting beyond one row.
// Source:  none.
#pragma once

#include <cstdint>

#include "mttt/backend/backend.hpp"
#include "mttt/core/visit.hpp"

namespace mttt {

namespace detail {

/// a / b of what is not negative: a GPU divides 32 bits several times faster than 64.
MTTT_HD inline Index quotient(Index a, Index b) {
  if (((a | b) >> 32) != 0) return a / b;
  return static_cast<Index>(static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b));
}

struct Sum {
  template <class A>
  MTTT_HD A operator()(A a, A b) const {
    return a + b;
  }
};

struct Product {
  template <class A>
  MTTT_HD A operator()(A a, A b) const {
    return a * b;
  }
};

template <class F>
struct Activate {
  template <class A>
  MTTT_HD A operator()(A x) const {
    return F::f(x);
  }
};

template <class F>
struct ActivateBackward {
  template <class A>
  MTTT_HD A operator()(A x, A dy) const {
    return dy * F::df(x);
  }
};

template <class T>
struct AddRow {
  const T* row;
  T* y;
  Index width;
  template <class Team>
  MTTT_HD void operator()(Team team, Index r) const {
    T* out = y + r * width;
    team.map(width, Sum{}, out, out, row);
  }
};

/// parts[p, c] = sum over rows of part p of dy[., c] * (x[., c] - mean) * r, where a null x is 1, a null mean 0,
/// a null r 1. One team a part of the rows and a block of columns: many work at once, none on another's place.
template <class T, class A>
struct SumColumnParts {
  const T *dy, *x;    // (rows, width)
  const A *mean, *r;  // (rows)
  A* parts;           // (ceil(rows / part), width)
  Index rows, width;
  static constexpr Index part = 32, block = 256;

  MTTT_HD Index blocks() const { return (width + block - 1) / block; }
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index first = i % blocks() * block, n = block < width - first ? block : width - first;
    const Index begin = i / blocks() * part, end = begin + part < rows ? begin + part : rows;
    const T *up = dy + first, *in = x == nullptr ? up : x + first;
    const A *shift = mean, *scale = r;
    const bool product = x != nullptr;
    A* total = parts + i / blocks() * width + first;
    const Index ld = width;
    team.for_each(n, [=](Index c) {
      A sum = 0;
      for (Index row = begin; row < end; ++row) {
        A term = static_cast<A>(up[row * ld + c]);
        if (product) term *= static_cast<A>(in[row * ld + c]) - (shift == nullptr ? A(0) : shift[row]);
        sum += scale == nullptr ? term : term * scale[row];
      }
      total[c] = sum;
    });
  }
};

/// grad[c] += sum over parts of parts[., c]
template <class A, class G>
struct AddParts {
  const A* parts;
  G* grad;
  Index count, width;
  MTTT_HD A total(Index c) const {
    A sum = 0;
#ifdef __CUDA_ARCH__  // many reads under way: a core has few columns to wait with
    MTTT_PRAGMA(unroll 16)
#endif
    for (Index p = 0; p < count; ++p) sum += parts[p * width + c];
    return sum;
  }
  MTTT_HD void operator()(Index c) const { grad[c] += total(c); }
};

/// Rows in pieces: one of a ring of 3000 keys is 25 MB, too much for one team.
template <class T>
struct ClearRows {
  static constexpr Index piece = 32768;
  T* data;
  Index width;
  const std::uint8_t* mask;
  MTTT_HD Index pieces() const { return (width + piece - 1) / piece; }
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index b = i / pieces(), first = i % pieces() * piece;
    if (!active(mask, b)) return;
    T* row = data + b * width + first;
    team.for_each(piece < width - first ? piece : width - first, [=](Index j) { row[j] = T(0); });
  }
};

struct Advance {
  std::int64_t* positions;
  const std::uint8_t* mask;
  Index steps;
  MTTT_HD void operator()(Index b) const { positions[b] += active(mask, b) ? steps : 0; }
};

}  // namespace detail

/// y += x
template <class B, class T>
void add_to(B& be, const T* x, T* y, Index n) {
  be.map(n, detail::Sum{}, y, y, x);
}

/// y = a + b
template <class B, class T>
void sum(B& be, const T* a, const T* b, T* y, Index n) {
  be.map(n, detail::Sum{}, y, a, b);
}

/// y[r, :] += row
template <class B, class T>
void add_row(B& be, const T* row, T* y, Index rows, Index width) {
  be.rows(rows, detail::AddRow<T>{row, y, width}, 0, width);
}

/// Column sums of dy * (x - mean) * r, all (rows, width), in few parts, which AddParts joins; in the arena.
template <class B, class T>
Tensor<typename B::Accum, dyn, dyn> sum_column_parts(B& be, const T* dy, const T* x,
                                                     const typename B::Accum* mean,
                                                     const typename B::Accum* r, Index rows, Index width) {
  using A = typename B::Accum;
  using Parts = detail::SumColumnParts<T, A>;
  const auto parts = be.template make<A, dyn, dyn>((rows + Parts::part - 1) / Parts::part, width);
  const Parts sums{dy, x, mean, r, parts.data(), rows, width};
  be.rows(parts.extent(0) * sums.blocks(), sums, 0, 2 * Parts::part * Parts::block);
  if (parts.extent(0) <= 8 * Parts::part)
    return parts;  // else AddParts would go through thousands, one by one
  return sum_column_parts<B, A>(be, parts.data(), nullptr, nullptr, nullptr, parts.extent(0), width);
}

/// grad += a b, of a parameter that trains; one that does not has a gradient without memory, left out.
template <class B, class U, class V, class G>
void add_product(B& be, Matrix<U> a, Matrix<V> b, Matrix<G> grad, typename B::Accum scale = 1) {
  if (grad.data != nullptr) be.matmul(a, b, grad, scale, 1);
}

/// grad += column sums of dy * (x - mean) * r, all (rows, width); null x, mean and r stand for 1, 0 and 1.
/// Nothing is done for a null grad, that of a parameter which does not train.
template <class B, class T, class G>
void sum_product_columns(B& be, const T* dy, const T* x, const typename B::Accum* mean,
                         const typename B::Accum* r, G* grad, Index rows, Index width) {
  if (grad == nullptr) return;
  const auto scope = be.scope();
  const auto parts = sum_column_parts(be, dy, x, mean, r, rows, width);
  be.for_each(width, detail::AddParts<typename B::Accum, G>{parts.data(), grad, parts.extent(0), width});
}

/// grad += column sums of dy (rows, width)
template <class B, class T, class G>
void sum_columns(B& be, const T* dy, G* grad, Index rows, Index width) {
  sum_product_columns(be, dy, static_cast<const T*>(nullptr), nullptr, nullptr, grad, rows, width);
}

/// Zeroes the rows of masked-in sessions in every tensor of a State; other rows stay bit-identical.
template <class B, class S>
void clear_state(B& be, S& state, Mask mask) {
  for_each_tensor(
      [&](std::string_view, auto& t) {
        using T = typename std::remove_cvref_t<decltype(t)>::value_type;
        const Index batch = t.extent(0);
        if (batch == 0) return;
        const detail::ClearRows<T> rows{t.data(), t.size() / batch, mask.data()};
        be.rows(batch * rows.pieces(), rows, 0, rows.width < rows.piece ? rows.width : rows.piece);
      },
      state);
}

/// Whether a counter of steps can be one: none is negative, and no stream lasts for 2^48 of them.
constexpr bool may_be_position(std::int64_t steps) { return steps >= 0 && steps < std::int64_t{1} << 48; }

/// positions += steps for active sessions.
template <class B>
void advance(B& be, std::int64_t* positions, Index batch, Index steps, Mask mask) {
  be.for_each(batch, detail::Advance{positions, mask.data(), steps});
}

}  // namespace mttt
