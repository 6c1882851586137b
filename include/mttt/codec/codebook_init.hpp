// Places the vectors of a quantiser's codebooks where the latents are: k-means on residuals, level by level.
//
// Formula: k-means++ draws the first centroids; Lloyd's steps: code = argmin |r - e_code|, e_c = the mean of
//          the r of code c. The next level's r is r - e_code. Each branch starts from its projection.
// Shapes:  latents (N, dim): rows of any recordings; r (N, codebook_dim), e (card, codebook_dim).
// Units:   none.
// Errors:  no latents; latents that are not finite.
// Not supported: training codebooks further. Fewer different rows than codes leave codes unused.
// Source:  kyutai-labs/moshi quantization/core_vq.py `_run_kmeans`, which draws first centroids evenly;
//          Arthur and Vassilvitskii, "k-means++" (2007).
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "mttt/codec/rvq.hpp"

namespace mttt {

namespace detail {

template <class T>
struct NearestCentroid {
  const T *scores, *half_norm;  // (rows, card), (card)
  std::int32_t* codes;          // (rows)
  Index card;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const T *score = scores + i * card, *half = half_norm;
    const Index best = team.template argmax<T>(card, [=](Index c) { return score[c] - half[c]; });
    if (team.leader()) codes[i] = static_cast<std::int32_t>(best);
  }
};

/// Centroids of points (n, dim), both in host memory; the backend does the products.
template <class B>
class KMeans {
 public:
  using T = typename B::Scalar;
  std::vector<T> centroids;         // (card, dim)
  std::vector<std::int32_t> codes;  // (n): the nearest centroid of each point
  std::vector<Index> usage;         // (card): points of each centroid

  KMeans(B& be, const std::vector<T>& points, Index dim, Index card, int iterations, Rng& rng)
      : centroids(static_cast<std::size_t>(card * dim)),
        codes(points.size() / static_cast<std::size_t>(dim)),
        be_(be),
        points_(points),
        dim_(dim),
        card_(card),
        n_(static_cast<Index>(codes.size())) {
    draw(rng);
    assign();
    for (int i = 0; i < iterations; ++i) {
      move();
      const auto before = codes;
      assign();
      if (codes == before) break;
    }
  }

 private:
  const T* point(Index i) const { return points_.data() + i * dim_; }
  T* centroid(Index c) { return centroids.data() + c * dim_; }

  double distance(const T* a, const T* b) const {
    double sum = 0;
    for (Index k = 0; k < dim_; ++k) {
      const double d = static_cast<double>(a[k]) - static_cast<double>(b[k]);
      sum += d * d;
    }
    return sum;
  }

  /// k-means++: each next centroid is a point, drawn in proportion to its squared distance from those before.
  void draw(Rng& rng) {
    std::vector<double> far(static_cast<std::size_t>(n_), INFINITY);
    Index at = static_cast<Index>(rng.below(static_cast<std::uint64_t>(n_)));
    for (Index c = 0; c < card_; ++c) {
      std::copy_n(point(at), dim_, centroid(c));
      double total = 0;
      for (Index i = 0; i < n_; ++i) {
        double& d = far[static_cast<std::size_t>(i)];
        if (d > 0) d = std::min(d, distance(point(i), centroid(c)));
        total += d;
      }
      double left = rng.uniform() * total;
      for (at = 0; at + 1 < n_ && left >= far[static_cast<std::size_t>(at)]; ++at)
        left -= far[static_cast<std::size_t>(at)];
    }
  }

  void assign() {
    constexpr Index at_once = 512;  // rows of scores in memory
    const auto scope = be_.scope();
    const auto books = be_.template make<T, dyn, dyn>(card_, dim_);
    const auto half_norm = be_.template make<T, dyn>(card_);
    const auto rows = be_.template make<T, dyn, dyn>(std::min(at_once, n_), dim_);
    const auto scores = be_.template make<T, dyn, dyn>(std::min(at_once, n_), card_);
    const auto some = be_.template make<std::int32_t, dyn>(std::min(at_once, n_));
    const std::vector<T> origin(static_cast<std::size_t>(dim_));
    std::vector<T> half(static_cast<std::size_t>(card_));
    for (Index c = 0; c < card_; ++c)
      half[static_cast<std::size_t>(c)] = static_cast<T>(distance(centroid(c), origin.data()) / 2);
    be_.to_device(centroids.data(), books.data(), books.size());
    be_.to_device(half.data(), half_norm.data(), card_);
    for (Index first = 0; first < n_; first += at_once) {
      const Index count = std::min(at_once, n_ - first);
      be_.to_device(point(first), rows.data(), count * dim_);
      be_.matmul(Matrix<const T>{rows.data(), count, dim_, dim_}, books.matrix().t(),
                 Matrix<T>{scores.data(), count, card_, card_});
      be_.rows(count, NearestCentroid<T>{scores.data(), half_norm.data(), some.data(), card_}, 0, card_);
      be_.to_host(some.data(), codes.data() + first, count);
    }
    usage.assign(static_cast<std::size_t>(card_), 0);
    for (const std::int32_t code : codes) ++usage[static_cast<std::size_t>(code)];
  }

