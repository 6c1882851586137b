// RvqTraining: the quantiser in training. Gradients pass straight through it, codebooks follow what they
// stand for by moving averages, codes that nothing is near to start anew.
//
// Formula: level q of a branch sees r_q, r_(q+1) = r_q - e_q[code_q]; quantised = sum of the e_q[code_q], in
//          `unquantised` sessions r_0 itself. commitment = mean over levels, rows and dims of r_(q+1)^2, the
//          e held: it draws what is encoded to its codes. Straight through: d quantised is taken for d r_0.
//          learn, of each level in use:
//            usage_c = decay usage_c + (1 - decay) (rows of code c)
//            sum_c   = decay sum_c   + (1 - decay) (sum of their r_q),  e_c = sum_c / usage_c
//          and where usage_c < restart * (mean usage): usage_c = mean usage, e_c = r_q of a random row.
// Shapes:  x, y (B, T, dim), codes (B, n, T): n <= n_q levels are in use (quantiser dropout draws n); rows
//          are B T. r (n, B T, codebook_dim).
// Units:   usage: rows a pass, averaged over about 1 / (1 - decay) passes.
// Errors:  those of SplitRvq.
// Not supported: averages over several machines; the semantic codebook's distillation from a teacher.
// Source:  kyutai-labs/moshi quantization/core_vq.py `EuclideanCodebook` (`_check_expired_codes`,
//          `_replace_expired_codes`), vq.py `ResidualVectorQuantizer` (q_dropout, no_quantization_rate
//          "same").
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mttt/codec/codebook_init.hpp"
#include "mttt/core/store.hpp"
#include "mttt/nn/total.hpp"

namespace mttt {

struct CodebookLearning {
  double decay = 0.99, restart = 0.1;
};

/// Of a codebook in training, as reports tell it.
struct CodebookUse {
  double usage;       // rows a pass, of all codes together
  double perplexity;  // as many codes, evenly used, would carry as much
  double restarts;    // codes that started anew, since this was set to 0
};

namespace detail {

/// A row's way through a branch's levels: what each level sees, what remains after each, summed, and the sum
/// of its squares.
template <class T, class A>
struct WalkLevels {
  const std::int32_t* codes;  // (B, n, T)
  const T* embedding;         // (n_q, card, dim)
  const std::uint8_t* unquantised;
  const T* projected;             // (rows, dim)
  T *seen, *remains, *quantised;  // (n, rows, dim), (rows, dim), (rows, dim)
  double* squares;                // (rows)
  Index rows, steps, n, first, last, card, dim;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const auto all = *this;
    const Index b = row / steps;
    const std::int32_t* code = codes + b * n * steps + row % steps;
    const bool exact = unquantised != nullptr && unquantised[b] != 0;
    const A sum = team.template sum<A>(dim, [=](Index i) {
      const A start = wide(all.projected[row * all.dim + i]);
      A left = start, total = 0, squared = 0, after = 0;
      for (Index q = all.first; q < all.last; ++q) {
        const A e = wide(all.embedding[(q * all.card + code[q * all.steps]) * all.dim + i]);
        all.seen[(q * all.rows + row) * all.dim + i] = static_cast<T>(left);
        left -= e;
        total += e;
        after += left;
        squared += left * left;
      }
      all.remains[row * all.dim + i] = static_cast<T>(after);
      all.quantised[row * all.dim + i] = static_cast<T>(exact ? start : total);
      return squared;
    });
    if (team.leader()) squares[row] = static_cast<double>(sum);
  }
};

template <class A>
struct AddScaled {
  A scale;
  MTTT_HD A operator()(A y, A x) const { return y + scale * x; }
};

/// The averages of one code of a level. Rows are added in their order.
template <class T, class A>
struct MoveCode {
  const std::int32_t* codes;  // (B, n, T), from this level's first
  const T* seen;              // (rows, dim)
  T *sum, *usage;             // (card, dim), (card)
  Index sessions, steps, session_stride, dim;
  A decay;
  static constexpr Index piece = 32;
  MTTT_HD Index pieces() const { return (steps + piece - 1) / piece; }
  template <class Team>
  MTTT_HD void operator()(Team team, Index c) const {
    A* total = team.template scratch<A>();
    const Index width = dim;
    team.for_each(width, [=](Index i) { total[i] = 0; });
    Index count = 0;
    for (Index i = 0; i < sessions * pieces(); ++i) {
      const Index b = i / pieces(), first = i % pieces() * piece;
      const Index n = piece < steps - first ? piece : steps - first;
      const std::int32_t* code = codes + b * session_stride + first;
      std::uint32_t own = 0;  // the rows of this code: found together, not one after the other
#ifdef __CUDA_ARCH__
      MTTT_PRAGMA(unroll)
#endif
      for (Index t = 0; t < piece; ++t)
        own |= static_cast<std::uint32_t>(code[t < n ? t : 0] == static_cast<std::int32_t>(c) && t < n) << t;
      for (const T* row = seen + (b * steps + first) * dim; own != 0; row += dim, own >>= 1) {
        if ((own & 1) == 0) continue;
        ++count;
        team.for_each(width, [=](Index d) { total[d] += wide(row[d]); });  // a member keeps to its elements
      }
    }
    T* to = sum + c * dim;
    const A keep = decay;
    team.for_each(width,
                  [=](Index i) { to[i] = static_cast<T>(keep * wide(to[i]) + (1 - keep) * total[i]); });
    if (team.leader())
      usage[c] = static_cast<T>(decay * wide(usage[c]) + (1 - decay) * static_cast<A>(count));
  }
};

template <class T>
struct SurveyCodes {
  const T* usage;
  CodebookUse* use;
  Index card;
  double restart;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    const T* x = usage;
    const double all =
        team.template sum<double>(card, [=](Index c) { return static_cast<double>(wide(x[c])); });
    const double entropy = team.template sum<double>(card, [=](Index c) {
      const double p = static_cast<double>(wide(x[c])) / all;
      return p > 0 ? -p * std::log(p) : 0.0;
    });
    const double least = restart * all / static_cast<double>(card);
    const double dead = team.template sum<double>(
        card, [=](Index c) { return static_cast<double>(wide(x[c])) < least ? 1.0 : 0.0; });
    if (team.leader()) *use = {all, std::exp(entropy), use->restarts + dead};
  }
};

