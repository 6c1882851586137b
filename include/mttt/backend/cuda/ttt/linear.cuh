// The scan of TTT-Linear on tensor cores: one block a head of a session, its fast weights in registers.
//
// A block has two halves. The first learns: K W, the gradients of the loss, and the next weights, which is
// the chain that every mini-batch waits for. The second fetches and answers beside it: products of queries
// and keys ahead, the rest as soon as the gradients are there. They meet at named barriers: `ready` when a
// mini-batch's keys and targets have come, `learned` when its gradients lie in shared memory, `answered` when
// they have been used.
//
// Formula: ttt/dual.hpp for one layer, with rates in the gradients, Gl = lr G:
//          Zbar = Q W + b + P Gl,  P[t, s] = -scale_t (1 + q_t . k_s) for s <= t;  W <- W - scale_C K^T Gl
// Shapes:  q, k, target, out (B, T, H F) in bf16; head width F 64 or 128; mini-batches of 16, 32 or 64
//          tokens; fast weights W (F, F) and b (F) in float32, the operands of products are rounded to bf16.
// Units:   strides in elements.
// Errors:  those of check.cuh.
// Not supported: other widths and mini-batches: fuses_ttt of cuda.cuh is false for them. GPUs that give a
//          block less than 218 KB of shared memory, at heads of 128 with mini-batches of 64.
// Source:  ttt/dual.hpp; warp specialisation as in FlashAttention-3 (Shah et al. 2024), section 3.1.
#pragma once

#include "mttt/backend/cuda/check.cuh"
#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/ttt/rows.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt::detail {

template <Index width, Index mini_batch>
inline constexpr bool ttt_linear_takes = (width == 64 || width == 128) &&
                                         (mini_batch == 16 || mini_batch == 32 || mini_batch == 64);

/// What both passes read: TttScan of ttt/dual.hpp.
struct TttLinearTask {
  const bf16 *q, *k, *target;
  const float *lr, *scale, *gamma, *beta;
  float* checkpoints;
  Index steps, heads, cells;  // a cell is a head of a session
  int mini_batches, group;
  float eps;

  template <int C>
  __device__ int tokens(int m) const {
    const Index left = steps - static_cast<Index>(m) * C;
    return left < C ? static_cast<int>(left) : C;
  }
  __device__ unsigned head(unsigned cell) const { return cell % static_cast<unsigned>(heads); }
  /// Offset of a cell's first token in (B, T, H). A division: to be asked once.
  __device__ Index first(unsigned cell) const {
    return cell / static_cast<unsigned>(heads) * steps * heads + head(cell);
  }
};

template <class Scan>
TttLinearTask ttt_linear_task(const Scan& s) {
  return {s.q,
          s.k,
          s.target,
          s.lr,
          s.scale,
          s.gamma,
          s.beta,
          s.checkpoints,
          s.steps,
          s.heads,
          s.batch * s.heads,
          static_cast<int>(s.mini_batches()),
          static_cast<int>(s.group),
          s.eps};
}

/// W and b of a head in the registers of F / 16 warps, a band of 16 rows each; of b a lane holds four columns
/// of the band's 16. Also their gradients.
template <int F>
struct FastWeights {
  static constexpr int size = (F + 1) * F;
  float w[F / 8][4], b[4];
  int band, lane = lane_of_warp();

