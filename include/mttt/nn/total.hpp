// add_total: the end of a sum over many rows or parts, in one fixed order.
//
// Formula: *total += scale * (numbers[0] + ... + numbers[n - 1]).
// Shapes:  numbers (n), total one number, both in the backend's memory.
// Units:   elements.
// Errors:  none.
// Not supported: more numbers than one team sums in good time, about 10^5.
// Source:  none.
#pragma once

#include "mttt/backend/backend.hpp"

namespace mttt {

namespace detail {

struct AddScaledTotal {
  const double* numbers;
  double* total;
  Index n;
  double scale;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const double* x = numbers;
    const double sum = team.template sum<double>(n, [=](Index i) { return x[i]; });
    if (team.leader()) *total += scale * sum;
  }
};

}  // namespace detail

template <class B>
void add_total(B& be, const double* numbers, Index n, double scale, double* total) {
  be.rows(1, detail::AddScaledTotal{numbers, total, n, scale}, 0, n);
}

}  // namespace mttt
