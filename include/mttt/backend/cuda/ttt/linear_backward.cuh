// The scan of TTT-Linear backwards on tensor cores: one block a head of a session, or two where most of the GPU
// would be idle; groups of mini-batches in reverse.
//
// A group's weights are learned again from its checkpoint, and kept as operands of products (bf16 W, float32
// b) in scratch; then its mini-batches are gone through from the last to the first. The gradient of the fast
// weights stays in registers from the last mini-batch to the first. Each sum has one owner and one order: no
// atomics.
//
// That gradient alone makes a mini-batch wait for the one after it. Of two blocks of a cluster the second
// does what does not need it, a mini-batch ahead: it learns the group before again, and takes the answers
// back to queries (`answers`, `queries`). What the first block needs of that lies in scratch. The products
// and sums are the same, and in the same order, as one block's.
//
// Formula: of one mini-batch, given dO and the gradients dW', db' of the weights after it; a capital T
//          transposes, P = -scale_t (1 + A), A = Q K^T where s <= t, and scale_C is 0 if the mini-batch is
//            not whole: dZbar  from dO through o = q + LN(Zbar)
//            dP     = dZbar Gl^T,  dA = -scale_t dP,  dscale_t -= sum over s of (1 + A) dP,  all where s <= t
//            dQ     = dO + dZbar W^T + dA K
//            U      = K dW' + 1 db',  dscale_C -= sum of Gl * U,  dGl = P^T dZbar - scale_C U
//            dlr_s  = g_s . dGl_s;  dZ, dtarget from lr dGl through the loss's gradient
//            dK     = dA^T Q - scale_C Gl dW'^T + dZ W^T
//            dW     = dW' + Q^T dZbar + K^T dZ,  db = db' + 1^T dZbar + 1^T dZ
// Shapes:  as in linear.cuh; scratch (B H, group, F, F) in bf16 and (B H, group, F) in float32.
// Units:   strides in elements.
// Errors:  those of check.cuh.
// Not supported: what linear.cuh does not.
// Source:  ttt/dual.hpp, TttBackward.
#pragma once

#include "mttt/backend/cuda/ttt/cluster.cuh"
#include "mttt/backend/cuda/ttt/linear.cuh"

namespace mttt::detail {

/// What the pass reads and writes besides: TttBackward of ttt/dual.hpp, and scratch.
struct TttLinearGradients {
  const bf16* dout;
  bf16 *dq, *dk, *dtarget;
  float *dlr, *dscale, *dgamma, *dbeta, *dweights;
  uint4* weights;
  float* biases;
  uint4* given;  // by the second block to the first
};

template <int F, int C>
struct TttLinearBackward {
  using P = Piece<C, F, F / C>;
  using Square = Tile<C, 64>;  // C x C numbers
  static constexpr int threads = 2 * F, blocks = tuning::ttt_linear_backward_blocks(F, C);
  static constexpr int tile = Tile<C, F>::bytes, of_weights = Tile<F, F>::bytes;
  static constexpr int k = 0, target = k + tile, q = target + tile, dout = q + tile;
  static constexpr int g = dout + tile, dzbar = g + tile, dz = dzbar + tile;
  static constexpr int w = dz + tile, dw = w + of_weights, p = dw + of_weights, da = p + Square::bytes;
  static constexpr int floats = da + Square::bytes;
  // In floats:
  static constexpr int bias = 0, dbias = bias + F, norm = dbias + F, scale = norm + 2 * F;
  static constexpr int rates = scale + C, exchange = rates + 2 * C;
  static constexpr int answered = exchange + 6 * P::place_floats;
  static constexpr int shared = floats + 4 * (answered + 2 * ColumnSums<P::N>::kept * threads);
  /// Of a mini-batch, in 16 bytes: Gl and dZbar, P and dA.
  static constexpr int given_tiles = 2 * tile / 16, given = given_tiles + 2 * Square::bytes / 16;
  static_assert(floats >= 4 * (C / 16 * F * 2));  // what the last sums take
};

/// 1 + q . k for the pairs of a row block that are not masked by more than the diagonal's block.
template <int F, class P>
__device__ void causal_dots(const P& piece, std::uint32_t q, std::uint32_t k, float (&dots)[P::R / 8][4]) {
  using T = Tile<P::R, F>;
#pragma unroll
  for (int n = 0; n < P::R / 8; ++n) dots[n][0] = dots[n][1] = dots[n][2] = dots[n][3] = 1;
  add_product<F, P::R>(dots, ByRows<T>{q, piece.first_row, 0}, ByRows<T>{k, 0, 0}, {0, F / 16},
                       piece.first_row / 16 + 1);
}

/// One block's work, or that of each of two; the functions are its stages.
template <int F, int C, bool two>
struct TttLinearBack {
  using Shape = TttLinearBackward<F, C>;
  using P = typename Shape::P;
  using T = Tile<C, F>;
  using W = Tile<F, F>;
  using Square = typename Shape::Square;
  static constexpr int N = P::N, threads = Shape::threads;