  __device__ int at(int j, int half) const {
    return (16 * band + lane / 4 + 8 * half) * F + 8 * j + lane % 4 * 2;
  }
  __device__ int bias_at(int i) const { return 16 * band + lane % 4 * 2 + i / 2 * 8 + i % 2; }
  __device__ void read(const float* flat) {
    for_pairs<F>([&](int j, int half) {
      const float2 two = *reinterpret_cast<const float2*>(flat + at(j, half));
      w[j][2 * half] = two.x, w[j][2 * half + 1] = two.y;
    });
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = flat[F * F + bias_at(i)];
  }
  __device__ void write(float* flat) const {
    for_pairs<F>([&](int j, int half) {
      *reinterpret_cast<float2*>(flat + at(j, half)) = {w[j][2 * half], w[j][2 * half + 1]};
    });
    write_bias(flat + F * F);
  }
  __device__ void write_bias(float* bias) const {
    if (lane >= 4) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) bias[bias_at(i)] = b[i];
  }
  /// Rounded into a tile for products, and the bias as it is.
  __device__ void offer(std::uint32_t tile, float* bias) const {
    write_rows<Tile<F, F>, F>(tile, 16 * band, 0, lane, w);
    write_bias(bias);
  }
  __device__ void clear_all() {
    clear<F / 8>(w);
    b[0] = b[1] = b[2] = b[3] = 0;
  }
  /// W += factor X^T G, b += factor 1^T G; tiles of C rows. By an fma, so that a factor of 0 changes nothing.
  template <int C>
  __device__ void add(std::uint32_t x, std::uint32_t g, float factor) {
    using T = Tile<C, F>;
    float of_bias[2][4];
    clear<2>(of_bias);
#pragma unroll
    for (int part = 0; part < F / 64; ++part) {
      float sum[8][4];
      clear<8>(sum);
      if constexpr (in_groups<C>()) {
        start_group_product<C, true, true>(sum, x + band / 4 * C * 128, g + part * C * 128);
        if (part == 0) add_whole_product<C, 16>(of_bias, Ones{}, ByColumns<T>{g, 0, 2 * band});
        await_group_products(sum);
      } else {
        add_whole_product<C, 64>(sum, ByColumns<T>{x, 0, 2 * band}, ByColumns<T>{g, 0, 8 * part});
      }
      for_pairs<64>([&](int j, int half) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e)
          w[8 * part + j][e] = fmaf(factor, sum[j][e], w[8 * part + j][e]);
      });
    }
    if constexpr (!in_groups<C>()) {
      add_whole_product<C, 16>(of_bias, Ones{}, ByColumns<T>{g, 0, 2 * band});
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = fmaf(factor, of_bias[i / 2][i % 2], b[i]);
  }
};

/// c (16 x N) = the slice of `bias` in every row.
template <class P>
__device__ void start_with_bias(const P& piece, const float* bias, float (&c)[P::N / 8][4]) {
#pragma unroll
  for (int j = 0; j < P::N / 8; ++j) {
    const float2 two = *reinterpret_cast<const float2*>(bias + piece.column(j));
    c[j][0] = c[j][2] = two.x, c[j][1] = c[j][3] = two.y;
  }
}

/// What a piece keeps of the loss for the way back.
template <class P>
struct LossPiece {
  float x[P::N / 8][4], rstd[2], means[2][2], rate[2];
};

/// Gl of a piece; all tiles have been offered. Takes places 0 and 1.
template <int F, class P>
__device__ void learn_piece(const P& piece, const NormWeights& norm, std::uint32_t k, std::uint32_t target,
                            std::uint32_t w, const float* bias, const float* rates, float eps,
                            float (&g)[P::N / 8][4], LossPiece<P>& loss) {
  using T = Tile<P::R, F>;
  start_with_bias(piece, bias, loss.x);
  if constexpr (in_groups<P::R>()) {
    start_group_product<F, false, true>(loss.x, k, w + piece.slice * F * 128);
    await_group_products(loss.x);
  } else {
    add_whole_product<F, P::N>(loss.x, ByRows<T>{k, piece.first_row, 0},
                               ByColumns<Tile<F, F>>{w, 0, piece.chunk()});
  }
  loss.rate[0] = rates[piece.row(0)], loss.rate[1] = rates[piece.row(1)];
  piece.normalise(loss.x, loss.rstd, eps, 0);
  loss_gradient<T>(piece, norm, target, loss.rstd, loss.rate, loss.x, g, loss.means, 1);
}

/// Whether the query of element e of a piece's row block sees the key of its column.
template <class P>
__device__ bool sees(const P& piece, int n, int e) {
  return 8 * n + piece.lane % 4 * 2 + e % 2 <= piece.row(e / 2);
}

