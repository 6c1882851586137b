// The norm of a gradient over all its tensors, and the factor that clips it.
//
// Formula: norm = scale sqrt(sum of g^2 over all tensors that are not frozen);
//          factor = min(1, max_norm / (norm + 1e-6)).
// Shapes:  none.   Units: none.
// Errors:  a gradient that is not finite: names the first tensor that has such an element.
// Not supported: norms other than the Euclidean one; clipping of single tensors.
// Source:  torch.nn.utils.clip_grad_norm_.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "mttt/backend/backend.hpp"
#include "mttt/train/param_groups.hpp"

namespace mttt {

namespace detail {

/// partial[i] = sum of squares of chunk i
template <class T>
struct SquareSums {
  const T* data;
  Index n, chunk;
  double* partial;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const T* x = data + i * chunk;
    const Index count = chunk < n - i * chunk ? chunk : n - i * chunk;
    const double sum = team.template sum<double>(count, [=](Index k) {
      const double value = static_cast<double>(x[k]);
      return value * value;
    });
    if (team.leader()) partial[i] = sum;
  }
};

struct SumPartials {
  const double* partial;
  Index n;
  double* total;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const double* x = partial;
    const double sum = team.template sum<double>(n, [=](Index k) { return x[k]; });
    if (team.leader()) *total = sum;
  }
};

}  // namespace detail

/// The same bits whatever the number of threads: chunks of a fixed size.
template <class B, class P>
double gradient_norm(B& be, const P& grad, const std::vector<ParamGroup>& groups, double scale = 1) {
  constexpr Index chunk = 1 << 14;
  const auto scope = be.scope();
  auto sums = be.template make<double, dyn>(static_cast<Index>(groups.size()));
  be.fill(sums.data(), sums.size(), 0.0);
  Index at = 0;
  for_each_tensor(
      [&](std::string_view, const auto& g) {
        using T = std::remove_const_t<typename std::remove_cvref_t<decltype(g)>::value_type>;
        const Index i = at++, n = g.size(), chunks = (n + chunk - 1) / chunk;
        if (i >= sums.size() || groups[static_cast<std::size_t>(i)].frozen || n == 0) return;
        const auto inner = be.scope();
        auto partial = be.template make<double, dyn>(chunks);
        be.rows(chunks, detail::SquareSums<T>{g.data(), n, chunk, partial.data()}, 0, chunk);
        be.rows(1, detail::SumPartials{partial.data(), chunks, &sums(i)}, 0, chunks);
      },
      grad);
  if (at != sums.size()) {
    fail("gradient_norm", std::to_string(groups.size()) + " parameter groups", std::to_string(at),
         "call make_groups with the parameters of this model");
  }
  std::vector<double> host(groups.size());
  be.to_host(sums.data(), host.data(), sums.size());
  double total = 0;
  at = 0;
  for_each_tensor(
      [&](std::string_view name, const auto&) {
        const double sum = host[static_cast<std::size_t>(at++)];
        if (!std::isfinite(sum)) {
          fail("gradient of '" + std::string(name) + "'", std::isnan(sum) ? "NaN" : "an infinite norm",
               "finite numbers", "lower the learning rate or max_norm, and look at the last losses");
        }
        total += sum;
      },
      grad);
  return std::abs(scale) * std::sqrt(total);
}

/// What the gradient is to be multiplied with; max_norm 0 switches clipping off.
inline double clip_factor(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace mttt