/// A code that is used too little becomes what this level sees of a row, drawn by the seed and the pass.
template <class T>
struct RestartCode {
  const T* seen;
  const CodebookUse* use;
  T *sum, *usage;
  Index rows, card, dim, level;
  double restart;
  std::uint64_t seed, pass;
  template <class Team>
  MTTT_HD void operator()(Team team, Index c) const {
    const double mean = use->usage / static_cast<double>(card);
    if (!(static_cast<double>(wide(usage[c])) < restart * mean)) return;
    const PhiloxBlock random = philox(seed, pass, static_cast<std::uint64_t>(level * card + c));
    const Index row = static_cast<Index>(uniform_from(random.word[0]) * static_cast<double>(rows));
    const T* from = seen + row * dim;
    T* to = sum + c * dim;
    const double each = mean;
    team.for_each(dim, [=](Index i) { to[i] = static_cast<T>(each * static_cast<double>(wide(from[i]))); });
    team.sync();  // all have read usage
    if (team.leader()) usage[c] = static_cast<T>(mean);
  }
};

}  // namespace detail

template <RvqConfig C, class B>
struct RvqTraining {
  using Q = SplitRvq<C, B>;
  using T = typename B::Scalar;
  using A = typename B::Accum;
  using Params = typename Q::Params;
  using Codebooks = typename Q::Codebooks;
  using Rows = Tensor<T, dyn, C.codebook_dim>;

  struct Saved {
    Sequence<const T, C.dim> x;
    Codes<const std::int32_t> codes;
    Rows first, rest, first_remains, rest_remains;  // of the branches: quantised, and the sum of what remains
    Tensor<T, dyn, dyn, C.codebook_dim> seen;       // (n, rows, codebook_dim)
  };
  /// For Store<Survey, B>.
  struct Survey {
    Tensor<CodebookUse, C.n_q> use;
    static void visit(auto&& f, auto&&... p) { f("use", p.use...); }
  };

  /// y of x, the codes, and *commitment += `weight` times that loss. `unquantised` (B) or empty.
  static void forward(B& be, const Params& p, const Codebooks& tables, Sequence<const T, C.dim> x,
                      Mask unquantised, Codes<> codes, Sequence<T, C.dim> y, Saved& saved, double* commitment,
                      double weight = 1) {
    const Index n = codes.extent(1), rows = x.flat_rows().extent(0);
    Q::encode(be, p, tables, x, codes);
    saved.x = x;
    saved.codes = codes;
    saved.seen = be.template make<T, dyn, dyn, C.codebook_dim>(n, rows);
    const auto branch = [&](const auto& part, Rows& quantised, Rows& remains, Index first, Index last,
                            A beta) {
      const auto make = [&] { return be.template make<T, dyn, C.codebook_dim>(rows); };
      quantised = make();
      remains = make();
      const auto scope = be.scope();
      const auto projected = make();
      const auto squares = be.template make<double, dyn>(rows);
      be.matmul(x.matrix(), part.project_in().t(), projected.matrix());
      be.rows(rows,
              detail::WalkLevels<T, A>{codes.data(), tables.embedding.data(), unquantised.data(),
                                       projected.data(), saved.seen.data(), remains.data(), quantised.data(),
                                       squares.data(), rows, codes.extent(2), n, first, last, C.card,
                                       C.codebook_dim},
              0, C.codebook_dim * (last - first));
      add_total(be, squares.data(), rows, weight * mean_of(n, rows), commitment);
      be.matmul(quantised.matrix(), part.project_out().t(), y.matrix(), 1, beta);
    };
    branch(p.rvq_first, saved.first, saved.first_remains, 0, C.semantic_q, 0);
    saved.rest = {};
    if (n > C.semantic_q) branch(p.rvq_rest, saved.rest, saved.rest_remains, C.semantic_q, n, 1);
  }

