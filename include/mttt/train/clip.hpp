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
#include "mttt/train/chunks.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

namespace detail {

/// partial[i] = sum of squares of chunk i
template <class A>
struct SquareSums {
  const Chunk* chunks;
  const ParamGroup* groups;
  const A* grad;
  double* partial;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Chunk c = chunks[i];
    const A* x = grad + c.at;
    const auto square = [=](Index k) {
      const double value = static_cast<double>(x[k]);
      return value * value;
    };
    double sum = 0;
    if (!groups[c.tensor].frozen) {
#ifdef __CUDA_ARCH__
      constexpr Index W = 16 / sizeof(A);
      const Index packs = c.length / W, rest = c.length - packs * W;
      sum = team.template sum<double>(packs + rest, [=](Index k) {
        if (k >= packs) return square(packs * W + k - packs);
        const auto pack = load_lanes<W>(x + k * W);
        double part = 0;
        for (Index j = 0; j < W; ++j)
          part += static_cast<double>(pack.of[j]) * static_cast<double>(pack.of[j]);
        return part;
      });
#else
      sum = team.template sum<double>(c.length, square);
#endif
    }
    if (team.leader()) partial[i] = sum;
  }
};

/// total[t] = sum of the partial sums of tensor t
struct SumPartials {
  const double* partial;
  const Index* first;
  double* total;
  template <class Team>
  MTTT_HD void operator()(Team team, Index t) const {
    const double* x = partial + first[t];
    const double sum = team.template sum<double>(first[t + 1] - first[t], [=](Index k) { return x[k]; });
    if (team.leader()) total[t] = sum;
  }
};

}  // namespace detail

/// The same bits whatever the number of threads: chunks of a fixed size. The host waits once. Where the gradient
/// is shared out over ranks, `shares` are the chunks that each looks after; all ranks get the same norm.
template <class P, class B, class M, class R = OneRank>
double gradient_norm(B& be, ChunkTable<P, B, M>& table, const Store<M, B>& grad,
                     const std::vector<ParamGroup>& groups, double scale = 1, const R& ranks = {},
                     const RankParts& shares = {}) {
  using A = typename B::Accum;
  const ParamGroup* device_groups = table.groups(be, groups, "gradient_norm");
  const auto scope = be.scope();
  const auto partial = be.template make<double, dyn>(table.size());
  const auto sums = be.template make<double, dyn>(table.tensors());
  const RankPart own =
      shares.empty() ? RankPart{0, table.size(), 0} : shares[static_cast<std::size_t>(ranks.rank())];
  be.rows(own.count,
          detail::SquareSums<A>{table.chunks() + own.from, device_groups, grad.template flat<A>().data(),
                                partial.data() + own.from},
          0, table.length);
  if (!shares.empty()) {
    ranks.all_gather(be, partial.data(), partial.data(), shares);
    ranks.wait(be);
  }
  be.rows(table.tensors(), detail::SumPartials{partial.data(), table.first(), sums.data()}, 0,
          table.size() / std::max<Index>(1, table.tensors()));
  std::vector<double>& host = table.host_sums();
  be.to_host(sums.data(), host.data(), sums.size());
  double total = 0;
  std::size_t at = 0;
  for_each_tensor(
      [&](std::string_view name, const auto&) {
        const double sum = host[at++];
        if (!std::isfinite(sum)) {
          fail("gradient of '" + std::string(name) + "'", std::isnan(sum) ? "NaN" : "an infinite norm",
               "finite numbers", "lower the learning rate or max_norm, and look at the last losses");
        }
        total += sum;
      },
      *grad);
  return std::abs(scale) * std::sqrt(total);
}

/// What the gradient is to be multiplied with; max_norm 0 switches clipping off.
inline double clip_factor(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace mttt
