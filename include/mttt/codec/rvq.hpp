// SplitRvq: a residual vector quantiser in two branches, the first (semantic) codebooks and the rest.
//
// Formula: a branch projects x to r_0; level q takes code_q = argmin |r_q - e|, r_(q+1) = r_q - e[code_q].
//          Decoding projects the sum of the e[code_q] back; the branches add.
//          e = embedding_sum / max(cluster_usage, 1e-5). The nearest has the largest r . e - |e|^2 / 2: a
//          product and an argmax; of equals the lowest index.
//          Training is straight through: backward takes the quantised vector for the projected one.
// Shapes:  x, y (B, T, dim), codes (B, n, T) with semantic_q <= n <= n_q chosen at run time,
//          r (B * T, codebook_dim).
// Units:   codes in [0, card), time in frames. A code outside that range adds nothing: one not known yet.
// Errors:  Error when the number of codebooks is out of range.
// Not supported: gradients of the codebooks, which learn by moving averages of what they are nearest to: see
//          rvq_training.hpp.
// Source:  kyutai-labs/moshi quantization/vq.py `SplitResidualVectorQuantizer`, core_vq.py
//          `EuclideanCodebook`.
#pragma once

#include "mttt/nn/linear.hpp"

namespace mttt {

struct RvqConfig {
  Index dim, codebook_dim, card, n_q;
  Index semantic_q = 1;
};

/// Codes of B sessions: (B, codebooks, T).
template <class T = std::int32_t>
using Codes = Tensor<T, dyn, dyn, dyn>;

namespace detail {

/// One row of a codebook's tables from what training accumulated.
template <class T, class A>
struct DeriveEmbedding {
  const T *sum, *usage;
  T *embedding, *half_norm;
  Index dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const T *from = sum + row * dim, least = T(1e-5), used = usage[row] < least ? least : usage[row];
    T* to = embedding + row * dim;
    team.for_each(dim, [=](Index i) { to[i] = from[i] / used; });
    const A half = team.template sum<A>(dim, [=](Index i) {
      const A e = static_cast<A>(from[i] / used);
      return A(0.5) * e * e;
    });
    if (team.leader()) half_norm[row] = static_cast<T>(half);
  }
};

/// Takes the best code of a row and subtracts its vector from the residual.
template <class T>
struct TakeNearest {
  const T *scores, *half_norm, *embedding;  // (rows, card), (card), (card, dim)
  T* residual;                              // (rows, dim)
  std::int32_t* codes;                      // of this level; sessions lie session_stride apart
  Index first_row, steps, session_stride, card, dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const T *score = scores + i * card, *half = half_norm;
    const Index best = team.template argmax<T>(card, [=](Index c) { return score[c] - half[c]; });
    const Index row = first_row + i;
    if (team.leader()) codes[row / steps * session_stride + row % steps] = static_cast<std::int32_t>(best);
    const T* nearest = embedding + best * dim;
    T* r = residual + row * dim;
    team.for_each(dim, [=](Index c) { r[c] -= nearest[c]; });
  }
};

/// y[row] = sum of the vectors of levels [first, last).
template <class T>
struct SumEmbeddings {
  const std::int32_t* codes;  // (B, n, T)
  const T* embedding;         // (n_q, card, dim)
  T* y;                       // (B * T, dim)
  Index steps, n, first, last, card, dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const std::int32_t* code = codes + row / steps * n * steps + row % steps;
    T* to = y + row * dim;
    team.for_each(dim, [=](Index i) { to[i] = T(0); });
    for (Index q = first; q < last; ++q) {
      const Index c = code[q * steps];
      if (c < 0 || c >= card) continue;
      const T* e = embedding + (q * card + c) * dim;
      team.sync();
      team.for_each(dim, [=](Index i) { to[i] += e[i]; });
    }
  }
};

}  // namespace detail

template <RvqConfig C, class B>
struct SplitRvq {
  static_assert(C.semantic_q >= 1 && C.semantic_q < C.n_q, "mttt: SplitRvq: each branch needs a codebook");

  using T = typename B::Scalar;
  static constexpr Index in = C.dim, out = C.dim, n_q = C.n_q, card = C.card;

