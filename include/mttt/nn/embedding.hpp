// Embedding: rows of a table looked up by codes; several tables may add into one output.
//
// Formula: y_r = weight[code_r], or += with Write::add;  backward: dweight[code_r] += dy_r, rows in order,
//          so that equal inputs give equal bits. A backend that sorts brings the rows of one code together
//          first.
// Shapes:  codes: batch x steps whole numbers at any strides (one stream of (B, K, T) tokens needs no copy);
//          weight (card, dim); y, dy (batch * steps, dim), rows in the order batch, step.
// Units:   codes in [0, card), or zero_code for a row of zeros that learns nothing.
// Errors:  check_codes, on the host, refuses other codes. The lookup itself runs where it cannot report, and
//          reads every code outside the table as zero_code: callers check what comes from outside.
// Not supported: low-rank tables, norms of embeddings, two codes in one.
// Source:  torch.nn.Embedding; kyutai-labs/moshi models/lm_utils.py `ScaledEmbedding` (zero_idx).
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <string>

#include "mttt/core/concepts.hpp"
#include "mttt/core/lanes.hpp"
#include "mttt/nn/elementwise.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/nn/rope.hpp"

namespace mttt {

struct EmbeddingConfig {
  Index card, dim;
};

/// The code of "nothing here": its embedding is zero.
inline constexpr int zero_code = -1;

enum class Write { overwrite, add };

/// Rows of codes in the backend's memory: code (b, t) at data[b * strides.batch + t * strides.step].
template <std::integral I>
struct CodeRows {
  const I* data;
  Index batch, steps;
  Strides strides;

  CodeRows(const I* codes, Index b, Index t, Strides s) : data(codes), batch(b), steps(t), strides(s) {}
  CodeRows(Tensor<const I, dyn> flat) : CodeRows(flat.data(), 1, flat.extent(0), {0, 1}) {}  // NOLINT
  CodeRows(Tensor<I, dyn> flat) requires(!std::is_const_v<I>)
      : CodeRows(Tensor<const I, dyn>(flat)) {}  // NOLINT

  MTTT_HD Index rows() const { return batch * steps; }
  MTTT_HD Index operator()(Index row) const {
    return static_cast<Index>(data[row / steps * strides.batch + row % steps * strides.step]);
  }
};

/// Throws unless each of n codes in host memory is zero_code or in [0, card).
template <std::integral I>
void check_codes(std::string_view subject, const I* codes, Index n, Index card) {
  for (Index i = 0; i < n; ++i) {
    const auto code = static_cast<long long>(codes[i]);
    if (code != zero_code && (code < 0 || code >= card)) {
      fail(subject, "code " + std::to_string(code) + " at place " + std::to_string(i),
           "0 to " + std::to_string(card - 1) + ", or " + std::to_string(zero_code) + " for none",
           "use codes made for this model");
    }
  }
}

namespace detail {

struct Same {
  template <class A>
  MTTT_HD A operator()(A x) const {
    return x;
  }
};

template <class T, class I>
struct LookUp {
  CodeRows<I> codes;
  const T* weight;
  T* y;
  Index card, dim;
  bool add;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const Index code = codes(row);
    const bool known = code >= 0 && code < card;
    T* to = y + row * dim;
    if (known) {
      const T* from = weight + code * dim;
      add ? team.map(dim, Sum{}, to, to, from) : team.map(dim, Same{}, to, from);
    } else if (!add) {
      team.for_each(dim, [=](Index i) { to[i] = T(0); });
    }
  }
};

/// A block of columns of the whole table: no two teams write the same place, each goes through all rows.
template <class T, class G, class I>
struct LookUpBackward {
  CodeRows<I> codes;
  const T* dy;
  G* grad;
  Index card, dim, block;
  template <class Team>
  MTTT_HD void operator()(Team team, Index b) const {
    const Index first = b * block, n = block < dim - first ? block : dim - first, rows = codes.rows();
    for (Index row = 0; row < rows; ++row) {
      const Index code = codes(row);
      if (code < 0 || code >= card) continue;
      const T* up = dy + row * dim + first;
      G* to = grad + code * dim + first;
      team.for_each(n, [=](Index i) { to[i] += up[i]; });
    }
  }
};

/// What a sort by code takes: the code of each row, `card` for one that learns nothing, and its number.
template <class I>
struct NumberCodes {
  CodeRows<I> codes;
  std::int32_t *keys, *numbers;
  Index card;
  MTTT_HD void operator()(Index row) const {
    const Index code = codes(row);
    keys[row] = static_cast<std::int32_t>(code >= 0 && code < card ? code : card);
    numbers[row] = static_cast<std::int32_t>(row);
  }
};

/// The rows of one code lie together, in order: a run. Most rows may be of one code (silence, padding), so the sorted
/// rows are cut in pieces, each summed by a team of its own for every block of columns. Runs inside a piece are done then;
/// those that go on leave their sums in `parts` for JoinRuns.
template <class T, class G, class A, Index W>
struct SumPieces {
  const std::int32_t *keys, *numbers;
  const T* dy;
  G* grad;
  A* parts;  // (pieces, 2, dim): of the run that comes from the piece before, of the one that goes on to the next
  Index rows, card, dim;
  static constexpr Index members = 64, block = members * W, ahead = 8, piece = 64;

