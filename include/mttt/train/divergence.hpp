// Divergence: how far the predictions of a model are from those of the model that it stands for, for instance
// from those before its weights were rounded to 8 or 4 bits.
//
// Formula: KL = sum over codes c of p(c) (log p(c) - log q(c)), p and q the softmax of the logits; agreement:
//          of how many rows the largest logit is the same one. Both are means over rows.
// Shapes:  logits (rows, card) in host memory; mask (rows), 0 leaves a row out, null none.
// Units:   nats.
// Errors:  none; of no rows the means are 0. Logits that are not finite make KL NaN.
// Not supported: temperatures.
// Source:  Kullback, Leibler 1951.
#pragma once

#include <algorithm>
#include <cmath>

#include "mttt/core/tensor.hpp"

namespace mttt {

struct Divergence {
  double kl = 0, agreement = 0;
  Index rows = 0;
};

namespace detail {
template <class T>
double log_sum_exp(const T* logits, Index card) {
  const double largest = static_cast<double>(*std::max_element(logits, logits + card));
  double sum = 0;
  for (Index c = 0; c < card; ++c) sum += std::exp(static_cast<double>(logits[c]) - largest);
  return largest + std::log(sum);
}
}  // namespace detail

template <class T, class U>
Divergence divergence(const T* exact, const U* other, Index rows, Index card,
                      const std::uint8_t* mask = nullptr) {
  Divergence total;
  for (Index r = 0; r < rows; ++r, exact += card, other += card) {
    if (mask != nullptr && mask[r] == 0) continue;
    const double p_sum = detail::log_sum_exp(exact, card), q_sum = detail::log_sum_exp(other, card);
    for (Index c = 0; c < card; ++c) {
      const double log_p = static_cast<double>(exact[c]) - p_sum,
                   log_q = static_cast<double>(other[c]) - q_sum;
      total.kl += std::exp(log_p) * (log_p - log_q);
    }
    total.agreement +=
        std::max_element(exact, exact + card) - exact == std::max_element(other, other + card) - other;
    ++total.rows;
  }
  const double n = static_cast<double>(std::max<Index>(1, total.rows));
  return {total.kl / n, total.agreement / n, total.rows};
}

}  // namespace mttt
