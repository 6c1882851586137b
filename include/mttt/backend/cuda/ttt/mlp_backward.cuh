// TTT-MLP on Hopper: the scan of a head's two-layer inner model in one kernel, backward.
//
// A head is the work of a cluster of blocks as in mlp.cuh, and the gradients of the weights take the
// place of the weights in registers. Groups of mini-batches are taken last first: from the group's checkpoint
// the weights that each of its mini-batches started from are computed again and kept in scratch memory, as
// the bf16 tiles that products read; then its mini-batches go backwards. Planes that are needed again are
// mostly computed again: a product of a tile is cheaper than room for its result.
//
// Formula: the reverse of mlp.cuh's, where rates are in the gradients: with dO, dW' and db' given,
//            U_l = X_l dW_l' + db_l',  dGl_l = -scale_C U_l,  dX_l = -scale_C Gl_l dW_l'^T     if whole
//            dZbar_2 from LN;  then for l = 2, 1:  dP = dZbar_l Gl_l^T,  dA = -scale_t dP  for s <= t
//            dXbar_l = dZbar_l W_l^T + dA X_l,  dX_l += dA^T Xbar_l,  dGl_l += P^T dZbar_l,
//            dW_l = dW_l' + Xbar_l^T dZbar_l,   dZbar_1 = dXbar_2 gelu'(Zbar_1),  dQ = dO + dXbar_1
//            Gl_1 = H gelu'(Z_1), H = Gl_2 W_2^T:  dH = dGl_1 gelu'(Z_1),  dZ_1 = dGl_1 H gelu''(Z_1),
//            dGl_2 += dH W_2,  dW_2 += dH^T Gl_2,  Gl_2 = lr G_2:  dlr = G_2 . dGl_2,  dZ_2 from lr dGl_2
//            dX_2 += dZ_2 W_2^T,  dW_2 += X_2^T dZ_2,  dZ_1 += dX_2 gelu'(Z_1),  dX_1 += dZ_1 W_1^T, ...
//            dscale_t -= sum of (1 + A) dP over s, of both layers;  dscale_C -= Gl_l . U_l
//          Sums over the hidden width meet four times: Z_2, Zbar_2, dGl_2, and dQ with dK. Scores of the
//          second layer and dP of the first are parts of such sums, but what they lead to is linear in them.
// Shapes, units, errors: those of mlp.cuh.
// Not supported: what mlp.cuh does not.
// Source:  ttt/dual.hpp, TttBackward.
#pragma once

#include "mttt/backend/cuda/ttt/mlp.cuh"

namespace mttt::detail::mlp {

template <int F, int hidden, int C>
struct BackwardBlock : MlpBlock<F, hidden, C, tuning::ttt_mlp_backward_warps(C)> {
  using Base = MlpBlock<F, hidden, C, tuning::ttt_mlp_backward_warps(C)>;
  using Base::H, Base::stride, Base::threads, Base::warps, Base::NC, Base::NH, Base::NF;
  using typename Base::Hidden, typename Base::Width, typename Base::Square, typename Base::Weights,
      typename Base::Biases, typename Base::Rows;
  static constexpr int slots = C / Base::template columns<C>;  // parts of a row of P

  Factor<C, F> k, q, dz2;  // dz2: first dZbar_2, then dZ_2
  Factor<F, H> dw1;
  Factor<H, F> dw2;
  Factor<C, H> dzbar1;
  Factor<C, 64> p1, da;
  float *dq, *rates, *db1, *db2, *dscale, *last_sums;  // dq lies where p1 and the tiles of dW do