  /// Of y and of `weight` times the commitment.
  static void backward(B& be, const Params& p, const Saved& saved, Sequence<const T, C.dim> dy,
                       Sequence<T, C.dim> dx, auto& grad, double weight) {
    const auto scope = be.scope();
    const Index rows = dy.flat_rows().extent(0);
    const auto dr = be.template make<T, dyn, C.codebook_dim>(rows);
    const A scale = static_cast<A>(2 * weight * mean_of(saved.codes.extent(1), rows));
    const auto branch = [&](const auto& part, const Rows& quantised, const Rows& remains, auto& part_grad,
                            A beta) {
      be.matmul(dy.matrix().t(), quantised.matrix(), part_grad.project_out(), 1, 1);
      be.matmul(dy.matrix(), part.project_out(), dr.matrix());
      be.map(dr.size(), detail::AddScaled<A>{scale}, dr.data(), dr.data(), remains.data());
      be.matmul(dr.matrix().t(), saved.x.matrix(), part_grad.project_in(), 1, 1);
      be.matmul(dr.matrix(), part.project_in(), dx.matrix(), 1, beta);
    };
    branch(p.rvq_first, saved.first, saved.first_remains, grad.rvq_first, 0);
    if (!saved.rest.empty()) branch(p.rvq_rest, saved.rest, saved.rest_remains, grad.rvq_rest, 1);
  }

  /// Places the codebooks of a training's start by k-means on latents (N, dim). It counts the rows of many
  /// passes; from here on usage is that of one of `rows` rows. Codes of no row but one, as late levels have
  /// them when N is small, would not be met again: they start anew in the first pass.
  static void start(B& be, Params& p, Tensor<const T, dyn, C.dim> latents, Index rows, Rng& rng) {
    init_codebooks<Q>(be, p, latents, rng);
    const auto scaled = [&](auto& level) {
      constexpr auto dim = static_cast<std::size_t>(C.codebook_dim);
      std::vector<T> usage(static_cast<std::size_t>(C.card)), sum(usage.size() * dim);
      be.to_host(level.cluster_usage.data(), usage.data(), C.card);
      be.to_host(level.embedding_sum.data(), sum.data(), C.card * C.codebook_dim);
      const double share = static_cast<double>(rows) / static_cast<double>(latents.extent(0));
      for (std::size_t c = 0; c < usage.size(); ++c) {
        const T factor = static_cast<T>(wide(usage[c]) > 1 ? share : 0.0);
        usage[c] *= factor;
        for (std::size_t i = 0; i < dim; ++i) sum[c * dim + i] *= factor;
      }
      be.to_device(usage.data(), level.cluster_usage.data(), C.card);
      be.to_device(sum.data(), level.embedding_sum.data(), C.card * C.codebook_dim);
    };
    for (auto& level : p.rvq_first.layers) scaled(level);
    for (auto& level : p.rvq_rest.layers) scaled(level);
  }

  /// Moves the codebooks of the levels in use. `pass` counts the calls of a training: with the seed it
  /// decides all that is drawn here.
  static void learn(B& be, Params& p, const Saved& saved, const CodebookLearning& options, std::uint64_t seed,
                    std::uint64_t pass, const Survey& survey) {
    const Index sessions = saved.codes.extent(0), n = saved.codes.extent(1), steps = saved.codes.extent(2),
                rows = sessions * steps;
    constexpr Index dim = C.codebook_dim;
    for (Index q = 0; q < n; ++q) {
      auto& level = q < C.semantic_q ? p.rvq_first.layers[static_cast<std::size_t>(q)]
                                     : p.rvq_rest.layers[static_cast<std::size_t>(q - C.semantic_q)];
      T *sum = level.embedding_sum.data(), *usage = level.cluster_usage.data();
      const T* seen = saved.seen[q].data();
      be.rows(C.card,
              detail::MoveCode<T, A>{saved.codes.data() + q * steps, seen, sum, usage, sessions, steps,
                                     n * steps, dim, static_cast<A>(options.decay)},
              dim * static_cast<Index>(sizeof(A)), rows + dim);
      be.rows(1, detail::SurveyCodes<T>{usage, survey.use.data() + q, C.card, options.restart}, 0,
              8 * C.card);
      be.rows(C.card,
              detail::RestartCode<T>{seen, survey.use.data() + q, sum, usage, rows, C.card, dim, q,
                                     options.restart, seed, pass},
              0, dim);
    }
  }

 private:
  static double mean_of(Index n, Index rows) { return 1 / static_cast<double>(n * rows * C.codebook_dim); }
};

}  // namespace mttt