  struct Level {
    Tensor<T, C.card, C.codebook_dim> embedding_sum;
    Tensor<T, C.card> cluster_usage;
    Tensor<T, 1> initialized;  // 1 once training has placed the vectors
    static void visit(auto&& f, auto&&... p) {
      f("_codebook._initialized", p.initialized...);
      f("_codebook.cluster_usage", p.cluster_usage...);
      f("_codebook.embedding_sum", p.embedding_sum...);
    }
  };
  template <Index levels>
  struct Branch {
    Tensor<T, C.codebook_dim, C.dim, 1> input_proj;  // published as convolutions of one sample
    Tensor<T, C.dim, C.codebook_dim, 1> output_proj;
    std::array<Level, levels> layers;
    static void visit(auto&& f, auto&&... p) {
      f("input_proj.weight", p.input_proj...);
      f("output_proj.weight", p.output_proj...);
      f("vq.layers", p.layers...);
    }
    Matrix<T> project_in() const { return {input_proj.data(), C.codebook_dim, C.dim, C.dim}; }
    Matrix<T> project_out() const { return {output_proj.data(), C.dim, C.codebook_dim, C.codebook_dim}; }
  };
  struct Params {
    Branch<C.semantic_q> rvq_first;
    Branch<C.n_q - C.semantic_q> rvq_rest;
    static void visit(auto&& f, auto&&... p) {
      f("rvq_first", p.rvq_first...);
      f("rvq_rest", p.rvq_rest...);
    }
  };
  /// Derived from Params once after loading: Store<Codebooks, B> books(be); derive(be, *params, *books);
  struct Codebooks {
    Tensor<T, C.n_q, C.card, C.codebook_dim> embedding;
    Tensor<T, C.n_q, C.card> half_norm;
    static void visit(auto&& f, auto&&... p) {
      f("embedding", p.embedding...);
      f("half_norm", p.half_norm...);
    }
  };
  struct Saved {
    Sequence<const T, in> x;
    Tensor<T, dyn, C.codebook_dim> first, rest;  // quantised, (B * T, codebook_dim)
  };

  static void init(Params& p, Rng& rng) {
    const auto branch = [&](auto& part) {
      init_truncated_normal(part.input_proj, 1.0 / std::sqrt(static_cast<double>(C.dim)), rng);
      init_truncated_normal(part.output_proj, 1.0 / std::sqrt(static_cast<double>(C.codebook_dim)), rng);
      double deviation = 1;
      for (Level& level : part.layers) {  // residuals shrink from level to level
        init_truncated_normal(level.embedding_sum, deviation, rng);
        init_constant(level.cluster_usage, 1.0);
        init_constant(level.initialized, 0.0);
        deviation *= 0.75;
      }
    };
    branch(p.rvq_first);
    branch(p.rvq_rest);
  }

  static void derive(B& be, const Params& p, Codebooks& tables) {
    for (Index q = 0; q < C.n_q; ++q) {
      const Level& level = q < C.semantic_q ? p.rvq_first.layers[static_cast<std::size_t>(q)]
                                            : p.rvq_rest.layers[static_cast<std::size_t>(q - C.semantic_q)];
      be.rows(C.card,
              detail::DeriveEmbedding<T, typename B::Accum>{
                  level.embedding_sum.data(), level.cluster_usage.data(), tables.embedding[q].data(),
                  tables.half_norm[q].data(), C.codebook_dim},
              0, C.codebook_dim);
    }
  }

  /// codes (B, n, T) of x (B, T, dim)
  static void encode(B& be, const Params& p, const Codebooks& tables, Sequence<const T, in> x,
                     Codes<> codes) {
    require_codebooks(codes.extent(1));
    encode_branch(be, p.rvq_first, tables, x, codes, 0, C.semantic_q);
    if (codes.extent(1) > C.semantic_q) {
      encode_branch(be, p.rvq_rest, tables, x, codes, C.semantic_q, codes.extent(1));
    }
  }

  /// y (B, T, dim) of codes (B, n, T)
  static void decode(B& be, const Params& p, const Codebooks& tables, Codes<const std::int32_t> codes,
                     Sequence<T, out> y) {
    const auto scope = be.scope();
    Saved unused;
    decode(be, p, tables, codes, y, unused);
  }