  const TttLinearTask& task;
  const TttLinearGradients& to;
  std::uint32_t memory = shared_address(ttt_memory);
  float* floats = reinterpret_cast<float*>(ttt_memory + Shape::floats);
  int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  P piece{16 * (warp % (C / 16)), warp / (C / 16), floats + Shape::exchange, {0, threads}};
  NormWeights norm{floats + Shape::norm};
  int diagonal = piece.first_row / 16;  // block of 16 keys, and of queries, that the mask cuts through

  FastWeights<F> dw;
  ColumnSums<N> dgamma, dbeta;      // of the losses; those of the answers are in shared memory
  float dscale[2] = {}, dlast = 0;  // a lane's shares

  Index start = task.first(static_cast<unsigned>(cell())),
        stride = C * task.heads;  // of this block's first token in (B, T, H), of a mini-batch

  __device__ static Index cell() { return two ? blockIdx.x / 2 : blockIdx.x; }
  __device__ int kept() const { return two ? 2 * task.group : task.group; }  // mini-batches' weights
  __device__ Index first(int m) const { return start + m * stride; }
  __device__ std::uint32_t tile(int offset) const { return memory + static_cast<std::uint32_t>(offset); }

  __device__ void copy_tile(int offset, const bf16* from, int m) const {
    copy_rows<C, F, threads>(tile(offset), from + first(m) * F, task.heads * F, task.tokens<C>(m), thread);
  }
  __device__ void copy_rates(int m, float* rates) const {
    if (thread >= C) return;
    const bool in = thread < task.tokens<C>(m);
    copy_number(rates + thread, task.lr + first(m) + (in ? thread * task.heads : 0), in);
  }
  __device__ uint4* kept_weights(int i) const {
    return to.weights + (cell() * static_cast<Index>(kept()) + i) * (F * F / 8);
  }
  __device__ float* kept_bias(int i) const {
    return to.biases + (cell() * static_cast<Index>(kept()) + i) * F;
  }

  /// What threads have written or copied before may be read after it.
  __device__ void sync() const {
    offer_tiles<C>();
    __syncthreads();
  }