/// How a block's shared memory is laid out, in bytes from its start; float32 arrays last.
template <int F, int C>
struct TttLinearForward {
  using P = Piece<C, F, F / C>;
  static constexpr int half = 2 * F,
                       threads = 2 * half;  // half: threads of one role, 16 rows of weights a warp
  static constexpr int blocks = tuning::ttt_linear_blocks(F);
  // Keys and queries stay until the answer; targets and rates until the gradients, so one mini-batch less.
  // A slot is filled again only after `learned`: whoever reads what lay there has arrived at it. What fills a
  // slot is read only after `ready`, where copying threads arrive after their own wait, or, by these threads,
  // after the next `learned`.
  static constexpr int stages = C == 16 ? 4 : 3, target_stages = stages - 1;
  static constexpr int tile = Tile<C, F>::bytes, weights = Tile<F, F>::bytes;
  static constexpr int k = 0, q = k + stages * tile, target = q + stages * tile;
  static constexpr int g = target + target_stages * tile, w = g + tile, floats = w + 2 * weights;
  // In floats:
  static constexpr int bias = 0, norm = bias + 2 * F, scale = norm + 2 * F;
  static constexpr int rates = scale + C, exchange = rates + target_stages * C;
  static constexpr int shared = floats + 4 * (exchange + 3 * P::place_floats);
};

/// This thread's number, read anew: what one half of a block computes from it the compiler would else compute
/// for both, and keep in registers that neither has left.
__device__ inline int own_thread() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

/// The half that learns holds the weights besides, and takes registers that the other half gives. In all they
/// stay as many as __launch_bounds__ allows, 128 a thread.
template <int F, int C>
__device__ void take_registers(bool learns) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (in_groups<C>()) {
    if (learns) {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(tuning::ttt_linear_learning_registers(F)));
    } else {
      asm volatile(
          "setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(256 - tuning::ttt_linear_learning_registers(F)));
    }
  }
#endif
}

/// Where this warp stands in its half of a forward block.
template <int F, int C>
struct TttLinearHalf {
  using Shape = TttLinearForward<F, C>;
  std::uint32_t memory = shared_address(ttt_memory);
  float* floats = reinterpret_cast<float*>(ttt_memory + Shape::floats);
  int thread = own_thread() % Shape::half, warp = thread / 32;
  NormWeights norm{floats + Shape::norm};

  __device__ typename Shape::P piece(int barrier, int place) const {
    return {16 * (warp % (C / 16)),
            warp / (C / 16),
            floats + Shape::exchange + place * Shape::P::place_floats,
            {barrier, Shape::half},
            thread % 32};
  }
  __device__ std::uint32_t k(int m) const { return memory + Shape::k + m % Shape::stages * Shape::tile; }
  __device__ std::uint32_t q(int m) const { return memory + Shape::q + m % Shape::stages * Shape::tile; }
  __device__ std::uint32_t target(int m) const {
    return memory + Shape::target + m % Shape::target_stages * Shape::tile;
  }
  __device__ std::uint32_t g() const { return memory + Shape::g; }
  __device__ std::uint32_t w(int m) const { return memory + Shape::w + m % 2 * Shape::weights; }
  __device__ float* bias(int m) const { return floats + Shape::bias + m % 2 * F; }
  __device__ float* rates(int m) const { return floats + Shape::rates + m % Shape::target_stages * C; }
  __device__ static NamedBarrier learned() { return {3, Shape::threads}; }
  __device__ static NamedBarrier answered() { return {4, Shape::threads}; }
  __device__ static NamedBarrier ready(int m) { return {5 + m % 2, Shape::threads}; }
};

