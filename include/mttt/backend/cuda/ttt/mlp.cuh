// TTT-MLP on Hopper: the scan of a head's two-layer inner model in one kernel, forward.
//
// A head is the work of a cluster of blocks, each with a slice of 8192 / F columns of the hidden width: two
// blocks of 128 columns for heads of 64, eight of 64 for heads of 128. Why: the float32 weights (128 KB, or
// 512 KB) then fit into the registers of a block's warps, and their bf16 copies beside the planes of
// a mini-batch into shared memory; 64 heads of one session fill the card. What belongs to the hidden width
// stays in its block: W1, b1, W2, Z1, X2, G1, Zbar1. Sums over it meet twice a mini-batch, by reads of the
// other blocks' shared memory in the order of their ranks: Z2, and Zbar2, whose rows the blocks then share
// out. Of Z2 two blocks both take all rows; eight share them out, and give each other the gradients. Xbar2 X2^T is a sum over the hidden width too, but what it leads to is linear in it: each block
// multiplies its own part by G2, and the parts meet in Zbar2.
//
// Formula: ttt/dual.hpp, two layers. Rates go to the gradients: Gl = lr G, which G1 inherits from G2; then
//          P[t, s] = -scale_t (1 + Xbar[t] . X[s]) for s <= t,  Zbar = Xbar W + b + P Gl,
//          W <- W - scale_C X^T Gl, a product into fresh sums, so that a scale of 0 changes nothing.
// Shapes:  ttt/dual.hpp; a checkpoint every `group` mini-batches, (groups, B, H, size).
// Units:   elements. bf16 are the operands of tensor cores, and the storage; all else is float32.
// Errors:  those of check.cuh.
// Not supported: compute capability below 9.0; hidden widths other than 4 F; tensors off 16-byte boundaries.
// Source:  ttt/dual.hpp is the reference; PTX ISA: mma, barrier.cluster, mapa.
#pragma once

#include <algorithm>

#include "mttt/backend/cuda/ttt/mlp_block.cuh"

