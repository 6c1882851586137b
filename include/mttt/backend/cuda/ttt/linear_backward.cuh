// The scan of TTT-Linear backwards on tensor cores: one block a head of a session, groups of mini-batches in
// reverse.
//
// A group's weights are learned again from its checkpoint, and kept as operands of products (bf16 W, float32
// b) in scratch; then its mini-batches are gone through from the last to the first. The gradient of the fast
// weights stays in registers from the last mini-batch to the first. Each sum has one owner and one order: no
// atomics.
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

#include "mttt/backend/cuda/ttt/linear.cuh"

namespace mttt::detail {

/// What the pass reads and writes besides: TttBackward of ttt/dual.hpp, and scratch.
struct TttLinearGradients {
  const bf16* dout;
  bf16 *dq, *dk, *dtarget;
  float *dlr, *dscale, *dgamma, *dbeta, *dweights;
  uint4* weights;
  float* biases;
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
  static constexpr int shared = floats + 4 * (exchange + 6 * P::place_floats);
  static_assert(shared >= 4 * (C / 16 * F * 2 + C + threads / 32));  // what the last sums take
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

/// One block's work; the functions are its stages.
template <int F, int C>
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
  ColumnSums<N> dgamma, dbeta;
  float dscale[2] = {}, dlast = 0;  // a lane's shares

  Index start = task.first(),
        stride = C * task.heads;  // of this block's first token in (B, T, H), of a mini-batch

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
    return to.weights + (blockIdx.x * static_cast<Index>(task.group) + i) * (F * F / 8);
  }
  __device__ float* kept_bias(int i) const {
    return to.biases + (blockIdx.x * static_cast<Index>(task.group) + i) * F;
  }

  /// What threads have written or copied before may be read after it.
  __device__ void sync() const {
    offer_tiles<C>();
    __syncthreads();
  }

  /// The weights that mini-batches begin, begin + 1, ... start from, into scratch.
  __device__ void learn_again(int begin, int count) {
    FastWeights<F> fast;
    fast.band = warp;
    fast.read(task.checkpoints + (begin / task.group * task.cells + blockIdx.x) * fast.size);
    const auto copy =
        [&](int i) {  // keys and targets in turn where later keys and targets, queries and dout lie
          if (i + 1 >= count) return;
          copy_tile(i % 2 == 0 ? Shape::k : Shape::q, task.k, begin + i);
          copy_tile(i % 2 == 0 ? Shape::target : Shape::dout, task.target, begin + i);
          copy_rates(begin + i, floats + Shape::rates + i % 2 * C);
          commit_copies();  // await_copies waits for nothing else
        };
    copy(0);
    for (int i = 0; i < count; ++i) {
      fast.offer(tile(Shape::w), floats + Shape::bias);
      await_copies();
      sync();
      keep_weights(i);
      if (i + 1 == count) break;
      copy(i + 1);
      const int keys = i % 2 == 0 ? Shape::k : Shape::q, wanted = i % 2 == 0 ? Shape::target : Shape::dout;
      LossPiece<P> loss;
      float g[N / 8][4];
      learn_piece<F>(piece, norm, tile(keys), tile(wanted), tile(Shape::w), floats + Shape::bias,
                     floats + Shape::rates + i % 2 * C, task.eps, g, loss);
      write_piece<T>(piece, tile(Shape::g), g);
      sync();
      fast.template add<C>(tile(keys), tile(Shape::g), -floats[Shape::scale + C - 1]);
    }
    __threadfence();  // the copies that fetch them go past the first cache
    sync();
  }
  __device__ void keep_weights(int i) const {
    uint4* kept = kept_weights(i);
#pragma unroll 4
    for (int at = thread; at < F * F / 8; at += threads)
      kept[at] = *reinterpret_cast<const uint4*>(ttt_memory + Shape::w + at * 16);
    if (thread < F) kept_bias(i)[thread] = floats[Shape::bias + thread];
  }