  /// Keys and targets that are learned again lie in turn at one of two places.
  struct Places {
    int first_keys, other_keys, first_targets, other_targets;
    __device__ int keys(int turn) const { return turn == 0 ? first_keys : other_keys; }
    __device__ int targets(int turn) const { return turn == 0 ? first_targets : other_targets; }
  };
  __device__ void copy_to_learn(const Places& places, int turn, int m) const {
    copy_tile(places.keys(turn), task.k, m);
    copy_tile(places.targets(turn), task.target, m);
    copy_rates(m, floats + Shape::rates + (1 - turn) * C);
  }
  __device__ void read_checkpoint(FastWeights<F>& fast, int begin) const {
    fast.band = warp;
    fast.read(task.checkpoints + (begin / task.group * task.cells + cell()) * fast.size);
  }
  /// Of `count` mini-batches from `begin` on the weights that numbers `from` to `end` start from, into scratch
  /// from `kept` on. `fast` are those of number `from`, whose keys are under way to the first place.
  __device__ void learn_again(FastWeights<F>& fast, int begin, int count, int from, int end, int kept,
                              const Places& places) {
    for (int i = from; i < end; ++i) {
      const int turn = (i - from) % 2;
      fast.offer(tile(Shape::w), floats + Shape::bias);
      await_copies();
      sync();
      keep_weights(kept + i);
      if (i + 1 == count) break;
      if (i + 1 < end && i + 2 < count) {
        copy_to_learn(places, 1 - turn, begin + i + 1);
        commit_copies();  // await_copies waits for nothing else
      }
      LossPiece<P> loss;
      learn<true>(loss, places.keys(turn), places.targets(turn), floats + Shape::rates + (1 - turn) * C);
      sync();
      fast.template add<C>(tile(places.keys(turn)), tile(Shape::g), -floats[Shape::scale + C - 1]);
    }
    __threadfence();  // the copies that fetch them go past the first cache
    sync();
  }
  /// Gl, to its tile if `offers`, and what its way back needs.
  template <bool offers>
  __device__ void learn(LossPiece<P>& loss, int keys, int targets, const float* rates) const {
    float g[N / 8][4];
    learn_piece<F>(piece, norm, tile(keys), tile(targets), tile(Shape::w), floats + Shape::bias, rates,
                   task.eps, g, loss);
    if constexpr (offers) write_piece<T>(piece, tile(Shape::g), g);
  }
  __device__ void keep_weights(int i) const {
    uint4* kept = kept_weights(i);
#pragma unroll 4
    for (int at = thread; at < F * F / 8; at += threads)
      kept[at] = *reinterpret_cast<const uint4*>(ttt_memory + Shape::w + at * 16);
    if (thread < F) kept_bias(i)[thread] = floats[Shape::bias + thread];
  }

  /// Starts to copy what mini-batch m learns from, and its weights, number i of those kept.
  __device__ void fetch(int m, int i) const {
    copy_tile(Shape::k, task.k, m);
    copy_tile(Shape::target, task.target, m);
    copy_rates(m, floats + Shape::rates);
#pragma unroll 4
    for (int at = thread; at < F * F / 8; at += threads)
      copy_async(tile(Shape::w) + static_cast<std::uint32_t>(at * 16), kept_weights(i) + at, true);
    if (thread < F) copy_number(floats + Shape::bias + thread, kept_bias(i) + thread, true);
    commit_copies();
  }
  __device__ void fetch_queries(int m) const {
    copy_tile(Shape::q, task.q, m);
    copy_tile(Shape::dout, to.dout, m);
    commit_copies();
  }
  /// The factor of the mini-batch's update.
  __device__ float last_factor(int m) const {
    return task.tokens<C>(m) == C ? -floats[Shape::scale + C - 1] : 0;
  }

  /// Mini-batch m, whose weights are number i of those kept.
  __device__ void step(int m, int i) {
    fetch(m, i);
    fetch_queries(m);
    dw.offer(tile(Shape::dw), floats + Shape::dbias);
    await_copies_but<1>();
    sync();
    LossPiece<P> loss;
    learn<true>(loss, Shape::k, Shape::target, floats + Shape::rates);
    await_copies();
    sync();
    float dots[C / 8][4];  // 1 + A, 0 where masked
    answers(dots);
    sync();
    queries(m, dots);
    carried(m, loss);
  }
  /// What follows from dW' and db', and the next of them.
  __device__ void carried(int m, const LossPiece<P>& loss) {
    const float factor = last_factor(m);
    losses(m, factor, loss);
    sync();
    keys(m, factor);
    dw.template add<C>(tile(Shape::q), tile(Shape::dzbar), 1);
    dw.template add<C>(tile(Shape::k), tile(Shape::dz), 1);
    sync();
  }

  // The same by two blocks.