template <int F, int C>
__device__ void ttt_linear_learn(const TttLinearTask& task, float* weights, float* gradients) {
  using Shape = TttLinearForward<F, C>;
  const TttLinearHalf<F, C> half;
  const auto piece = half.piece(1, 0);
  const int M = task.mini_batches;
  FastWeights<F> fast;
  fast.band = half.warp, fast.lane = half.thread % 32;
  fast.read(weights);
  fast.offer(half.w(0), half.bias(0));
  offer_tiles<C>();
  const float factor = -half.floats[Shape::scale + C - 1];
  const bool whole = task.tokens<C>(M - 1) == C;  // the last mini-batch
  float* checkpoint = task.checkpoints + blockIdx.x * static_cast<Index>(fast.size);
  int until_checkpoint = task.checkpoints == nullptr ? M : 0;

  for (int m = 0; m < M; ++m, --until_checkpoint) {
    half.ready(m).sync();  // this mini-batch's tiles and weights are here
    if (until_checkpoint == 0) {
      fast.write(checkpoint);
      checkpoint += task.cells * fast.size;
      until_checkpoint = task.group;
    }
    LossPiece<typename Shape::P> loss;
    float g[C / 8][4];
    learn_piece<F>(piece, half.norm, half.k(m), half.target(m), half.w(m), half.bias(m), half.rates(m),
                   task.eps, g, loss);
    if (m > 0) half.answered().sync();
    write_piece<Tile<C, F>>(piece, half.g(), g);
    offer_tiles<C>();
    half.learned().arrive();
    piece.barrier.sync();
    if (m + 1 < M || whole) fast.template add<C>(half.k(m), half.g(), factor);
    fast.offer(half.w(m + 1), half.bias(m + 1));
    offer_tiles<C>();
  }
  fast.write(weights);
  if (gradients == nullptr) return;
  fast.clear_all();
  if (M > 0 && !whole) fast.template add<C>(half.k(M - 1), half.g(), 1);
  fast.write(gradients);
}

/// Starts to copy what a block reads of a mini-batch, by the threads that answer.
template <int F, int C>
__device__ void ttt_linear_copy(const TttLinearTask& task, const TttLinearHalf<F, C>& half, int m,
                                Index first) {
  using Shape = TttLinearForward<F, C>;
  if (m < task.mini_batches) {
    const Index step = task.heads * F;
    const int valid = task.tokens<C>(m);
    copy_rows<C, F, Shape::half>(half.k(m), task.k + first * F, step, valid, half.thread);
    copy_rows<C, F, Shape::half>(half.q(m), task.q + first * F, step, valid, half.thread);
    copy_rows<C, F, Shape::half>(half.target(m), task.target + first * F, step, valid, half.thread);
    if (half.thread < C) {
      const bool in = half.thread < valid;
      copy_number(half.rates(m) + half.thread, task.lr + first + (in ? half.thread * task.heads : 0), in);
    }
  }
  commit_copies();
}