  MTTT_HD Index pieces() const { return (rows + piece - 1) / piece; }
  MTTT_HD Index blocks() const { return (dim + block - 1) / block; }
  MTTT_HD bool goes_on(Index end) const { return end < rows && keys[end] == keys[end - 1]; }
  MTTT_HD bool comes_from_before(Index begin) const { return begin > 0 && keys[begin - 1] == keys[begin]; }

  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Index p = i / blocks(), first = i % blocks() * block,
                columns = block < dim - first ? block : dim - first;
    const Index begin = p * piece, end = begin + piece < rows ? begin + piece : rows;
    const SumPieces s = *this;
    team.for_each(columns / W, [=](Index lane) {
      const Index column = first + lane * W;
      Lanes<A, W> total{};
      Index run = begin;
      for (Index r = begin; r < end; r += ahead) {
        Lanes<T, W> row[ahead];
        for (Index j = 0; j < ahead; ++j)
          row[j] = load_lanes<W>(s.dy + s.numbers[r + j < end ? r + j : end - 1] * s.dim + column);
        for (Index j = 0; j < ahead && r + j < end; ++j) {
          const Index at = r + j;
          for (Index k = 0; k < W; ++k) total.of[k] += static_cast<A>(row[j].of[k]);
          if (at + 1 < end && s.keys[at + 1] == s.keys[at]) continue;
          s.put(p, run, at + 1, column, total);
          total = {}, run = at + 1;
        }
      }
    });
  }

  MTTT_HD void put(Index p, Index from, Index to, Index column, const Lanes<A, W>& total) const {
    const bool before = comes_from_before(from);
    if (before || goes_on(to)) {
      store_lanes(parts + (2 * p + (before ? 0 : 1)) * dim + column, total);
    } else {
      add(keys[from], column, total);
    }
  }
  MTTT_HD void add(std::int32_t code, Index column, const Lanes<A, W>& total) const {
    if (code == card) return;
    G* to = grad + code * dim + column;
    auto sum = load_lanes<W>(to);
    for (Index k = 0; k < W; ++k) sum.of[k] += total.of[k];
    store_lanes(to, sum);
  }
};