  /// The second block's share of it, left in `slot`; what is to be learned again comes meanwhile.
  __device__ void answer_step(int m, int i, int slot, const Places& places, int learned_next) {
    fetch(m, i);
    fetch_queries(m);
    if (learned_next >= 0) copy_to_learn(places, 0, learned_next);
    commit_copies();
    await_copies_but<2>();
    sync();
    {
      LossPiece<P> loss;
      learn<true>(loss, Shape::k, Shape::target, floats + Shape::rates);
    }
    await_copies_but<1>();
    sync();
    float dots[C / 8][4];
    answers(dots);
    sync();
    queries(m, dots);
    sync();
    uint4* given = given_in(slot);
    for (int at = thread; at < Shape::given; at += threads)
      given[at] = *reinterpret_cast<const uint4*>(ttt_memory + place_of_given(at));
  }
  /// The first block's.
  __device__ void carried_step(int m, int i, int slot) {
    fetch(m, i);
    copy_tile(Shape::q, task.q, m);
    const uint4* given = given_in(slot);
#pragma unroll 4
    for (int at = thread; at < Shape::given; at += threads)
      copy_async(tile(place_of_given(at)), given + at, true);
    commit_copies();
    dw.offer(tile(Shape::dw), floats + Shape::dbias);
    await_copies_but<1>();
    sync();
    LossPiece<P> loss;
    learn<false>(loss, Shape::k, Shape::target, floats + Shape::rates);
    await_copies();
    sync();
    carried(m, loss);
  }
  __device__ uint4* given_in(int slot) const { return to.given + (cell() * Index{2} + slot) * Shape::given; }
  __device__ static int place_of_given(int at) {
    return at < Shape::given_tiles ? Shape::g + at * 16 : Shape::p + (at - Shape::given_tiles) * 16;
  }
  __device__ int kept_from(int begin) const { return begin / task.group % 2 * task.group; }

  /// One step behind the second block.
  __device__ void carry_all() {
    meet();  // the last group's weights are there
    meet();
    for (int m = task.mini_batches - 1; m >= 0; --m) {
      const int begin = m / task.group * task.group;
      carried_step(m, kept_from(begin) + m - begin, m % 2);
      meet();
    }
  }
  __device__ void answer_all() {
    constexpr Places places{Shape::dz, Shape::k, Shape::dw, Shape::target};  // which it has no use for
    const int M = task.mini_batches, group = task.group, last = (M - 1) / group * group;
    FastWeights<F> fast;
    read_checkpoint(fast, last);
    if (last + 1 < M) copy_to_learn(places, 0, last);
    commit_copies();
    learn_again(fast, last, M - last, 0, M - last, kept_from(last), places);
    meet();
    for (int m = M - 1; m >= 0; --m) {
      // Of the group before the same share at each step but the first, in which the other block may still
      // read what that replaces. A single mini-batch is the scan's last: it replaces nothing.
      const int begin = m / group * group, count = min(group, M - begin), done = begin + count - 1 - m;
      int from = 0, end = 0;
      if (begin > 0 && count == 1) end = group;
      if (begin > 0 && done > 0) from = (done - 1) * group / (count - 1), end = done * group / (count - 1);
      const int before = begin - group;
      const bool to_learn = from < end && from + 1 < group;
      answer_step(m, kept_from(begin) + m - begin, m % 2, places, to_learn ? before + from : -1);
      if (from < end) {
        if (from == 0) read_checkpoint(fast, before);
        __syncthreads();  // W and Gl have been used
        learn_again(fast, before, group, from, end, kept_from(before), places);
      }
      meet();
    }
    meet();
  }

  /// A row block of C x C numbers, which all slices of its rows hold alike.
  __device__ void write_square(int offset, const float (&c)[C / 8][4]) const {
    if (piece.slice != 0) return;
    for_pairs<C>([&](int n, int half) {
      write_pair(
          Square::at(tile(offset), piece.row(half), n) + static_cast<std::uint32_t>(lane_of_warp() % 4 * 4),
          c[n][2 * half], c[n][2 * half + 1]);
    });
  }
  /// That square transposed as a left factor, and the steps of its sum that the mask leaves.
  __device__ ByColumns<Square> transposed(int offset) const { return {tile(offset), 0, 2 * diagonal}; }
  __device__ Steps after() const { return {diagonal, C / 16}; }

