// fit_codebooks: places a quantiser's vectors by k-means on examples, level by level on what the levels
// before leave.
//
// Formula: centres start as examples drawn at random; each iteration moves a centre to the mean of the
// examples that
//          are nearest to it, and one that has none to a random example. Then embedding_sum = sum of a
//          centre's examples and cluster_usage = their number, so that the embedding is their mean.
// Shapes:  x (B, T, dim), the latent of recordings; every frame is an example.
// Units:   frames.
// Errors:  Error when there is no example.
// Not supported: memory that the host cannot read; learning while the encoder changes (moving averages).
// Source:  Lloyd's algorithm; kyutai-labs/moshi quantization/core_vq.py `_init_embedding` starts training
// likewise.
//
// An encoder with random weights sends most sound to a few vectors of a random codebook. Fitted ones spread
// the codes, which is what a toy needs for its codes to say something about the sound.
#pragma once

#include <vector>

#include "mttt/codec/rvq.hpp"

namespace mttt {

namespace detail {

/// k-means of one level; subtracts from every example the centre it ends at.
template <class B, class T, class Level, Index card, Index dim>
class LevelFit {
 public:
  LevelFit(B& be, const Level& level, Tensor<T, dyn, dim> examples, Rng& rng)
      : be_(be), level_(level), examples_(examples), rng_(rng), nearest_(static_cast<std::size_t>(rows())) {}

  void run(Index iterations) {
    draw_centres();
    for (Index i = 0; i < iterations; ++i) {
      assign();
      move_centres();
    }
    assign();
    keep();
  }

 private:
  Index rows() const { return examples_.extent(0); }
  Index random_row() { return static_cast<Index>(rng_.below(static_cast<std::uint64_t>(rows()))); }
  T* centre(Index c) { return centres_.data() + c * dim; }
  Index& nearest(Index row) { return nearest_[static_cast<std::size_t>(row)]; }
  void take_example(Index c, Index row) { std::copy_n(&examples_(row, 0), dim, centre(c)); }

  void draw_centres() {  // different examples while there are enough
    std::vector<Index> order(static_cast<std::size_t>(rows()));
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<Index>(i);
    for (std::size_t c = 0; c < card; ++c) {
      if (c < order.size()) std::swap(order[c], order[c + rng_.below(order.size() - c)]);
      take_example(static_cast<Index>(c), c < order.size() ? order[c] : random_row());
    }
  }

  void assign() {
    constexpr Index at_once = 512;
    const auto scope = be_.scope();
    const auto scores = be_.template make<T, at_once, card>();
    std::vector<T> half(card);
    for (Index c = 0; c < card; ++c) {
      for (Index i = 0; i < dim; ++i)
        half[static_cast<std::size_t>(c)] += T(0.5) * centre(c)[i] * centre(c)[i];
    }
    const Matrix<const T> centres{centres_.data(), card, dim, dim};
    for (Index row = 0; row < rows(); row += at_once) {
      const Index n = std::min(at_once, rows() - row);
      be_.matmul(Matrix<const T>{&examples_(row, 0), n, dim, dim}, centres.t(),
                 Matrix<T>{scores.data(), n, card, card});
      for (Index i = 0; i < n; ++i) {
        Index best = 0;
        for (Index c = 1; c < card; ++c) {
          const T lead = scores(i, c) - half[static_cast<std::size_t>(c)];
          if (lead > scores(i, best) - half[static_cast<std::size_t>(best)]) best = c;
        }
        nearest(row + i) = best;
      }
    }
  }

  /// Sums and counts into the level's tensors.
  void accumulate() {
    init_constant(level_.embedding_sum, 0);
    init_constant(level_.cluster_usage, 0);
    for (Index row = 0; row < rows(); ++row) {
      level_.cluster_usage(nearest(row)) += T(1);
      for (Index i = 0; i < dim; ++i) level_.embedding_sum(nearest(row), i) += examples_(row, i);
    }
  }
  void move_centres() {
    accumulate();
    for (Index c = 0; c < card; ++c) {
      const T count = level_.cluster_usage(c);
      if (count == T(0)) {
        take_example(c, random_row());
      } else {
        for (Index i = 0; i < dim; ++i) centre(c)[i] = level_.embedding_sum(c, i) / count;
      }
    }
  }
  void keep() {
    accumulate();
    for (Index c = 0; c < card; ++c) {
      if (level_.cluster_usage(c) == T(0)) {  // nobody's nearest: as good as any, counted once
        level_.cluster_usage(c) = T(1);
        std::copy_n(centre(c), dim, &level_.embedding_sum(c, 0));
      }
    }
    init_constant(level_.initialized, 1);
    for (Index row = 0; row < rows(); ++row) {
      const Index c = nearest(row);
      for (Index i = 0; i < dim; ++i)
        examples_(row, i) -= level_.embedding_sum(c, i) / level_.cluster_usage(c);
    }
  }

  B& be_;
  const Level& level_;
  Tensor<T, dyn, dim> examples_;
  Rng& rng_;
  std::vector<T> centres_ = std::vector<T>(card * dim);
  std::vector<Index> nearest_;
};

}  // namespace detail

/// Afterwards derive the codebooks' tables anew.
template <class Quantizer, class B>
void fit_codebooks(B& be, typename Quantizer::Params& p, Sequence<const typename B::Scalar, Quantizer::in> x,
                   Rng& rng, Index iterations = 10) {
  using T = typename B::Scalar;
  const Index rows = x.flat_rows().extent(0);
  if (rows == 0) fail("fit_codebooks", "no frames", "one example or more", "give the latent of a recording");
  const auto branch = [&](auto& part) {
    constexpr Index dim = std::remove_cvref_t<decltype(part.layers[0].embedding_sum)>::static_extents[1];
    const auto scope = be.scope();
    const auto residual = be.template make<T, dyn, dim>(rows);
    be.matmul(x.matrix(), part.project_in().t(), residual.matrix());
    for (const auto& level : part.layers) {
      detail::LevelFit<B, T, typename Quantizer::Level, Quantizer::card, dim>(be, level, residual, rng)
          .run(iterations);
    }
  };
  branch(p.rvq_first);
  branch(p.rvq_rest);
}

}  // namespace mttt