  __device__ BackwardBlock() {
    unsigned char* memory = this->place(memory_of_block);
    // After the floats of `place`, whose bytes are a multiple of 256: tiles want 1024.
    memory += (1024 - Base::placed % 1024) % 1024;
    Base::take(memory, k), Base::take(memory, q), Base::take(memory, dz2);
    dq = reinterpret_cast<float*>(memory);
    Base::take(memory, p1), Base::take(memory, dw1), Base::take(memory, dw2);
    Base::take(memory, dzbar1), Base::take(memory, da);
    Base::take(memory, rates, C), Base::take(memory, db1, H), Base::take(memory, db2, F);
    Base::take(memory, dscale, slots * C), Base::take(memory, last_sums, warps);
  }
  static_assert(C * stride * 4 <= C * 128 + 2 * F * H * 2, "dq lies where p1 and the tiles of dW do");
  static_assert(warps * 2 * F <= C * stride && 2 * F + C <= C * stride, "the last sums take part and dq");
  static constexpr int shared = (Base::placed + 1023) / 1024 * 1024 + 3 * C * F * 2 + 2 * F * H * 2 +
                                C * H * 2 + 2 * C * 128 + (C + H + F + slots * C + warps) * 4;

  /// X2, G2 and G1 of a mini-batch, and for the row of this thread Z2 in normal form and 1 / its deviation.
  /// Begins after a barrier of the cluster, and ends with one.
  __device__ void descend(const Rows& rows, const std::uint32_t (&target)[Rows::count / 2], float eps,
                          float (&x)[Rows::count], float& rstd) const {
#if __CUDA_ARCH__ >= 900
    if (this->has_hidden()) {
      Hidden z;
      this->first_layer(z, k);
      each(z, [](int, float& x) { x = FastGelu(x).f(); });
      put(z, this->x2, this->row, this->hidden_column);
    }
    __syncthreads();
    if (this->has_width()) {
      Width y;
      this->second_layer(y, this->x2);
      this->put_plane(y, this->part);
    }
    meet();
    if (rows.active()) {
      float g[Rows::count];
      rows.template gather<Base::blocks>(x, this->part, this->row_of(rows));
      rstd = rows.loss_gradient(g, x, target, this->gamma, this->beta, eps);
      const float rate = rates[this->row_of(rows)];
#pragma unroll
      for (int i = 0; i < Rows::count; ++i) g[i] *= rate;
      this->put_rows(rows, this->g2, g);
    }
    Base::meet_over_rows();
    if (this->has_hidden()) {
      Hidden g, z;
      gradients_before_gelu(g);
      this->first_layer(z, k);
      each(g, [&](int i, float& x) { x *= FastGelu(number(z, i)).df(); });
      put(g, this->g1, this->row, this->hidden_column);
    }
    meet();
#endif
  }
  /// H = Gl_2 W_2^T
  __device__ void gradients_before_gelu(Hidden& h) const {
    clear(h);
    accumulate<F>(h, this->g2, this->w2.t(), this->row, this->hidden_column);
  }
  /// Zbar_1
  __device__ void queried(Hidden& z) const {
    this->first_layer(z, q);
    accumulate<C>(z, p1, this->g1, this->row, this->hidden_column, 0, this->row + 16);
  }
  /// From dP, in `d`, and one + A: to dA, and to the scales.
  __device__ void scores_back(Square& d, const Square& dots) const {
    float sum[2] = {};
    pairs(d, this->row, this->square_column, [&](float& a, float& b, int t, int s) {
      if (s > t) a = 0;
      if (s + 1 > t) b = 0;
    });
#pragma unroll
    for (int j = 0; j < NC; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e / 2] += d[j][e] * dots[j][e];
    }
    const int lane = static_cast<int>(lane_again() % 32);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
      float* to = dscale + this->square_column / (8 * NC) * C + this->row + 8 * half + lane / 4;
      if (lane % 4 == 0) *to -= sum[half];
    }
    this->put_scaled(d, da);
  }
  /// sum of Gl o U, and U becomes -scale_C U.
  template <int N, int D>
  __device__ float carried(float (&u)[N][4], Factor<C, D> g, int column, float last_scale) const {
    float sum = 0;
    pairs(u, this->row, column, [&](float& a, float& b, int r, int c) {
      const float2 both = read_pair(g.pair(r, c));
      sum += both.x * a + both.y * b;
      a *= -last_scale, b *= -last_scale;
    });
    return sum;
  }
  /// dw += x^T g, db += 1^T g
  template <class X, int R, int D>
  __device__ static void add_gradients(Weights& dw, float* db, X x, Factor<R, D> g, int m, int n) {
    Biases sums;
    Base::gather_gradients(dw, sums, x, g, m, n);
    Base::template each_bias<D>(sums, [&](float sum, int c) { db[c] += sum; });
  }
};