  /// y = decode(encode(x)) with codes.extent(1) codebooks.
  static void forward(B& be, const Params& p, const Codebooks& tables, Sequence<const T, in> x, Codes<> codes,
                      Sequence<T, out> y, Saved& saved) {
    saved.x = x;
    encode(be, p, tables, x, codes);
    decode(be, p, tables, codes, y, saved);
  }

  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, out> dy,
                       Sequence<T, in> dx, auto& grad) {
    const auto scope = be.scope();
    const auto dr = be.template make<T, dyn, C.codebook_dim>(dy.flat_rows().extent(0));
    const auto branch = [&](const auto& part, const auto& quantised, auto& part_grad, T beta) {
      be.matmul(dy.matrix().t(), quantised.matrix(), part_grad.project_out(), 1, 1);
      be.matmul(dy.matrix(), part.project_out(), dr.matrix());
      be.matmul(dr.matrix().t(), saved.x.matrix(), part_grad.project_in(), 1, 1);
      be.matmul(dr.matrix(), part.project_in(), dx.matrix(), 1, beta);
    };
    branch(p.rvq_first, saved.first, grad.rvq_first, 0);
    if (!saved.rest.empty()) branch(p.rvq_rest, saved.rest, grad.rvq_rest, 1);
  }

 private:
  static void require_codebooks(Index n) {
    if (n < C.semantic_q || n > C.n_q) {
      fail("SplitRvq", std::to_string(n) + " codebooks",
           std::to_string(C.semantic_q) + " to " + std::to_string(C.n_q),
           "take codes (B, n, T) of such an n");
    }
  }

  template <class Part>
  static void encode_branch(B& be, const Part& part, const Codebooks& tables, Sequence<const T, in> x,
                            Codes<> codes, Index first, Index last) {
    constexpr Index at_once = 512;  // rows of scores in memory
    const auto scope = be.scope();
    const Index rows = x.flat_rows().extent(0), steps = x.extent(1), n = codes.extent(1);
    const auto residual = be.template make<T, dyn, C.codebook_dim>(rows);
    const auto scores = be.template make<T, dyn, C.card>(rows < at_once ? rows : at_once);
    be.matmul(x.matrix(), part.project_in().t(), residual.matrix());
    if constexpr (requires(const T* table, std::int32_t* code) {
                    be.nearest_levels(table, table, n, n, n, residual.data(), n, code, n, n);
                  }) {
      if (be.nearest_levels(tables.embedding[first].data(), tables.half_norm[first].data(), last - first,
                            C.card, C.codebook_dim, residual.data(), rows, codes.data() + first * steps,
                            steps, n * steps))
        return;
    }
    for (Index q = first; q < last; ++q) {
      for (Index row = 0; row < rows; row += at_once) {
        const Index count = rows - row < at_once ? rows - row : at_once;
        const Matrix<const T> some{residual.data() + row * C.codebook_dim, count, C.codebook_dim,
                                   C.codebook_dim};
        be.matmul(some, tables.embedding[q].matrix().t(), Matrix<T>{scores.data(), count, C.card, C.card});
        be.rows(count,
                detail::TakeNearest<T>{scores.data(), tables.half_norm[q].data(), tables.embedding[q].data(),
                                       residual.data(), codes.data() + q * steps, row, steps, n * steps,
                                       C.card, C.codebook_dim},
                0, C.card);
      }
    }
  }

  static void decode(B& be, const Params& p, const Codebooks& tables, Codes<const std::int32_t> codes,
                     Sequence<T, out> y, Saved& saved) {
    const Index n = codes.extent(1), rows = y.flat_rows().extent(0);
    require_codebooks(n);
    const auto branch = [&](const auto& part, auto& quantised, Index first, Index last, T beta) {
      quantised = be.template make<T, dyn, C.codebook_dim>(rows);
      be.rows(rows,
              detail::SumEmbeddings<T>{codes.data(), tables.embedding.data(), quantised.data(),
                                       codes.extent(2), n, first, last, C.card, C.codebook_dim},
              0, C.codebook_dim * (last - first));
      be.matmul(quantised.matrix(), part.project_out().t(), y.matrix(), 1, beta);
    };
    branch(p.rvq_first, saved.first, 0, C.semantic_q, 0);
    saved.rest = {};
    if (n > C.semantic_q) branch(p.rvq_rest, saved.rest, C.semantic_q, n, 1);
  }
};

}  // namespace mttt