  /// Zbar again, and dZbar of it.
  __device__ void answers(float (&dots)[C / 8][4]) {
    float z[N / 8][4], rstd[2];
    {
      float p[C / 8][4];
      causal_dots<F>(piece, tile(Shape::q), tile(Shape::k), dots);
#pragma unroll
      for (int i = 0; i < C / 2; ++i) {
        if (!sees(piece, i / 4, i % 4)) dots[i / 4][i % 4] = 0;
        p[i / 4][i % 4] = -floats[Shape::scale + piece.row(i % 4 / 2)] * dots[i / 4][i % 4];
      }
      write_square(Shape::p, p);
      PackedPiece<C> packed;
      packed.pack(p);
      start_with_bias(piece, floats + Shape::bias, z);
      add_whole_product<F, N>(z, ByRows<T>{tile(Shape::q), piece.first_row, 0},
                              ByColumns<W>{tile(Shape::w), 0, piece.chunk()});
      add_product<C, N>(z, packed, ByColumns<T>{tile(Shape::g), 0, piece.chunk()}, {0, diagonal + 1});
    }
    piece.normalise(z, rstd, task.eps, 2);
    float d[N / 8][4], of_gamma[N / 8][2], of_beta[N / 8][2];
    read_piece(Shape::dout, d);
    norm_backward(piece, norm, rstd, z, d, of_gamma, of_beta, 3);
    add_answered(of_gamma, 0);
    add_answered(of_beta, 1);
    write_piece<T>(piece, tile(Shape::dzbar), d);
  }
  /// On to this lane's sums for gamma, number 0, or beta, number 1.
  __device__ void add_answered(float (&of)[N / 8][2], int number) const {
    ColumnSums<N> sums;
    sums.add(of);
#pragma unroll
    for (int i = 0; i < sums.kept; ++i) *answered(number, i) += sums.sum[i];
  }
  __device__ float* answered(int number, int i) const {
    return floats + Shape::answered + (number * ColumnSums<N>::kept + i) * threads + thread;
  }
  __device__ void read_piece(int offset, float (&c)[N / 8][4]) const {
    for_pairs<N>([&](int j, int half) {
      const float2 both = read_pair(piece.template pair_at<T>(tile(offset), j, half));
      c[j][2 * half] = both.x, c[j][2 * half + 1] = both.y;
    });
  }

  /// dA, dQ and the token scales.
  __device__ void queries(int m, const float (&dots)[C / 8][4]) {
    float da[C / 8][4];
    clear<C / 8>(da);
    add_product<F, C>(da, ByRows<T>{tile(Shape::dzbar), piece.first_row, 0}, ByRows<T>{tile(Shape::g), 0, 0},
                      {0, F / 16}, diagonal + 1);
#pragma unroll
    for (int i = 0; i < C / 2; ++i) {
      float& x = da[i / 4][i % 4];
      dscale[i % 4 / 2] -= dots[i / 4][i % 4] * x;  // a dot is 0 where masked
      x = sees(piece, i / 4, i % 4) ? -floats[Shape::scale + piece.row(i % 4 / 2)] * x : 0;
    }
    write_square(Shape::da, da);
    PackedPiece<C> packed;
    packed.pack(da);
    float dq[N / 8][4];
    read_piece(Shape::dout, dq);
    add_whole_product<F, N>(dq, ByRows<T>{tile(Shape::dzbar), piece.first_row, 0},
                            ByRows<W>{tile(Shape::w), piece.slice * N, 0});
    add_product<C, N>(dq, packed, ByColumns<T>{tile(Shape::k), 0, piece.chunk()}, {0, diagonal + 1});
    store(Shape::dout, dq, to.dq, m);  // each warp alone has read its part of dout
  }
  __device__ void store(int offset, const float (&c)[N / 8][4], bf16* out, int m) const {
    store_piece<T>(piece, tile(offset), c, out + first(m) * F, task.heads * F, task.tokens<C>(m));
  }

