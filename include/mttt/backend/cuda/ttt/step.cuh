// The step of a TTT layer in a stream: preparation, learning and answering of a few tokens in one launch.
//
// Formula: ttt/prepare.hpp, then ttt/primal.hpp; all but the storage of q, k, target and the answer in
//          float32. The query's pass needs no second reading of W and G: with s, r the token's scale and
//          rate,
//
//            q (W - s (G + r k^T g)) = q (W - s G) - s r (q . k) g   (biases: q . k = 1)
//
//          so that both passes of a linear layer go through registers at once and the blocks of a head meet
//          once a token; those of a TTT-MLP meet twice, for the keys' and for the queries' sums over hidden
//          units.
// Shapes:  as TttStreamStep of ttt/prepare.hpp. TTT-Linear: a block a head of 64; heads of 128 go to clusters
//          of 4 blocks of 32 columns. TTT-MLP: clusters of 8 blocks of 32 or 64 hidden units, with the
//          columns of W_1 and the rows of W_2 that belong to them. A thread keeps 32 numbers of W in
//          registers, and as many of G in shared memory, for all tokens of a call.
// Units:   none. Per head and call W is read once and written only at a mini-batch's end, G read and written
//          once: 12 bytes a fast weight, 16 at a mini-batch's end.
// Errors:  none: shapes that are not taken are left to the functors of ttt/.
// Not supported: GPUs before compute capability 9.0, which know no clusters; heads of other widths than 64
//          and 128; hidden layers that are not 4 heads wide; more than two layers; float64.
// Source:  CUDA C++ Programming Guide, thread block clusters, distributed shared memory.
#pragma once

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/ttt/step_tokens.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt::detail {

/// TTT-Linear. A block takes N columns; a thread 4 of them in every R-th row.
template <int F, class Step>
__global__ void __launch_bounds__(tuning::ttt_linear_step(F).threads, tuning::ttt_linear_step(F).blocks)
    ttt_linear_step_kernel(Step s, double log_theta) {
  constexpr int blocks = tuning::ttt_linear_step(F).cluster, threads = tuning::ttt_linear_step(F).threads;
  constexpr int N = F / blocks, quads = N / 4, R = threads / quads, rows = F / R, warps = threads / 32;
  static_assert(2 * quads <= 32 && rows == 8);
  using Row = WarpRow<F>;
  using Cluster = Sharing<blocks>;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int column = thread % quads, first_row = thread / quads, rank = blockIdx.x % blocks;
  const Index session_head = blockIdx.x / blocks, b = session_head / s.heads, head = session_head % s.heads;
  __shared__ PreparedTokens<F> tokens;
  __shared__ HeldBiases biases;
  __shared__ __align__(16) float parts[warps][2][N];
  __shared__ __align__(16) float passes[2][2][F];  // of this token and the last: the key's, the query's
  extern __shared__ __align__(16) float held_gradients[];
  const HeldQuads<threads> held(held_gradients);
  start_next();
  if (s.rope) tokens.fill_angles(log_theta);
  await_inputs();
  if (!active(s.mask, b)) {
    answer_nothing<F, blocks>(s, b, head, rank);
    return;
  }
  Cluster::arrive();
  // What is small is asked for first: it would else wait behind the fast weights.
  const Index position = static_cast<Index>(s.position[b]);
  RawToken<F, typename Step::Scalar> early{};
  if (warp < 2 * s.steps) early = tokens.fetch(s, b, head, 0, warp);
  typename Step::Scalar own_gamma{}, own_beta{};
  if (thread < F) own_gamma = s.gamma[head * F + thread], own_beta = s.beta[head * F + thread];
  const Index at = session_head * (F * F + F) + rank * N + column * 4;
  Quad w[rows];
#pragma unroll
  for (int j = 0; j < rows; ++j) w[j] = load_quad(s.weights + at + (first_row + j * R) * F);
#pragma unroll
  for (int j = 0; j < rows; ++j) held.fetch(j, s.gradients + at + (first_row + j * R) * F);
  if (thread < 2 * quads) {  // which add up the key's and the query's columns
    biases.fetch(s.weights + at + F * F, s.gradients + at + F * F);
  }
  commit_copies();
  if (thread < F) {
    tokens.gamma[thread] = wide(own_gamma);
    tokens.beta[thread] = wide(own_beta);
  }
  bool learned = false;  // W itself
  const auto tokens_from = [&](Index t) { return static_cast<int>(min(s.steps - t, Index{tokens.most})); };
  tokens.prepare(s, b, head, 0, tokens_from(0), position, early);
  await_copies();
  if constexpr (blocks > 1) Cluster::wait();  // the others are there to be written to
  for (Index first = 0; first < s.steps; first += tokens.most) {
    const int count = tokens_from(first);
    if (first > 0)
      tokens.prepare(s, b, head, first, count, position,
                     tokens.fetch(s, b, head, first, warp < 2 * count ? warp : 0));
    for (int t = 0; t < count; ++t) {
      const float rate = tokens.rate[t], scale = tokens.scale[t];
      Quad asked{}, heard{};
#pragma unroll
      for (int j = 0; j < rows; ++j) {
        add_scaled(heard, tokens.k[t][first_row + j * R], w[j]);
        add_scaled(asked, tokens.q[t][first_row + j * R], stepped(w[j], scale, held.load(j)));
      }
      sum_rows<quads>(heard);
      sum_rows<quads>(asked);
      if (lane < quads) {
        store_lanes(&parts[warp][0][column * 4], heard);
        store_lanes(&parts[warp][1][column * 4], asked);
      }
      __syncthreads();
      float(&pass)[2][F] = passes[t % 2];
      if (thread < 2 * quads) {
        const int which = thread / quads;
        Quad total = which == 0 ? biases.bias() : stepped(biases.bias(), scale, biases.sum());
#pragma unroll
        for (int i = 0; i < warps; ++i) add_scaled(total, 1, load_lanes<4>(&parts[i][which][column * 4]));
        Cluster::push_to_all(&pass[which][rank * N + column * 4], total);
      }
      Cluster::arrive();
      Cluster::wait();
      // Every warp has the whole row's gradient: nobody waits for another.
      const Row gradient = tokens.gradient(t, Row::load(pass[0]), s.eps);
      Quad own = gradient.quad(rank * quads + column);
#pragma unroll
      for (int i = 0; i < 4; ++i) own.of[i] *= rate;
      const bool ends = tokens.ends[t];
#pragma unroll
      for (int j = 0; j < rows; ++j) {
        Quad sum = held.load(j);
        add_scaled(sum, tokens.k[t][first_row + j * R], own);
        if (ends) w[j] = stepped(w[j], scale, sum);
        held.store(j, ends ? Quad{} : sum);
      }
      if (thread < 2 * quads) biases.learn(own, scale, ends);
      learned = learned || ends;
      if (warp == t % warps) {
        const float share = tokens.own_share(t);
        Row z = Row::load(pass[1]);
#pragma unroll
        for (int e = 0; e < Row::E; ++e) z.of[e] = fma(share, gradient.of[e], z.of[e]);
        z = tokens.answer(t, z, s.eps);
        if (lane * Row::E / N == rank) z.store(s.out + ((b * s.steps + first + t) * s.heads + head) * F);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < rows; ++j) {
    store_lanes(s.gradients + at + (first_row + j * R) * F, held.load(j));
    if (learned) store_lanes(s.weights + at + (first_row + j * R) * F, w[j]);
  }
  if (thread < quads) {
    store_lanes(s.gradients + at + F * F, biases.sum());
    if (learned) store_lanes(s.weights + at + F * F, biases.bias());
  }
}

/// TTT-MLP of two layers. A block takes N hidden units; a thread 4 of them in every R1-th row of W_1, and 4
/// columns of every R2-th of their rows of W_2.
template <int F, class Step>
__global__ void __launch_bounds__(tuning::ttt_mlp_step(F).threads, tuning::ttt_mlp_step(F).blocks)
    ttt_mlp_step_kernel(Step s, double log_theta) {
  constexpr int blocks = tuning::ttt_mlp_step(F).cluster, threads = tuning::ttt_mlp_step(F).threads;
  constexpr int hidden = 4 * F, N = hidden / blocks, warps = threads / 32;
  constexpr int quads1 = N / 4, R1 = threads / quads1, rows1 = F / R1;
  constexpr int quads2 = F / 4, R2 = threads / quads2, rows2 = N / R2;
  constexpr Index bias1_at = F * hidden, weight2_at = bias1_at + hidden, bias2_at = weight2_at + hidden * F;
  static_assert(2 * quads1 <= 32 && quads2 <= 32 && blocks > 1 && rows1 + rows2 == 8);
  using Row = WarpRow<F>;
  using Cluster = Sharing<blocks>;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, rank = blockIdx.x % blocks;
  const int column1 = thread % quads1, first1 = thread / quads1, column2 = thread % quads2,
            first2 = thread / quads2;
  const Index session_head = blockIdx.x / blocks, b = session_head / s.heads, head = session_head % s.heads;
  __shared__ PreparedTokens<F> tokens;
  __shared__ HeldBiases biases;
  __shared__ __align__(16) float parts[warps][2 * N > F ? 2 * N : F];
  __shared__ __align__(16) float bias2[F], bias_gradient2[F];  // every block's; the first warp learns
  __shared__ __align__(16) float x[N], slope[N], asked1[N], gradient1[N];  // of the hidden units
  __shared__ __align__(
      16) float shares[2][blocks][F];  // every block's share of the key's and the query's pass
  extern __shared__ __align__(16) float held_gradients[];
  const HeldQuads<threads> held(held_gradients);
  start_next();
  if (s.rope) tokens.fill_angles(log_theta);
  await_inputs();
  if (!active(s.mask, b)) {
    answer_nothing<F, blocks>(s, b, head, rank);
    return;
  }
  Cluster::arrive();
  const Index position = static_cast<Index>(s.position[b]);
  RawToken<F, typename Step::Scalar> early{};
  if (warp < 2 * s.steps) early = tokens.fetch(s, b, head, 0, warp);
  typename Step::Scalar own_gamma{}, own_beta{};
  if (thread < F) own_gamma = s.gamma[head * F + thread], own_beta = s.beta[head * F + thread];
  const Index size = bias2_at + F, at1 = session_head * size + rank * N + column1 * 4;
  const Index at2 = session_head * size + weight2_at + static_cast<Index>(rank) * N * F + column2 * 4;
  const Index at_bias2 = session_head * size + bias2_at;
  Quad w1[rows1], w2[rows2];
#pragma unroll
  for (int j = 0; j < rows1; ++j) w1[j] = load_quad(s.weights + at1 + (first1 + j * R1) * hidden);
#pragma unroll
  for (int j = 0; j < rows2; ++j) w2[j] = load_quad(s.weights + at2 + (first2 + j * R2) * F);
#pragma unroll
  for (int j = 0; j < rows1; ++j) held.fetch(j, s.gradients + at1 + (first1 + j * R1) * hidden);
#pragma unroll
  for (int j = 0; j < rows2; ++j) held.fetch(rows1 + j, s.gradients + at2 + (first2 + j * R2) * F);
  if (thread < 2 * quads1) {
    biases.fetch(s.weights + at1 + bias1_at, s.gradients + at1 + bias1_at);
  }
  if (thread < quads2) {
    copy_async(shared_address(bias2 + thread * 4), s.weights + at_bias2 + thread * 4, true);
    copy_async(shared_address(bias_gradient2 + thread * 4), s.gradients + at_bias2 + thread * 4, true);
  }
  commit_copies();
  if (thread < F) {
    tokens.gamma[thread] = wide(own_gamma);
    tokens.beta[thread] = wide(own_beta);
  }
  bool learned = false;

  /// Adds up what the warps have in `parts`, for one of the two passes.
  const auto share = [&](const Quad& sums, int which) {
    Quad own = sums;
    sum_rows<quads2>(own);
    if (lane < quads2) store_lanes(&parts[warp][column2 * 4], own);
    __syncthreads();
    if (thread >= quads2) return;
    Quad total{};
#pragma unroll
    for (int i = 0; i < warps; ++i) add_scaled(total, 1, load_lanes<4>(&parts[i][column2 * 4]));
    Cluster::push_to_all(&shares[which][rank][column2 * 4], total);
  };
  const auto whole = [&](Row row, int which) {
#pragma unroll
    for (int i = 0; i < blocks; ++i) {
      const Row one = Row::load(shares[which][i]);
#pragma unroll
      for (int e = 0; e < Row::E; ++e) row.of[e] += one.of[e];
    }
    return row;
  };

  const auto tokens_from = [&](Index t) { return static_cast<int>(min(s.steps - t, Index{tokens.most})); };
  tokens.prepare(s, b, head, 0, tokens_from(0), position, early);
  await_copies();
  Cluster::wait();  // the others are there to be written to
  for (Index first = 0; first < s.steps; first += tokens.most) {
    const int count = tokens_from(first);
    if (first > 0)
      tokens.prepare(s, b, head, first, count, position,
                     tokens.fetch(s, b, head, first, warp < 2 * count ? warp : 0));
    for (int t = 0; t < count; ++t) {
      const float rate = tokens.rate[t], scale = tokens.scale[t];
      // The first layer, of keys and queries.
      Quad heard{}, asked{};
#pragma unroll
      for (int j = 0; j < rows1; ++j) {
        add_scaled(heard, tokens.k[t][first1 + j * R1], w1[j]);
        add_scaled(asked, tokens.q[t][first1 + j * R1], stepped(w1[j], scale, held.load(j)));
      }
      sum_rows<quads1>(heard);
      sum_rows<quads1>(asked);
      if (lane < quads1) {
        store_lanes(&parts[warp][column1 * 4], heard);
        store_lanes(&parts[warp][N + column1 * 4], asked);
      }
      __syncthreads();
      if (thread < 2 * quads1) {
        const int which = thread / quads1;
        Quad total = which == 0 ? biases.bias() : stepped(biases.bias(), scale, biases.sum());
#pragma unroll
        for (int i = 0; i < warps; ++i)
          add_scaled(total, 1, load_lanes<4>(&parts[i][which * N + column1 * 4]));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (which == 0) {
            x[column1 * 4 + i] = GeluTanh::f(total.of[i]);
            slope[column1 * 4 + i] = GeluTanh::df(total.of[i]);
          } else {
            asked1[column1 * 4 + i] = total.of[i];
          }
        }
      }
      __syncthreads();
      // The key through the second layer, and back.
      Quad sums{};
#pragma unroll
      for (int j = 0; j < rows2; ++j) add_scaled(sums, x[first2 + j * R2], w2[j]);
      share(sums, 0);
      Cluster::arrive();
      const float own_share = tokens.own_share(t);
      Cluster::wait();
      const Row gradient2 = tokens.gradient(t, whole(Row::load(bias2), 0), s.eps);
      const Quad own2 = gradient2.quad(column2);
      Quad answer{};
#pragma unroll
      for (int j = 0; j < rows2; ++j) {
        const int unit = first2 + j * R2;
        float back = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) back = fma(w2[j].of[i], own2.of[i], back);
#pragma unroll
        for (int distance = quads2 / 2; distance > 0; distance /= 2)
          back += __shfl_xor_sync(0xffffffffu, back, distance);
        back *= slope[unit];
        Quad sum = held.load(rows1 + j);
        add_scaled(sum, rate * x[unit], own2);
        held.store(rows1 + j, sum);
        add_scaled(answer, GeluTanh::f(fma(own_share, back, asked1[unit])), stepped(w2[j], scale, sum));
        if (lane % quads2 == 0) gradient1[unit] = back;
      }
      share(answer, 1);
      Cluster::arrive();
      // What was learned, while the blocks meet.
      Quad own1 = load_lanes<4>(&gradient1[column1 * 4]);
#pragma unroll
      for (int i = 0; i < 4; ++i) own1.of[i] *= rate;
#pragma unroll
      for (int j = 0; j < rows1; ++j) {
        Quad sum = held.load(j);
        add_scaled(sum, tokens.k[t][first1 + j * R1], own1);
        held.store(j, sum);
      }
      const bool ends = tokens.ends[t];
      if (thread < 2 * quads1) biases.learn(own1, scale, ends);
      Row z;
      if (warp == 0) {
        z = Row::load(bias2);
        Row sum = Row::load(bias_gradient2);
#pragma unroll
        for (int e = 0; e < Row::E; ++e) {
          sum.of[e] = fma(rate, gradient2.of[e], sum.of[e]);
          z.of[e] = fma(-scale, sum.of[e], z.of[e]);
        }
        if (ends) z.store(bias2);
        (ends ? Row{} : sum).store(bias_gradient2);
      }
      if (ends) {
        learned = true;
#pragma unroll
        for (int j = 0; j < rows1; ++j) {
          w1[j] = stepped(w1[j], scale, held.load(j));
          held.store(j, Quad{});
        }
#pragma unroll
        for (int j = 0; j < rows2; ++j) {
          w2[j] = stepped(w2[j], scale, held.load(rows1 + j));
          held.store(rows1 + j, Quad{});
        }
      }
      Cluster::wait();
      if (warp == 0) {
        z = tokens.answer(t, whole(z, 1), s.eps);
        constexpr int N2 = F / blocks;
        if (lane * Row::E / N2 == rank) z.store(s.out + ((b * s.steps + first + t) * s.heads + head) * F);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < rows1; ++j) {
    store_lanes(s.gradients + at1 + (first1 + j * R1) * hidden, held.load(j));
    if (learned) store_lanes(s.weights + at1 + (first1 + j * R1) * hidden, w1[j]);
  }
#pragma unroll
  for (int j = 0; j < rows2; ++j) {
    store_lanes(s.gradients + at2 + (first2 + j * R2) * F, held.load(rows1 + j));
    if (learned) store_lanes(s.weights + at2 + (first2 + j * R2) * F, w2[j]);
  }
  if (thread < quads1) {
    store_lanes(s.gradients + at1 + bias1_at, biases.sum());
    if (learned) store_lanes(s.weights + at1 + bias1_at, biases.bias());
  }
  if (rank == 0 && warp == 0) {
    Row::load(bias_gradient2).store(s.gradients + at_bias2);
    if (learned) Row::load(bias2).store(s.weights + at_bias2);
  }
}

/// The shapes that ttt_step takes.
constexpr bool steps_ttt(Index width, Index hidden, Index layers) {
  return (width == 64 || width == 128) && (layers == 1 || (layers == 2 && hidden == 4 * width));
}

/// Eight quads of G a thread.
constexpr int held_bytes(unsigned threads) { return static_cast<int>(threads) * 8 * 16; }

/// False, and nothing done, on GPUs without clusters.
template <int width, int layers, class Step>
bool ttt_step(const Launcher& launch, int capability, const Step& step) {
  if (capability < 90) return false;
  const double log_theta = std::log(step.rope_theta);
  const auto heads = static_cast<unsigned>(step.batch * step.heads);
  if constexpr (layers == 1) {
    constexpr auto shape = tuning::ttt_linear_step(width);
    launch.in_clusters("a step of TTT-Linear", ttt_linear_step_kernel<width, Step>, heads, shape.cluster,
                       shape.threads, held_bytes(shape.threads), step, log_theta);
  } else {
    constexpr auto shape = tuning::ttt_mlp_step(width);
    if constexpr (held_bytes(shape.threads) > 32 << 10) {
      check(cudaFuncSetAttribute(ttt_mlp_step_kernel<width, Step>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, held_bytes(shape.threads)),
            "asking for shared memory");
    }
    launch.in_clusters("a step of TTT-MLP", ttt_mlp_step_kernel<width, Step>, heads, shape.cluster,
                       shape.threads, held_bytes(shape.threads), step, log_theta);
  }
  return true;
}

}  // namespace mttt::detail