namespace mttt::detail::mlp {

template <int F, int hidden, int C>
using ForwardBlock = MlpBlock<F, hidden, C, tuning::ttt_mlp_forward_warps(C), true>;

template <int F, int hidden, int C>
inline constexpr int cluster_blocks = ForwardBlock<F, hidden, C>::blocks;

template <int F, int hidden, int C>
inline constexpr int forward_shared = ForwardBlock<F, hidden, C>::placed + 4 * C* F * 2 +
                                      (C * ForwardBlock<F, hidden, C>::stride + 2 * C) * 4;

/// What the clusters of one launch do, tasks from `first` to `end`: task n is head n, or, `by_groups`, group
/// n / heads of mini-batches of head n % heads (backwards: the n / heads-th from the last).
struct Round {
  Index first, end;
  bool by_groups;
};

template <int F, int hidden, int C, class Job>
__global__ void __launch_bounds__(32 * tuning::ttt_mlp_forward_warps(C), 1)
    forward_kernel(Job job, Round round) {
#if __CUDA_ARCH__ >= 900
  using Block = ForwardBlock<F, hidden, C>;
  constexpr int blocks = Block::blocks, H = Block::H, own = Block::own_rows;
  constexpr bool groups = Block::groups;
  const auto& scan = job.scan;
  Block block;
  Factor<C, F> keys, queries;  // two stages each, as the rates
  float *answers, *rates;
  unsigned char* memory = memory_of_block;
  Block::take(memory, keys), memory += keys.bytes;
  Block::take(memory, queries), memory += queries.bytes;
  memory = block.place(memory);
  Block::take(memory, answers, C * Block::stride), Block::take(memory, rates, 2 * C);

  start_next();
  await_inputs();
  const Index task = round.first + blockIdx.x / blocks, heads = scan.batch * scan.heads;
  const Index head = round.by_groups ? task % heads : task, step = scan.heads * F;
  const HeadRows tokens(scan, head);
  const int count = static_cast<int>((scan.steps + C - 1) / C), group = static_cast<int>(scan.group);
  const int begin = round.by_groups ? static_cast<int>(task / heads) * group : 0,
            end = round.by_groups && begin + group < count ? begin + group : count;
  const int last =
      static_cast<int>(scan.steps - static_cast<Index>(count - 1) * C);  // tokens of the last one
  const auto load = [&](int m) {
    const int n = m + 1 < count ? C : last, stage = m % 2;
    const Index row = tokens.at(static_cast<Index>(m) * C);
    Block::load(keys.stage(stage), scan.k + row * F, step, n);
    Block::load(queries.stage(stage), scan.q + row * F, step, n);
    Block::load_rates(rates + stage * C, scan.lr + row, scan.heads, n);
    commit_copies();
  };
  if (begin < end) load(begin);
  float* const weights = job.weights + head * Block::size;
  typename Block::Weights w1, w2;
  block.load_biases(weights);
  block.load_weights(weights, w1, w2);
  put(w1, block.w1, block.row1, block.column1);
  put(w2, block.w2, block.row2, block.column2);
  for (int i = threadIdx.x; i < F; i += Block::threads) {
    block.gamma[i] = scan.gamma[head % scan.heads * F + i];
    block.beta[i] = scan.beta[head % scan.heads * F + i];
  }
  for (int i = threadIdx.x; i < C; i += Block::threads) block.scale[i] = scan.scale[i];

  float* kept = scan.checkpoints + (begin / group * heads + head) * Block::size;
  int until_kept = 0;  // mini-batches
  typename Block::Hidden z;
  await_copies();
  Block::sync();
  const auto start_keys = [&](int stage) {  // without a condition; what no mini-batch follows goes unread
    if (!block.has_hidden()) return;
    block.begin_first(z);
    block.start_first(z, keys.stage(stage));
  };
  start_keys(begin % 2);
  for (int m = begin; m < end; ++m) {
    const int n = m + 1 < count ? C : last, stage = m % 2;
    const Factor<C, F> k = keys.stage(stage), q = queries.stage(stage);
    const Index row = tokens.at(static_cast<Index>(m) * C);
    std::uint32_t target[Block::Rows::count / 2];
    {
      const typename Block::Rows rows;
      const int token = block.row_of(rows);
      rows.load(target, scan.target + (row + token * scan.heads) * F, rows.active() && token < n);
    }
    typename Block::Hidden slope;
    if (block.has_hidden()) {
      await_all<groups>(z);
      each(z, [&](int i, float& x) {
        const FastGelu gelu(x);
        x = gelu.f(), number(slope, i) = gelu.df();
      });
      put(z, block.x2, block.row, block.hidden_column);
    }
    Block::sync();  // also: W2 and the biases that the mini-batch before has made are there
    if (until_kept == 0) {
      block.store_state(kept, w1, w2);
      kept += heads * Block::size;
      until_kept = group;
    }
    --until_kept;
    if (m + 1 < end) load(m + 1);
    typename Block::Width y;
    typename Block::Square dots;
    if (block.has_width()) block.begin_second(y);
    clear(dots);
    if (block.has_width()) block.start_second(y, block.x2);
    if (block.has_square()) block.template start_causal<F>(dots, q, k);
    if (block.has_width()) {
      await_all<groups>(y);
      block.put_plane(y, block.part);
    }
    arrive_at_cluster();
    block.put_causal(dots, 1);
    await_cluster();
    if (const typename Block::Rows rows; rows.active()) {
      float g[Block::Rows::count], x[Block::Rows::count];
      rows.template gather<blocks>(x, block.part, block.row_of(rows));
      rows.loss_gradient(g, x, target, block.gamma, block.beta, scan.eps);
      const float rate = rates[stage * C + block.row_of(rows)];
#pragma unroll
      for (int i = 0; i < Block::Rows::count; ++i) g[i] *= rate;
      block.put_rows(rows, block.g2, g);
    }
    Block::meet_over_rows();
    if (block.has_hidden()) {
      typename Block::Hidden g;
      clear(g), block.begin_first(z);
      start_all<groups, F>(g, block.g2, block.w2.t(), block.row, block.hidden_column);
      block.start_first(z, q);
      await_all<groups>(g);
      each(g, [&](int i, float& x) { x *= number(slope, i); });
      put(g, block.g1, block.row, block.hidden_column);
      await_all<groups>(z);
    }
    Block::sync();  // all products with W1 are done, too
    typename Block::Weights learned;
    typename Block::Biases learned_bias;
    clear(learned);
    if (block.has_hidden()) block.start_answers(z, block.g1, block.hidden_column);
    Block::gather_gradients(learned, learned_bias, k, block.g1, block.row1, block.column1);
    if (block.has_hidden()) {
      await_all<groups>(z);
      each(z, [](int, float& x) { x = FastGelu(x).f(); });
      put(z, block.xbar, block.row, block.hidden_column);
    }
    Block::sync();
    if (block.has_width()) block.begin_second(y);
    clear(dots);
    if (block.has_square()) block.template start_causal<H>(dots, block.xbar, block.x2);
    if (block.has_width()) block.start_second(y, block.xbar);
    if (n == C) {
      Block::update(w1, learned, learned_bias, -block.scale[C - 1], block.w1, block.b1, block.row1,
                    block.column1);
    }
    block.put_causal(dots, block.rank == 0 ? 1 : 0);
    if (block.has_width()) await_all<groups>(y);
    Block::sync();  // all products with W2 are done, too
    clear(learned);
    if (block.has_width()) block.start_answers(y, block.g2, block.width_column);
    Block::gather_gradients(learned, learned_bias, block.x2, block.g2, block.row2, block.column2);
    if (block.has_width()) {
      await_all<groups>(y);
      block.put_plane(y, answers);
    }
    await_copies();
    Block::offer();
    arrive_at_cluster();
    if (n == C)  // meanwhile
      Block::update(w2, learned, learned_bias, -block.scale[C - 1], block.w2, block.b2, block.row2,
                    block.column2);
    await_cluster();  // the next keys are there, and nothing reads X2 any more
    start_keys(1 - stage);
    const RowLanes<own, F, Block::threads> own_rows;
    if (own_rows.active()) {
      const int answer = block.rank * own + own_rows.row;
      float o[own_rows.count];
      own_rows.template gather<blocks>(o, answers, answer);
      own_rows.normalise(o, scan.eps);
      float scale[own_rows.count], shift[own_rows.count];
      own_rows.read(scale, block.gamma), own_rows.read(shift, block.beta);
#pragma unroll
      for (int i = 0; i < own_rows.count; i += 2) {
        const float2 query = read_pair(q.pair(answer, own_rows.column(i)));
        o[i] = query.x + (scale[i] * o[i] + shift[i]);
        o[i + 1] = query.y + (scale[i + 1] * o[i + 1] + shift[i + 1]);
      }
      if (answer < n) own_rows.store(job.out + (row + answer * scan.heads) * F, o);
    }
  }
  if (block.has_hidden()) await_all<groups>(z);
  __syncthreads();  // the biases are final
  block.store_state(weights, w1, w2);
  if (job.gradients != nullptr && end == count) {
    float* const to = job.gradients + head * Block::size;
    typename Block::Weights learned;
    typename Block::Biases learned_bias;
    const bool open = count > 0 && last < C;
    clear(learned), clear(learned_bias);
    if (open) {
      Block::gather_gradients(learned, learned_bias, keys.stage((count + 1) % 2), block.g1, block.row1,
                              block.column1);
    }
    block.store_weights1(to, learned);
    Block::template each_bias<H>(learned_bias, [&](float sum, int c) { to[block.bias1(c)] = sum; });
    clear(learned), clear(learned_bias);
    if (open) Block::gather_gradients(learned, learned_bias, block.x2, block.g2, block.row2, block.column2);
    block.store_weights2(to, learned);
    Block::template each_bias<F>(learned_bias, [&](float sum, int c) {
      if (block.rank == 0) to[block.bias2(c)] = sum;
    });
  }
  arrive_at_cluster();
  await_cluster();  // no block leaves while others read its memory
#endif
}

/// The clusters of a kernel.
struct Clusters {
  unsigned blocks, threads;
  int shared;  // bytes