  /// dGl, dlr, dtarget, dZ.
  __device__ void losses(int m, float factor, const LossPiece<P>& loss) {
    float d[N / 8][4];
    start_with_bias(piece, floats + Shape::dbias, d);
    add_whole_product<F, N>(d, ByRows<T>{tile(Shape::k), piece.first_row, 0},
                            ByColumns<W>{tile(Shape::dw), 0, piece.chunk()});
    float last = 0;
    for_pairs<N>([&](int j, int half) {
      const float2 g = read_pair(piece.template pair_at<T>(tile(Shape::g), j, half));
      last += g.x * d[j][2 * half] + g.y * d[j][2 * half + 1];
      d[j][2 * half] *= factor, d[j][2 * half + 1] *= factor;
    });
    const int valid = task.tokens<C>(m);
    if (valid == C) dlast -= last;
    add_product<C, N>(d, transposed(Shape::p), ByColumns<T>{tile(Shape::dzbar), 0, piece.chunk()}, after());
    float dtarget[N / 8][4], of_gamma[N / 8][2], of_beta[N / 8][2], drate[2];
    loss_gradient_backward<T>(piece, norm, tile(Shape::target), loss.rstd, loss.rate, loss.means, loss.x, d,
                              dtarget, drate, of_gamma, 4);
    dgamma.add(of_gamma);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      of_beta[j][0] = -(dtarget[j][0] + dtarget[j][2]);
      of_beta[j][1] = -(dtarget[j][1] + dtarget[j][3]);
    }
    dbeta.add(of_beta);
    if (piece.slice == 0 && lane_of_warp() % 4 == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (piece.row(half) < valid) to.dlr[first(m) + piece.row(half) * task.heads] = drate[half];
      }
    }
    write_piece<T>(piece, tile(Shape::dz), d);
    store(Shape::target, dtarget, to.dtarget, m);
  }

  __device__ void keys(int m, float factor) const {
    float dk[N / 8][4];
    clear<N / 8>(dk);
    add_whole_product<F, N>(dk, ByRows<T>{tile(Shape::g), piece.first_row, 0},
                            ByRows<W>{tile(Shape::dw), piece.slice * N, 0});
#pragma unroll
    for (int i = 0; i < N / 2; ++i) dk[i / 4][i % 4] *= factor;
    add_product<C, N>(dk, transposed(Shape::da), ByColumns<T>{tile(Shape::q), 0, piece.chunk()}, after());
    add_whole_product<F, N>(dk, ByRows<T>{tile(Shape::dz), piece.first_row, 0},
                            ByRows<W>{tile(Shape::w), piece.slice * N, 0});
    store(Shape::dout, dk, to.dk, m);  // dQ has left it
  }

  /// Sums over all tokens, on to what is there: the answers' before the losses'.
  __device__ void finish_answers() const {
    ColumnSums<N> gamma, beta;
#pragma unroll
    for (int i = 0; i < gamma.kept; ++i) gamma.sum[i] = *answered(0, i), beta.sum[i] = *answered(1, i);
    add_columns(gamma, beta);
    auto* of_scale = reinterpret_cast<float*>(ttt_memory);
    float rows[2] = {dscale[0], dscale[1]};
    sum_quads(rows);
    if (piece.slice == 0 && lane_of_warp() % 4 == 0)
      of_scale[piece.row(0)] = rows[0], of_scale[piece.row(1)] = rows[1];
    __syncthreads();
    if (thread < C) to.dscale[cell() * C + thread] += of_scale[thread];
  }
  __device__ void finish_losses() const {
    add_columns(dgamma, dbeta);
    auto* of_last = reinterpret_cast<float*>(ttt_memory);
    float last[1] = {dlast};
    sum_quads(last);
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
      last[0] += __shfl_xor_sync(0xffffffffu, last[0], distance);
    if (lane_of_warp() == 0) of_last[warp] = last[0];
    __syncthreads();
    if (thread == C - 1) {
      float sum = 0;
      for (int i = 0; i < threads / 32; ++i) sum += of_last[i];
      to.dscale[cell() * C + thread] += sum;
    }
  }
  /// Leaves shared memory free.
  __device__ void add_columns(const ColumnSums<N>& gammas, const ColumnSums<N>& betas) const {
    __syncthreads();
    constexpr int blocks = C / 16;
    auto* of_gamma = reinterpret_cast<float*>(ttt_memory);
    float* of_beta = of_gamma + blocks * F;
    if (gammas.writes()) {
#pragma unroll
      for (int i = 0; i < gammas.kept; ++i) {
        const int at = diagonal * F + piece.slice * N + gammas.column(i);
        of_gamma[at] = gammas.sum[i], of_beta[at] = betas.sum[i];
      }
    }
    __syncthreads();
    if (thread < F) {
      float gamma = 0, beta = 0;
#pragma unroll
      for (int i = 0; i < blocks; ++i) gamma += of_gamma[i * F + thread], beta += of_beta[i * F + thread];
      to.dgamma[cell() * F + thread] += gamma;
      to.dbeta[cell() * F + thread] += beta;
    }
    __syncthreads();
  }
};