/// A run that goes on beyond the piece where it begins: its parts, in order.
template <class T, class G, class A, Index W>
struct JoinRuns {
  SumPieces<T, G, A, W> of;

  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    constexpr Index piece = of.piece, block = of.block, ahead = 16;
    const Index p = i / of.blocks(), first = i % of.blocks() * block, begin = p * piece, end = begin + piece;
    const std::int32_t code = of.keys[(end < of.rows ? end : of.rows) - 1];
    if (!of.goes_on(end) || code == of.card || (begin > 0 && of.keys[begin - 1] == code)) return;
    Index last = p + 1, beyond = of.pieces();  // the last piece that the run reaches, and one it does not
    while (beyond - last > 1) {
      const Index middle = last + (beyond - last) / 2;
      (of.keys[middle * piece] == code ? last : beyond) = middle;
    }
    const auto s = of;
    const Index columns = block < s.dim - first ? block : s.dim - first;
    team.for_each(columns / W, [=](Index lane) {
      const Index column = first + lane * W;
      auto total = load_lanes<W>(s.parts + (2 * p + 1) * s.dim + column);
      for (Index q = p + 1; q <= last; q += ahead) {
        Lanes<A, W> part[ahead];
        for (Index j = 0; j < ahead; ++j)
          part[j] = load_lanes<W>(s.parts + 2 * (q + j < last ? q + j : last) * s.dim + column);
        for (Index j = 0; j < ahead && q + j <= last; ++j)
          for (Index k = 0; k < W; ++k) total.of[k] += part[j].of[k];
      }
      s.add(code, column, total);
    });
  }
};

}  // namespace detail

/// Not a block in the sense of core/concepts.hpp: it reads codes, not a Sequence, and they have no gradient.
template <EmbeddingConfig C, class B>
struct Embedding {
  using T = typename B::Scalar;
  static constexpr Index card = C.card, out = C.dim;

  struct Params {
    Tensor<T, card, out> weight;
    static void visit(auto&& f, auto&&... p) { f("weight", p.weight...); }
  };

  static void init(Params& p, Rng& rng) {
    init_truncated_normal(p.weight, 1.0 / std::sqrt(static_cast<double>(out)), rng);
  }

  template <class I>
  static void forward(B& be, const Params& p, CodeRows<I> codes, T* y, Write write = Write::overwrite) {
    be.rows(codes.rows(), detail::LookUp<T, I>{codes, p.weight.data(), y, card, out, write == Write::add}, 0,
            out);
  }

  template <class I>
  static void backward(B& be, CodeRows<I> codes, const T* dy, auto& grad) {
    if (left_out(grad.weight)) return;
    using G = typename decltype(grad.weight)::value_type;
    const Index rows = codes.rows();
    if constexpr (requires(std::int32_t * p) { be.sort_pairs(p, p, rows, card); }) {
      const auto scope = be.scope();
      const auto keys = be.template make<std::int32_t, dyn>(rows);
      const auto numbers = be.template make<std::int32_t, dyn>(rows);
      be.for_each(rows, detail::NumberCodes<I>{codes, keys.data(), numbers.data(), card});
      const auto sorted = be.sort_pairs(keys.data(), numbers.data(), rows, card);
      constexpr Index width = 16 / static_cast<Index>(sizeof(T)), lanes = out % width == 0 ? width : 1;
      using A = typename B::Accum;
      detail::SumPieces<T, G, A, lanes> sums{sorted.keys, sorted.values, dy,   grad.weight.data(),
                                             nullptr,     rows,          card, out};
      sums.parts = be.template make<A, dyn, 2, out>(sums.pieces()).data();
      // So costly that a GPU takes as many threads as a block has members.
      const Index cost = 16 * std::min(sums.members, out / lanes), teams = sums.pieces() * sums.blocks();
      be.rows(teams, sums, 0, cost);
      if (sums.pieces() > 1) be.rows(teams, detail::JoinRuns<T, G, A, lanes>{sums}, 0, cost);
    } else {
      constexpr Index block = 64;
      be.rows((out + block - 1) / block,
              detail::LookUpBackward<T, G, I>{codes, dy, grad.weight.data(), card, out, block}, 0,
              rows * block);
    }
  }
};

}  // namespace mttt