  template <class... P, class... A>
  void start(const Launcher& launch, void (*kernel)(P...), Index count, A&&... arguments) const {
    allow_shared(kernel);
    launch.in_clusters("starting a scan of TTT-MLP", kernel, static_cast<unsigned>(count), blocks, threads,
                       shared, std::forward<A>(arguments)...);
  }
  /// How many of them this GPU holds, at least one.
  template <class... P>
  Index at_once(void (*kernel)(P...)) const {
    allow_shared(kernel);
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {blocks, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = static_cast<std::size_t>(shared);
    config.attrs = &cluster;
    config.numAttrs = 1;
    int count = 0;
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &config), "asking how many clusters fit a GPU");
    return std::max(count, 1);
  }

 private:
  template <class... P>
  void allow_shared(void (*kernel)(P...)) const {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "asking for shared memory");
  }
};

template <class Scan>
Index groups_of(const Scan& scan) {
  return (scan.mini_batches() + scan.group - 1) / scan.group;
}
/// Whether heads are better taken a group of mini-batches at a time, in launches of as many clusters as fit at
/// once: whole heads would leave most of the GPU idle at the end (32 heads, 15 at once: 2 of 15). Weights pass
/// through global memory between two groups either way, so that the numbers are the same. On an H200, 32 heads of
/// 128, 2048 tokens, forward: 0.96 instead of 1.11 ms in mini-batches of 64, 1.63 instead of 1.95 of 16.
inline bool in_rounds(Index heads, Index groups, Index at_once) {
  const auto rounds = [&](Index n) { return (n + at_once - 1) / at_once; };
  return groups > 1 && heads > at_once && 10 * rounds(heads * groups) <= 9 * rounds(heads) * groups;
}

}  // namespace mttt::detail::mlp