/// Bytes of what a block keeps of a mini-batch's first weights: their tiles, and the biases.
template <int F, int hidden, int C>
inline constexpr Index image_bytes = 4 * F* BackwardBlock<F, hidden, C>::H +
                                     4 * (BackwardBlock<F, hidden, C>::H + F);
inline constexpr int images = 16;  // mini-batches of a group at most

template <int F, int hidden, int C, class Job>
__global__ void __launch_bounds__(32 * tuning::ttt_mlp_backward_warps(C), 1)
    backward_kernel(Job job, Round round, unsigned char* scratch) {
#if __CUDA_ARCH__ >= 900
  using Block = BackwardBlock<F, hidden, C>;
  constexpr int blocks = Block::blocks, H = Block::H, own = Block::own_rows, threads = Block::threads;
  const auto& scan = job.scan;
  const Block block;
  start_next();
  await_inputs();

  const typename Block::Rows rows;
  const RowLanes<own, F, threads> own_rows;
  using OwnRows = RowLanes<own, F, threads>;
  constexpr int count = Block::Rows::count;
  const RowBackward<typename Block::Rows> back{rows, block.gamma, block.beta};
  const int answer = block.rank * own + own_rows.row, thread = static_cast<int>(threadIdx.x);
  const int token = block.row_of(rows);         // of a mini-batch
  const bool mine = token / own == block.rank;  // of rows that all blocks compute, those that this one writes
  const Index step = scan.heads * F, group = scan.group, mini_batches = (scan.steps + C - 1) / C;
  unsigned char* const mine_of_scratch = scratch + blockIdx.x * images * image_bytes<F, hidden, C>;

  const Index heads = scan.batch * scan.heads;
  for (Index task = round.first + blockIdx.x / blocks; task < round.end; task += gridDim.x / blocks) {
    const Index head = round.by_groups ? task % heads : task;
    const HeadRows tokens(scan, head);
    float* const dweights = job.dweights + head * Block::size;
    typename Block::Weights dw1, dw2;
    block.load_weights(dweights, dw1, dw2);
    for (int i = thread; i < H; i += threads) block.db1[i] = dweights[block.bias1(i)];
    for (int i = thread; i < F; i += threads) {
      block.db2[i] = dweights[block.bias2(i)];
      block.gamma[i] = scan.gamma[head % scan.heads * F + i];
      block.beta[i] = scan.beta[head % scan.heads * F + i];
    }
    for (int i = thread; i < C; i += threads) block.scale[i] = scan.scale[i];

    const Index last_group = (mini_batches - 1) / group - (round.by_groups ? task / heads : 0),
                first_group = round.by_groups ? last_group : 0;
    for (Index first = last_group * group; first >= first_group * group; first -= group) {
      const Index end = first + group < mini_batches ? first + group : mini_batches;
      for (int i = thread; i < Block::slots * C; i += threads) block.dscale[i] = 0;
      float of_gamma[count] = {}, of_beta[count] = {};  // this thread's shares
      float dlast = 0;                                  // and of scale_C's part in the updates
      {                                                 // The weights of the group's mini-batches.
        typename Block::Weights w1, w2;
        const float* from = scan.checkpoint(first / group, head);
        block.load_biases(from);
        block.load_weights(from, w1, w2);
        put(w1, block.w1, block.row1, block.column1);
        put(w2, block.w2, block.row2, block.column2);
        for (Index m = first;; ++m) {
          __syncthreads();
          unsigned char* image = mine_of_scratch + (m - first) * image_bytes<F, hidden, C>;
          for (int i = thread; i < F * H / 4; i += threads) {  // both tiles, 16 bytes at a time
            uint4 eight;
            asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                         : "r"(block.w1.at + i * 16)
                         : "memory");
            reinterpret_cast<uint4*>(image)[i] = eight;
          }
          float* biases = reinterpret_cast<float*>(image + 4 * F * H);
          for (int i = thread; i < H; i += threads) biases[i] = block.b1[i];
          for (int i = thread; i < F; i += threads) biases[H + i] = block.b2[i];
          if (m + 1 == end) break;

          const Index row = tokens.at(m * C);
          Block::load(block.k, scan.k + row * F, step, C);
          Block::load_rates(block.rates, scan.lr + row, scan.heads, C);
          commit_copies();
          std::uint32_t target[count / 2];
          rows.load(target, scan.target + (row + token * scan.heads) * F, rows.active());
          await_copies();
          __syncthreads();
          float x[count], rstd;
          block.descend(rows, target, scan.eps, x, rstd);
          typename Block::Weights learned;
          typename Block::Biases learned_bias;
          clear(learned);
          Block::gather_gradients(learned, learned_bias, block.k, block.g1, block.row1, block.column1);
          Block::update(w1, learned, learned_bias, -block.scale[C - 1], block.w1, block.b1, block.row1,
                        block.column1);
          clear(learned);
          Block::gather_gradients(learned, learned_bias, block.x2, block.g2, block.row2, block.column2);
          Block::update(w2, learned, learned_bias, -block.scale[C - 1], block.w2, block.b2, block.row2,
                        block.column2);
        }
        __syncthreads();
      }

      for (Index m = end - 1; m >= first; --m) {
        const int n = m * C + C <= scan.steps ? C : static_cast<int>(scan.steps - m * C);
        const float last_scale = block.scale[C - 1];
        // The mini-batch again.
        const Index row = tokens.at(m * C), of_row = row + token * scan.heads;
        Block::load(block.k, scan.k + row * F, step, n);
        Block::load(block.q, scan.q + row * F, step, n);
        Block::load_rates(block.rates, scan.lr + row, scan.heads, n);
        const unsigned char* image = mine_of_scratch + (m - first) * image_bytes<F, hidden, C>;
        for (int i = thread; i < F * H / 4; i += threads)
          copy_async(block.w1.at + i * 16, image + i * 16, true);
        commit_copies();
        const float* biases = reinterpret_cast<const float*>(image + 4 * F * H);
        for (int i = thread; i < H; i += threads) block.b1[i] = biases[i];
        for (int i = thread; i < F; i += threads) block.b2[i] = biases[H + i];
        put(dw1, block.dw1, block.row1, block.column1);
        put(dw2, block.dw2, block.row2, block.column2);
        std::uint32_t target[count / 2];
        const bool valid = rows.active() && token < n;
        const auto read_target = [&] { rows.load(target, scan.target + of_row * F, valid); };
        read_target();
        await_copies();
        __syncthreads();
        float x[count], rstd;
        block.descend(rows, target, scan.eps, x, rstd);
        if (block.has_square()) {
          typename Block::Square dots;
          block.template causal<F>(dots, block.q, block.k, 1);
          block.put_scaled(dots, block.p1);
        }
        __syncthreads();
        if (block.has_hidden()) {
          typename Block::Hidden z;
          block.queried(z);
          each(z, [](int, float& x) { x = FastGelu(x).f(); });
          put(z, block.xbar, block.row, block.hidden_column);
        }
        __syncthreads();
        typename Block::Square dots;  // of the second layer: what this block has of one + A
        if (block.has_square()) {
          block.template causal<H>(dots, block.xbar, block.x2, block.rank == 0 ? 1 : 0);
          block.put_scaled(dots, block.p);
        }
        __syncthreads();
        if (block.has_width()) {
          typename Block::Width y;
          block.second_layer(y, block.xbar);
          accumulate<C>(y, block.p, block.g2, block.row, block.width_column, 0, block.row + 16);
          block.put_plane(y, block.part);
        }
        meet();

        // 1. From dO to dZbar_2.
        if (rows.active()) {
          float y[count], d[count];
          std::uint32_t raw[count / 2];
          rows.load(raw, job.dout + of_row * F, valid);
          rows.template gather<blocks>(y, block.part, token);
          const float deviation = rows.normalise(y, scan.eps);
#pragma unroll
          for (int i = 0; i < count; ++i) d[i] = rows.at(raw, i);
          back.norm(d, y, deviation, of_gamma, of_beta);
          block.put_rows(rows, block.dz2, d);
        }
        meet();
        // 2. The second layer of the queries, and of the update.
        if (block.has_square()) {
          typename Block::Square d;
          clear(d);
          if (block.square_column <= block.row)
            accumulate<F>(d, block.dz2, block.g2.t(), block.row, block.square_column);
          block.scores_back(d, dots);
        }
        __syncthreads();
        typename Block::Hidden dx2;
        typename Block::Width dgl2;
        clear(dx2), clear(dgl2);
        if (block.has_hidden()) {
          {
            typename Block::Hidden d, z;
            clear(d);
            accumulate<F>(d, block.dz2, block.w2.t(), block.row, block.hidden_column);
            accumulate<C>(d, block.da, block.x2, block.row, block.hidden_column, 0, block.row + 16);
            block.queried(z);
            each(d, [&](int i, float& x) { x *= FastGelu(number(z, i)).df(); });
            put(d, block.dzbar1, block.row, block.hidden_column);
          }
          if (n == C) {
            accumulate<F>(dx2, block.g2, block.dw2.t(), block.row, block.hidden_column);
            each(dx2, [&](int, float& x) { x *= -last_scale; });
          }
          accumulate<C>(dx2, block.da.t(), block.xbar, block.row, block.hidden_column, block.row);
        }
        if (block.has_width()) {
          if (n == C) {
            if (block.rank == 0) {
              pairs(dgl2, block.row, block.width_column,
                    [&](float& a, float& b, int, int c) { a = block.db2[c], b = block.db2[c + 1]; });
            }
            accumulate<H>(dgl2, block.x2, block.dw2, block.row, block.width_column);
            dlast -= block.carried(dgl2, block.g2, block.width_column, last_scale);
          }
          accumulate<C>(dgl2, block.p.t(), block.dz2, block.row, block.width_column, block.row);
        }
        __syncthreads();
        Block::add_gradients(dw2, block.db2, block.xbar, block.dz2, block.row2, block.column2);
        // 3. The first layer of both.
        if (block.has_square()) {
          typename Block::Square d;
          clear(d);
          if (block.square_column <= block.row)
            accumulate<H>(d, block.dzbar1, block.g1.t(), block.row, block.square_column);
          block.template causal<F>(dots, block.q, block.k, 1);
          block.scores_back(d, dots);
        }
        __syncthreads();
        typename Block::Width dk;
        clear(dk);
        if (block.has_width()) {
          if (n == C) {
            accumulate<H>(dk, block.g1, block.dw1.t(), block.row, block.width_column);
            each(dk, [&](int, float& x) { x *= -last_scale; });
          }
          accumulate<C>(dk, block.da.t(), block.q, block.row, block.width_column, block.row);
        }
        typename Block::Hidden dz1;
        if (block.has_hidden()) {
          typename Block::Hidden d, z;
          clear(d);
          if (n == C) {
            pairs(d, block.row, block.hidden_column,
                  [&](float& a, float& b, int, int c) { a = block.db1[c], b = block.db1[c + 1]; });
            accumulate<F>(d, block.k, block.dw1, block.row, block.hidden_column);
            dlast -= block.carried(d, block.g1, block.hidden_column, last_scale);
          }
          accumulate<C>(d, block.p1.t(), block.dzbar1, block.row, block.hidden_column, block.row);
          // Gl_1 = H gelu'(Z_1)
          block.first_layer(z, block.k);
          block.gradients_before_gelu(dz1);
          each(d, [&](int i, float& g) {
            const FastGelu gelu(number(z, i));
            number(dz1, i) *= g * gelu.ddf();
            g *= gelu.df();
          });
          put(d, block.xbar, block.row, block.hidden_column);  // dH, where Xbar_2 has served
        }
        __syncthreads();
        if (block.has_width()) {
          accumulate<H>(dgl2, block.xbar, block.w2, block.row, block.width_column);
          block.put_plane(dgl2, block.part);
        }
        accumulate<C>(dw2, block.xbar.t(), block.g2, block.row2, block.column2);
        Block::add_gradients(dw1, block.db1, block.q, block.dzbar1, block.row1, block.column1);
        meet();
        // 4. The gradient of the inner loss, and the keys' layers.
        if (rows.active()) {
          float d[count], dtarget[count];
          read_target();
          rows.template gather<blocks>(d, block.part, token);
          const float drate = back.loss(d, x, rstd, block.rates[token], target, dtarget, of_gamma);
#pragma unroll
          for (int i = 0; i < count; ++i) of_beta[i] -= dtarget[i];
          block.put_rows(rows, block.dz2, d);
          if (mine && token < n) {
            rows.store(job.dtarget + of_row * F, dtarget);
            if (rows.lane == 0) job.dlr[of_row] = drate;
          }
        }
        meet();
        if (block.has_hidden()) {
          typename Block::Hidden z;
          accumulate<F>(dx2, block.dz2, block.w2.t(), block.row, block.hidden_column);
          block.first_layer(z, block.k);
          each(dz1, [&](int i, float& x) { x += number(dx2, i) * FastGelu(number(z, i)).df(); });
          put(dz1, block.g1, block.row, block.hidden_column);  // dZ_1, where Gl_1 has served
        }
        Block::add_gradients(dw2, block.db2, block.x2, block.dz2, block.row2, block.column2);
        __syncthreads();
        if (block.has_width()) {
          typename Block::Width dq;
          clear(dq);
          accumulate<H>(dk, block.g1, block.w1.t(), block.row, block.width_column);
          block.put_plane(dk, block.part);
          accumulate<H>(dq, block.dzbar1, block.w1.t(), block.row, block.width_column);
          accumulate<C>(dq, block.da, block.k, block.row, block.width_column, 0, block.row + 16);
          block.put_plane(dq, block.dq);
        }
        Block::add_gradients(dw1, block.db1, block.k, block.g1, block.row1, block.column1);
        meet();
        if (own_rows.active()) {
          float of_k[OwnRows::count], of_q[OwnRows::count];
          std::uint32_t raw[OwnRows::count / 2];
          const Index own_row = row + answer * scan.heads;
          own_rows.load(raw, job.dout + own_row * F, answer < n);
          own_rows.template gather<blocks>(of_k, block.part, answer);
          own_rows.template gather<blocks>(of_q, block.dq, answer);
#pragma unroll
          for (int i = 0; i < OwnRows::count; ++i) of_q[i] += own_rows.at(raw, i);
          if (answer < n) {
            own_rows.store(job.dq + own_row * F, of_q);
            own_rows.store(job.dk + own_row * F, of_k);
          }
        }
        meet();
      }

      // A group's share of the sums over all tokens: the same whether the other groups are this launch's.
      dlast = RowLanes<1, F, threads>::sum(dlast);
      if (thread % 32 == 0) block.last_sums[thread / 32] = dlast;
      back.store_columns(block.part + thread / 32 * 2 * F, of_gamma);
      back.store_columns(block.part + thread / 32 * 2 * F + F, of_beta);
      __syncthreads();
      if (thread < C) {
        float sum = 0;
        for (int i = 0; i < Block::slots; ++i) sum += block.dscale[i * C + thread];
        if (thread == C - 1) {
          for (int i = 0; i < Block::warps; ++i) sum += block.last_sums[i];
        }
        block.dq[2 * F + thread] = sum;
      }
      for (int i = thread; i < 2 * F; i += threads) {
        float sum = 0;
        for (int w = 0; w < Block::warps; ++w) sum += block.part[w * 2 * F + i];
        block.dq[i] = sum;
      }
      meet();
      if (block.rank == 0) {
        const auto of_cluster = [&](int i, int ranks) {
          float sum = 0;
          for (int rank = 0; rank < ranks; ++rank) add_of_block<1>(&sum, shared_address(block.dq + i), rank);
          return sum;
        };
        constexpr int with_rows = Block::rows_shared_out ? blocks : 1;  // else each block has the sums of all
        for (int i = thread; i < F; i += threads) {
          job.dgamma[head * F + i] += of_cluster(i, with_rows);
          job.dbeta[head * F + i] += of_cluster(F + i, with_rows);
        }
        if (thread < C) job.dscale[head * C + thread] += of_cluster(2 * F + thread, blocks);
      }
      meet();  // the next group takes the same memory, and no block leaves while others read it
    }
    block.store_weights1(dweights, dw1);
    block.store_weights2(dweights, dw2);
    for (int i = thread; i < H; i += threads) dweights[block.bias1(i)] = block.db1[i];
    if (block.rank == 0) {
      for (int i = thread; i < F; i += threads) dweights[block.bias2(i)] = block.db2[i];
    }
    __syncthreads();  // before the next head's take their place
  }