template <int F, int C>
__device__ void ttt_linear_answer(const TttLinearTask& task, bf16* out) {
  using Shape = TttLinearForward<F, C>;
  using P = typename Shape::P;
  using T = Tile<C, F>;
  const TttLinearHalf<F, C> half;
  const P piece = half.piece(2, 2);
  const int M = task.mini_batches;
  if (M == 0) return;
  const Index stride = C * task.heads;  // of a mini-batch in (B, T, H)
  Index first = task.first(blockIdx.x);
#pragma unroll
  for (int m = 0; m < Shape::stages - 1; ++m) ttt_linear_copy<F, C>(task, half, m, first + m * stride);
  const float scale[2] = {half.floats[Shape::scale + piece.row(0)], half.floats[Shape::scale + piece.row(1)]};
  await_copies_but<Shape::stages - 2>();
  offer_tiles<C>();
  half.ready(0).arrive();
  piece.barrier.sync();

  for (int m = 0; m < M; ++m, first += stride) {
    const ByRows<T> query{half.q(m), piece.first_row, 0};
    PackedPiece<C> p;
    {
      float dots[C / 8][4];
#pragma unroll
      for (int i = 0; i < C / 2; ++i) dots[i / 4][i % 4] = 1;
      if constexpr (in_groups<C>()) {
        start_group_product<F, false, false>(dots, half.q(m), half.k(m));
        await_group_products(dots);
      } else {
        add_whole_product<F, C>(dots, query, ByRows<T>{half.k(m), 0, 0});
      }
#pragma unroll
      for (int i = 0; i < C / 2; ++i)
        dots[i / 4][i % 4] = sees(piece, i / 4, i % 4) ? -scale[i % 4 / 2] * dots[i / 4][i % 4] : 0;
      p.pack(dots);
    }
    float z[P::N / 8][4], rstd[2];
    await_copies_but<Shape::stages - 3>();  // of m + 1, under way since the last z
    offer_tiles<C>();
    if (m + 1 < M) half.ready(m + 1).arrive();
    half.learned().sync();  // hence the weights that these gradients were taken at are here as well
    const auto copy_next = [&] {
      ttt_linear_copy<F, C>(task, half, m + Shape::stages - 1, first + (Shape::stages - 1) * stride);
    };
    start_with_bias(piece, half.bias(m), z);
    if constexpr (in_groups<C>()) {
      start_group_product<F, false, true>(z, half.q(m), half.w(m) + piece.slice * F * 128);
      start_group_product(z, p, half.g() + piece.slice * C * 128);
      copy_next();
      await_group_products(z);
    } else {
      add_whole_product<F, P::N>(z, query, ByColumns<Tile<F, F>>{half.w(m), 0, piece.chunk()});
      add_whole_product<C, P::N>(z, p, ByColumns<T>{half.g(), 0, piece.chunk()});
    }
    if (m + 1 < M) half.answered().arrive();
    if constexpr (!in_groups<C>()) copy_next();
    piece.normalise(z, rstd, task.eps, 0);
    for_pairs_of<T>(piece, half.q(m), [&](int j, int of, float2 asked) {
      const float4 norms = half.norm.both(piece.column(j));
      z[j][2 * of] = asked.x + (norms.x * z[j][2 * of] + norms.z);
      z[j][2 * of + 1] = asked.y + (norms.y * z[j][2 * of + 1] + norms.w);
    });
    store_piece<T>(piece, half.q(m), z, out + first * F, task.heads * F, task.tokens<C>(m));
  }
}

template <int F, int C>
__global__ void __launch_bounds__(TttLinearForward<F, C>::threads, TttLinearForward<F, C>::blocks)
    ttt_linear_forward(TttLinearTask task, float* weights, float* gradients, bf16* out) {
  using Shape = TttLinearForward<F, C>;
  start_next();
  await_inputs();
  float* floats = reinterpret_cast<float*>(ttt_memory + Shape::floats);
  const Index head = task.head(blockIdx.x), at = blockIdx.x * static_cast<Index>(FastWeights<F>::size);
  for (int i = threadIdx.x; i < F; i += Shape::threads) {
    NormWeights{floats + Shape::norm}.set(i, task.gamma[head * F + i], task.beta[head * F + i]);
  }
  for (int i = threadIdx.x; i < C; i += Shape::threads) floats[Shape::scale + i] = task.scale[i];
  __syncthreads();
  if (threadIdx.x < Shape::half) {
    take_registers<F, C>(true);
    ttt_linear_learn<F, C>(task, weights + at, gradients == nullptr ? nullptr : gradients + at);
  } else {
    take_registers<F, C>(false);
    ttt_linear_answer<F, C>(task, out);
  }
}

template <class Kernel>
void allow_shared(Kernel kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "asking for shared memory");
}

template <int F, int C, class Forward>
void ttt_linear_run_forward(const Launcher& launch, const Forward& scan) {
  using Shape = TttLinearForward<F, C>;
  const TttLinearTask task = ttt_linear_task(scan.scan);
  if (task.cells == 0) return;
  allow_shared(ttt_linear_forward<F, C>, Shape::shared);
  launch("starting a TTT-Linear scan", ttt_linear_forward<F, C>, static_cast<unsigned>(task.cells),
         Shape::threads, Shape::shared, task, scan.weights, scan.gradients, scan.out);
}

}  // namespace mttt::detail