  /// Every centroid to the mean of its points; one without points to the point that is worst off.
  void move() {
    std::vector<double> sum(centroids.size()), error(codes.size());
    for (Index i = 0; i < n_; ++i) {
      const Index c = codes[static_cast<std::size_t>(i)];
      for (Index k = 0; k < dim_; ++k) sum[static_cast<std::size_t>(c * dim_ + k)] += point(i)[k];
      error[static_cast<std::size_t>(i)] = distance(point(i), centroid(c));
    }
    for (Index c = 0; c < card_; ++c) {
      if (const Index used = usage[static_cast<std::size_t>(c)]; used > 0) {
        for (Index k = 0; k < dim_; ++k)
          centroid(c)[k] =
              static_cast<T>(sum[static_cast<std::size_t>(c * dim_ + k)] / static_cast<double>(used));
        continue;
      }
      const auto worst = std::max_element(error.begin(), error.end());
      if (*worst == 0) continue;  // fewer different points than centroids
      std::copy_n(point(worst - error.begin()), dim_, centroid(c));
      *worst = 0;
    }
  }

  B& be_;
  const std::vector<T>& points_;
  Index dim_, card_, n_;
};

}  // namespace detail

/// `Q` is a SplitRvq<C, B>; its projections keep their values. Deterministic by the generator.
template <class Q, class B>
void init_codebooks(B& be, typename Q::Params& p, Tensor<const typename B::Scalar, dyn, Q::in> latents,
                    Rng& rng, int iterations = 10) {
  using T = typename B::Scalar;
  const Index n = latents.extent(0);
  if (n < 1) fail("init_codebooks", "no latents", "one row or more", "encode some sound first");
  const auto branch = [&](auto& part) {
    const auto scope = be.scope();
    constexpr Index dim = std::remove_cvref_t<decltype(part.layers[0].embedding_sum)>::static_extents[1];
    const auto projected = be.template make<T, dyn, dim>(n);
    be.matmul(latents.matrix(), part.project_in().t(), projected.matrix());
    std::vector<T> residual(static_cast<std::size_t>(n * dim));
    be.to_host(projected.data(), residual.data(), n * dim);
    for (const T value : residual) {
      if (!std::isfinite(value))
        fail("init_codebooks", "latents that are not finite", "finite numbers",
             "check the weights and the sound");
    }
    for (auto& level : part.layers) {
      const detail::KMeans<B> found(be, residual, dim, Q::card, iterations, rng);
      std::vector<T> sum = found.centroids, usage(static_cast<std::size_t>(Q::card));
      for (Index c = 0; c < Q::card; ++c) {
        const auto used = static_cast<T>(std::max<Index>(found.usage[static_cast<std::size_t>(c)], 1));
        usage[static_cast<std::size_t>(c)] = used;
        for (Index k = 0; k < dim; ++k) sum[static_cast<std::size_t>(c * dim + k)] *= used;
      }
      for (Index i = 0; i < n; ++i) {
        const T* nearest = found.centroids.data() + found.codes[static_cast<std::size_t>(i)] * dim;
        for (Index k = 0; k < dim; ++k) residual[static_cast<std::size_t>(i * dim + k)] -= nearest[k];
      }
      const T one = 1;
      be.to_device(sum.data(), level.embedding_sum.data(), Q::card * dim);
      be.to_device(usage.data(), level.cluster_usage.data(), Q::card);
      be.to_device(&one, level.initialized.data(), Index{1});
    }
  };
  branch(p.rvq_first);
  branch(p.rvq_rest);
}

}  // namespace mttt