#endif
}

}  // namespace mttt::detail::mlp

namespace mttt::detail {

/// `Job` is TttBackward<bf16, float> of ttt/dual.hpp, its pointers on 16-byte boundaries.
template <int F, int hidden, int C, class B, class Job>
void ttt_mlp_run_backward(B& be, const Launcher& launch, const Job& job) {
  constexpr mlp::Clusters clusters{mlp::cluster_blocks<F, hidden, C>, 32 * tuning::ttt_mlp_backward_warps(C),
                                   mlp::BackwardBlock<F, hidden, C>::shared};
  const auto kernel = mlp::backward_kernel<F, hidden, C, Job>;
  const Index heads = job.scan.batch * job.scan.heads, groups = mlp::groups_of(job.scan);
  if (heads == 0 || job.scan.steps == 0) return;
  if (job.scan.group > mlp::images) {
    fail("TTT's scan backwards on a GPU",
         "a checkpoint every " + std::to_string(job.scan.group) + " mini-batches",
         "one every " + std::to_string(mlp::images) + " or fewer", "lower the group");
  }
  const auto scope = be.scope();
  static const Index at_once = clusters.at_once(kernel);
  const Index held = std::min(heads, at_once);
  unsigned char* scratch = be.template make<unsigned char, dyn>(held * clusters.blocks * mlp::images *
                                                                mlp::image_bytes<F, hidden, C>)
                               .data();
  if (mlp::in_rounds(heads, groups, at_once)) {
    for (Index first = 0; first < heads * groups; first += at_once) {
      const Index end = std::min(first + at_once, heads * groups);
      clusters.start(launch, kernel, end - first, job, mlp::Round{first, end, true}, scratch);
    }
  } else {
    clusters.start(launch, kernel, held, job, mlp::Round{0, heads, false}, scratch);
  }
}

}  // namespace mttt::detail