template <int F, int C, bool two>
__global__ void __launch_bounds__(TttLinearBackward<F, C>::threads, two ? 1 : TttLinearBackward<F, C>::blocks)
    ttt_linear_backward(TttLinearTask task, TttLinearGradients to) {
  start_next();
  await_inputs();
  using Shape = TttLinearBackward<F, C>;
  TttLinearBack<F, C, two> block{task, to};
  const Index head = task.head(static_cast<unsigned>(block.cell()));
  if (block.thread < F) {
    block.norm.set(block.thread, task.gamma[head * F + block.thread], task.beta[head * F + block.thread]);
  }
  if (block.thread < C) block.floats[Shape::scale + block.thread] = task.scale[block.thread];
  for (int i = 0; i < 2 * ColumnSums<Shape::P::N>::kept; ++i) *block.answered(0, i) = 0;
  __syncthreads();
  if (two && cluster_rank() == 1) {
    block.answer_all();
    block.finish_answers();
    meet();
    return;
  }
  float* dweights = to.dweights + block.cell() * FastWeights<F>::size;
  block.dw.band = block.warp;
  block.dw.read(dweights);
  if constexpr (two) {
    block.carry_all();
    meet();  // the answers' sums are there
  } else {
    constexpr
        typename TttLinearBack<F, C, two>::Places places{Shape::k, Shape::q, Shape::target, Shape::dout};
    for (int end = task.mini_batches; end > 0;) {
      const int first = (end - 1) / task.group * task.group;
      FastWeights<F> fast;
      block.read_checkpoint(fast, first);
      if (first + 1 < end) block.copy_to_learn(places, 0, first);
      commit_copies();
      block.learn_again(fast, first, end - first, 0, end - first, 0, places);
      for (int m = end - 1; m >= first; --m) block.step(m, m - first);
      end = first;
    }
    block.finish_answers();
  }
  block.dw.write(dweights);
  block.finish_losses();
}

/// Two blocks a head where that leaves no head without a multiprocessor. On an H200, one session of 64 heads of 64:
/// 2048 tokens in mini-batches of 64 0.37 ms (one block 0.52), of 16 0.66 (0.74); 32768 tokens, 64, 5.5 (8.4). One
/// session of 32 heads of 128, 2048 tokens: 0.59 (0.82), 0.97 (1.18).
template <int F, int C, class B, class Backward>
void ttt_linear_run_backward(B& be, const Launcher& launch, int capability, int processors,
                             const Backward& scan) {
  using Shape = TttLinearBackward<F, C>;
  const TttLinearTask task = ttt_linear_task(scan.scan);
  if (task.cells == 0) return;
  const bool two = compiled_for_clusters() && capability >= 90 && 2 * task.cells <= processors &&
                   task.group > 1 && task.mini_batches > 1;
  const auto scope = be.scope();
  const Index kept = two ? 2 * task.group : task.group;
  const auto weights = be.template make<uint4, dyn>(task.cells * kept * (F * F / 8));
  const auto biases = be.template make<float, dyn>(task.cells * kept * F);
  const auto given = be.template make<uint4, dyn>(two ? task.cells * 2 * Shape::given : 0);
  const TttLinearGradients to{scan.dout,     scan.dq,        scan.dk,       scan.dtarget,
                              scan.dlr,      scan.dscale,    scan.dgamma,   scan.dbeta,
                              scan.dweights, weights.data(), biases.data(), given.data()};
  const char* what = "starting a TTT-Linear scan backwards";
  const auto cells = static_cast<unsigned>(task.cells);
  if (two) {
    allow_shared(ttt_linear_backward<F, C, true>, Shape::shared);
    launch.in_clusters(what, ttt_linear_backward<F, C, true>, cells, 2, Shape::threads, Shape::shared, task,
                       to);
  } else {
    allow_shared(ttt_linear_backward<F, C, false>, Shape::shared);
    launch(what, ttt_linear_backward<F, C, false>, cells, Shape::threads, Shape::shared, task, to);
  }
}

}  // namespace mttt::detail