  /// Mini-batch m, number i of its group.
  __device__ void step(int m, int i) {
    copy_tile(Shape::k, task.k, m);
    copy_tile(Shape::target, task.target, m);
    copy_rates(m, floats + Shape::rates);
#pragma unroll 4
    for (int at = thread; at < F * F / 8; at += threads)
      copy_async(tile(Shape::w) + static_cast<std::uint32_t>(at * 16), kept_weights(i) + at, true);
    if (thread < F) copy_number(floats + Shape::bias + thread, kept_bias(i) + thread, true);
    commit_copies();
    copy_tile(Shape::q, task.q, m);
    copy_tile(Shape::dout, to.dout, m);
    commit_copies();
    dw.offer(tile(Shape::dw), floats + Shape::dbias);
    await_copies_but<1>();
    sync();
    LossPiece<P> loss;
    {
      float g[N / 8][4];
      learn_piece<F>(piece, norm, tile(Shape::k), tile(Shape::target), tile(Shape::w), floats + Shape::bias,
                     floats + Shape::rates, task.eps, g, loss);
      write_piece<T>(piece, tile(Shape::g), g);
    }
    await_copies();
    sync();
    float dots[C / 8][4];  // 1 + A, 0 where masked
    answers(dots);
    sync();
    queries(m, dots);
    const float factor = task.tokens<C>(m) == C ? -floats[Shape::scale + C - 1] : 0;
    losses(m, factor, loss);
    sync();
    keys(m, factor);
    dw.template add<C>(tile(Shape::q), tile(Shape::dzbar), 1);
    dw.template add<C>(tile(Shape::k), tile(Shape::dz), 1);
    sync();
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
    dgamma.add(of_gamma);
    dbeta.add(of_beta);
    write_piece<T>(piece, tile(Shape::dzbar), d);
  }
  __device__ void read_piece(int offset, float (&c)[N / 8][4]) const {
    for_pairs<N>([&](int j, int half) {
      const float2 two = read_pair(piece.template pair_at<T>(tile(offset), j, half));
      c[j][2 * half] = two.x, c[j][2 * half + 1] = two.y;
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

  /// The sums over all tokens, on to what is there.
  __device__ void finish() const {
    __syncthreads();
    auto* sums = reinterpret_cast<float*>(ttt_memory);
    constexpr int blocks = C / 16;
    float *of_gamma = sums, *of_beta = sums + blocks * F, *of_scale = of_beta + blocks * F,
          *of_last = of_scale + C;
    if (dgamma.writes()) {
#pragma unroll
      for (int i = 0; i < dgamma.kept; ++i) {
        const int at = diagonal * F + piece.slice * N + dgamma.column(i);
        of_gamma[at] = dgamma.sum[i], of_beta[at] = dbeta.sum[i];
      }
    }
    float rows[3] = {dscale[0], dscale[1], dlast};
    sum_quads(rows);
    if (piece.slice == 0 && lane_of_warp() % 4 == 0)
      of_scale[piece.row(0)] = rows[0], of_scale[piece.row(1)] = rows[1];
    float last = rows[2];
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2) last += __shfl_xor_sync(0xffffffffu, last, distance);
    if (lane_of_warp() == 0) of_last[warp] = last;
    __syncthreads();
    const Index cell = blockIdx.x;
    if (thread < F) {
      float gamma = 0, beta = 0;
#pragma unroll
      for (int i = 0; i < blocks; ++i) gamma += of_gamma[i * F + thread], beta += of_beta[i * F + thread];
      to.dgamma[cell * F + thread] += gamma;
      to.dbeta[cell * F + thread] += beta;
    }
    if (thread < C) {
      float sum = of_scale[thread];
      if (thread == C - 1) {
        for (int i = 0; i < threads / 32; ++i) sum += of_last[i];
      }
      to.dscale[cell * C + thread] += sum;
    }
  }
};

template <int F, int C>
__global__ void __launch_bounds__(TttLinearBackward<F, C>::threads, TttLinearBackward<F, C>::blocks)
    ttt_linear_backward(TttLinearTask task, TttLinearGradients to) {
  start_next();
  await_inputs();
  using Shape = TttLinearBackward<F, C>;
  TttLinearBack<F, C> block{task, to};
  const Index head = task.head();
  if (block.thread < F) {
    block.norm.set(block.thread, task.gamma[head * F + block.thread], task.beta[head * F + block.thread]);
  }
  if (block.thread < C) block.floats[Shape::scale + block.thread] = task.scale[block.thread];
  __syncthreads();
  float* dweights = to.dweights + blockIdx.x * static_cast<Index>(FastWeights<F>::size);
  block.dw.band = block.warp;
  block.dw.read(dweights);
  for (int end = task.mini_batches; end > 0;) {
    const int first = (end - 1) / task.group * task.group;
    block.learn_again(first, end - first);
    for (int m = end - 1; m >= first; --m) block.step(m, m - first);
    end = first;
  }
  block.dw.write(dweights);
  block.finish();
}

template <int F, int C, class B, class Backward>
void ttt_linear_run_backward(B& be, const Launcher& launch, const Backward& scan) {
  using Shape = TttLinearBackward<F, C>;
  const TttLinearTask task = ttt_linear_task(scan.scan);
  if (task.cells == 0) return;
  const auto scope = be.scope();
  const Index kept = task.cells * task.group;
  const auto weights = be.template make<uint4, dyn>(kept * (F * F / 8));
  const auto biases = be.template make<float, dyn>(kept * F);
  const TttLinearGradients to{scan.dout,     scan.dq,        scan.dk,      scan.dtarget,
                              scan.dlr,      scan.dscale,    scan.dgamma,  scan.dbeta,
                              scan.dweights, weights.data(), biases.data()};
  allow_shared(ttt_linear_backward<F, C>, Shape::shared);
  launch("starting a TTT-Linear scan backwards", ttt_linear_backward<F, C>, static_cast<unsigned>(task.cells),
         Shape::threads, Shape::shared, task, to);
}

}  // namespace mttt::detail
