// Element-wise helpers that blocks share: sums, products with a row, activations, masked clearing of states.
//
// Formula: named on each function.
// Shapes:  flat arrays of n elements, or rows of `width`.
// Units:   elements.
// Errors:  none.
// Not supported: broadcasting beyond one row.
// Source:  none.
#pragma once

#include "mttt/backend/backend.hpp"
#include "mttt/core/visit.hpp"

namespace mttt {

namespace detail {

template <class T>
struct AddTo {
  const T* x;
  T* y;
  MTTT_HD void operator()(Index i) const { y[i] += x[i]; }
};

template <class T>
struct Sum {
  const T *a, *b;
  T* y;
  MTTT_HD void operator()(Index i) const { y[i] = a[i] + b[i]; }
};

template <class F, class T>
struct Activate {
  const T* x;
  T* y;
  MTTT_HD void operator()(Index i) const { y[i] = F::f(x[i]); }
};

template <class F, class T>
struct ActivateBackward {
  const T *x, *dy;
  T* dx;
  MTTT_HD void operator()(Index i) const { dx[i] = dy[i] * F::df(x[i]); }
};

template <class T>
struct AddRow {
  const T* row;
  T* y;
  Index width;
  template <class Team>
  MTTT_HD void operator()(Team team, Index r) const {
    T* out = y + r * width;
    const T* in = row;
    team.for_each(width, [=](Index i) { out[i] += in[i]; });
  }
};

/// grad[c] += sum over rows of dy[., c]; one team a block of columns, so that no two write the same place.
template <class T, class A>
struct SumColumns {
  const T* dy;
  T* grad;
  Index rows, width, block;
  template <class Team>
  MTTT_HD void operator()(Team team, Index b) const {
    const Index first = b * block, n = block < width - first ? block : width - first;
    const T* in = dy + first;
    T* out = grad + first;
    const Index count = rows, ld = width;
    team.for_each(n, [=](Index c) {
      A total = 0;
      for (Index r = 0; r < count; ++r) total += in[r * ld + c];
      out[c] += static_cast<T>(total);
    });
  }
};

template <class T>
struct ClearRows {
  T* data;
  Index width;
  const std::uint8_t* mask;
  template <class Team>
  MTTT_HD void operator()(Team team, Index b) const {
    if (!active(mask, b)) return;
    T* row = data + b * width;
    team.for_each(width, [=](Index i) { row[i] = T(0); });
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
  be.for_each(n, detail::AddTo<T>{x, y});
}

/// y = a + b
template <class B, class T>
void sum(B& be, const T* a, const T* b, T* y, Index n) {
  be.for_each(n, detail::Sum<T>{a, b, y});
}

/// y[r, :] += row
template <class B, class T>
void add_row(B& be, const T* row, T* y, Index rows, Index width) {
  be.rows(rows, detail::AddRow<T>{row, y, width}, 0, width);
}

/// grad += column sums of dy (rows, width)
template <class B, class T>
void sum_columns(B& be, const T* dy, T* grad, Index rows, Index width) {
  constexpr Index block = 64;
  be.rows((width + block - 1) / block, detail::SumColumns<T, typename B::Accum>{dy, grad, rows, width, block},
          0, rows * block);
}

/// Zeroes the rows of masked-in sessions in every tensor of a State; other rows stay bit-identical.
template <class B, class S>
void clear_state(B& be, S& state, Mask mask) {
  for_each_tensor(
      [&](std::string_view, auto& t) {
        using T = typename std::remove_cvref_t<decltype(t)>::value_type;
        const Index batch = t.extent(0);
        if (batch > 0) be.rows(batch, detail::ClearRows<T>{t.data(), t.size() / batch, mask.data()});
      },
      state);
}

/// positions += steps for active sessions.
template <class B>
void advance(B& be, std::int64_t* positions, Index batch, Index steps, Mask mask) {
  be.for_each(batch, detail::Advance{positions, mask.data(), steps});
}

}  // namespace mttt