namespace mttt::detail {

template <Index width, Index hidden, Index mini_batch>
inline constexpr bool ttt_mlp_takes = (width == 64 || width == 128) && hidden == 4 * width &&
                                      (mini_batch == 16 || mini_batch == 32 || mini_batch == 64) &&
                                      compiled_for_clusters();

/// `Job` is TttForward<bf16, float> of ttt/dual.hpp, its pointers on 16-byte boundaries.
template <int F, int hidden, int C, class Job>
void ttt_mlp_run_forward(const Launcher& launch, const Job& job) {
  constexpr mlp::Clusters clusters{mlp::cluster_blocks<F, hidden, C>, 32 * tuning::ttt_mlp_forward_warps(C),
                                   mlp::forward_shared<F, hidden, C>};
  const auto kernel = mlp::forward_kernel<F, hidden, C, Job>;
  const Index heads = job.scan.batch * job.scan.heads, groups = mlp::groups_of(job.scan);
  if (heads == 0) return;
  static const Index at_once = clusters.at_once(kernel);
  if (mlp::in_rounds(heads, groups, at_once)) {
    for (Index first = 0; first < heads * groups; first += at_once) {
      const Index end = std::min(first + at_once, heads * groups);
      clusters.start(launch, kernel, end - first, job, mlp::Round{first, end, true});
    }
  } else {
    clusters.start(launch, kernel, heads, job, mlp::Round{0, heads, false});
  }
}

}  // namespace mttt::detail
