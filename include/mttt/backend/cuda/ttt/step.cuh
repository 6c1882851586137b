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
#include "mttt/backend/cuda/mma.cuh"
#include "mttt/backend/cuda/pack.cuh"
#include "mttt/backend/cuda/tuning.cuh"
#include "mttt/core/bf16.hpp"
#include "mttt/math/scalar.hpp"

namespace mttt::detail {

using Quad = Lanes<float, 4>;

/// Four fast weights, which a multiprocessor reads once.
__device__ inline Quad load_quad(const float* from) {
  Quad q;
  asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(q.of[0]), "=f"(q.of[1]), "=f"(q.of[2]), "=f"(q.of[3])
               : "l"(from));
  return q;
}

/// y += a x
__device__ inline void add_scaled(Quad& y, float a, const Quad& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) y.of[i] = fma(a, x.of[i], y.of[i]);
}
/// w - s g
__device__ inline Quad stepped(const Quad& w, float s, const Quad& g) {
  Quad y = w;
  add_scaled(y, -s, g);
  return y;
}
/// A thread's own quads of G, in shared memory: W fills its registers, and more blocks fit a multiprocessor.
template <int threads>
struct HeldQuads {
  float* first;
  __device__ explicit HeldQuads(float* memory) : first(memory + threadIdx.x * 4) {}
  __device__ float* at(int j) const { return first + j * threads * 4; }
  __device__ void fetch(int j, const float* from) const { copy_async(shared_address(at(j)), from, true); }
  __device__ Quad load(int j) const { return load_lanes<4>(at(j)); }
  __device__ void store(int j, const Quad& q) const { store_lanes(at(j), q); }
};

/// Quads of biases and of their gradients; the first warp's.
struct HeldBiases {
  alignas(16) float value[32 * 4];
  alignas(16) float gradient[32 * 4];
  __device__ Quad bias() const { return load_lanes<4>(value + threadIdx.x * 4); }
  __device__ Quad sum() const { return load_lanes<4>(gradient + threadIdx.x * 4); }
  __device__ void fetch(const float* bias, const float* sum) {
    copy_async(shared_address(value + threadIdx.x * 4), bias, true);
    copy_async(shared_address(gradient + threadIdx.x * 4), sum, true);
  }
  __device__ void set(const Quad& bias, const Quad& sum) {
    store_lanes(value + threadIdx.x * 4, bias);
    store_lanes(gradient + threadIdx.x * 4, sum);
  }
  /// One token's gradient, and W's step at a mini-batch's end.
  __device__ void learn(const Quad& own, float scale, bool ends) {
    Quad g = sum();
    add_scaled(g, 1, own);
    set(ends ? stepped(bias(), scale, g) : bias(), ends ? Quad{} : g);
  }
};

/// Sums over the lanes of a warp that hold the same columns: those `quads` lanes apart.
template <int quads>
__device__ void sum_rows(Quad& x) {
#pragma unroll
  for (int distance = quads; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.of[i] += __shfl_xor_sync(0xffffffffu, x.of[i], distance);
  }
}

/// The blocks that share a head. What one pushes to another's shared memory is seen after both have met.
template <int blocks>
struct Sharing {
  __device__ static void arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (blocks > 1) {
      __syncwarp();
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    }
#endif
  }
  __device__ static void wait() {
    if constexpr (blocks == 1) {
      __syncthreads();
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      __syncwarp();
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
    }
  }
  /// `value` to the place that `to` is in block `peer`.
  __device__ static void push(float* to, int peer, const Quad& value) {
    if constexpr (blocks == 1) {
      store_lanes(to, value);
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      const auto here = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
      std::uint32_t there;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(peer));
      asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(there), "f"(value.of[0]),
                   "f"(value.of[1]), "f"(value.of[2]), "f"(value.of[3])
                   : "memory");
#endif
    }
  }
  __device__ static void push_to_all(float* to, const Quad& value) {
#pragma unroll
    for (int peer = 0; peer < blocks; ++peer) push(to, peer, value);
  }
};

/// A row of F numbers in the registers of a warp, neighbours in one lane.
template <int F>
struct WarpRow {
  static constexpr int E = F / 32;
  float of[E];

  __device__ static WarpRow load(const float* from) {
    WarpRow row;
    const auto lanes = load_lanes<E>(from + threadIdx.x % 32 * E);
#pragma unroll
    for (int e = 0; e < E; ++e) row.of[e] = lanes.of[e];
    return row;
  }
  template <class T>
  __device__ static WarpRow widened(const Lanes<T, E>& lanes) {
    WarpRow row;
#pragma unroll
    for (int e = 0; e < E; ++e) row.of[e] = wide(lanes.of[e]);
    return row;
  }
  template <class T>
  __device__ void store(T* to) const {
    Lanes<T, E> lanes;
#pragma unroll
    for (int e = 0; e < E; ++e) lanes.of[e] = static_cast<T>(of[e]);
    store_lanes(to + threadIdx.x % 32 * E, lanes);
  }

  /// The sum of f(e) over all elements; every lane has it.
  template <class Term>
  __device__ static float sum(const Term& f) {
    float total = 0;
#pragma unroll
    for (int e = 0; e < E; ++e) total += f(e);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      total += __shfl_xor_sync(0xffffffffu, total, distance);
    return total;
  }
  /// Columns 4 c to 4 c + 3. All lanes of the warp call it.
  __device__ Quad quad(int c) const {
    Quad q;
#pragma unroll
    for (int i = 0; i < 4; ++i) q.of[i] = __shfl_sync(0xffffffffu, of[i % E], c * 4 / E + i / E);
    return q;
  }

  /// (row - mean) / deviation; returns 1 / deviation.
  __device__ float normalise(float eps) {
    const float mean = sum([&](int e) { return of[e]; }) / F;
    const float var = sum([&](int e) { return (of[e] - mean) * (of[e] - mean); }) / F;
    const float rstd = 1 / std::sqrt(var + eps);
#pragma unroll
    for (int e = 0; e < E; ++e) of[e] = (of[e] - mean) * rstd;
    return rstd;
  }
};

/// What a warp reads of one token: the query and the rate, or the key and the value. As it is stored: a
/// conversion would wait for it.
template <int F, class T>
struct RawToken {
  Lanes<T, F / 32> row, value;
  T logit, bias, base_lr;
};

/// The next tokens of a head as the inner loop reads them.
template <int F>
struct PreparedTokens {
  static constexpr int most = tuning::ttt_step_tokens;
  alignas(16) float q[most][F];
  alignas(16) float k[most][F];
  alignas(16) float target[most][F];
  alignas(16) float gamma[F];
  alignas(16) float beta[F];
  double half_turns[F / 2];
  float rate[most], scale[most];
  bool ends[most];  // a mini-batch

  /// Of token t's row z: the gradient of 1/2 |gamma z^ + beta - target|^2.
  __device__ WarpRow<F> gradient(int t, WarpRow<F> z, float eps) const {
    using Row = WarpRow<F>;
    const float rstd = z.normalise(eps);
    const Row g = Row::load(gamma), b = Row::load(beta), wanted = Row::load(target[t]);
    Row h;
#pragma unroll
    for (int e = 0; e < Row::E; ++e) h.of[e] = (g.of[e] * z.of[e] + b.of[e] - wanted.of[e]) * g.of[e];
    const float mean_h = Row::sum([&](int e) { return h.of[e]; }) / F;
    const float mean_hx = Row::sum([&](int e) { return h.of[e] * z.of[e]; }) / F;
#pragma unroll
    for (int e = 0; e < Row::E; ++e) h.of[e] = rstd * (h.of[e] - mean_h - z.of[e] * mean_hx);
    return h;
  }
  /// o = q + gamma z^ + beta
  __device__ WarpRow<F> answer(int t, WarpRow<F> z, float eps) const {
    using Row = WarpRow<F>;
    z.normalise(eps);
    const Row asked = Row::load(q[t]), g = Row::load(gamma), b = Row::load(beta);
#pragma unroll
    for (int e = 0; e < Row::E; ++e) z.of[e] = asked.of[e] + (g.of[e] * z.of[e] + b.of[e]);
    return z;
  }
  /// -scale rate (q . k + 1): the share of this token's own gradient in its answer.
  __device__ float own_share(int t) const {
    using Row = WarpRow<F>;
    const Row asked = Row::load(q[t]), key = Row::load(k[t]);
    return -scale[t] * rate[t] * (Row::sum([&](int e) { return asked.of[e] * key.of[e]; }) + 1);
  }

  /// Angles of a token, in half turns; before anything is read.
  __device__ void fill_angles(double log_theta) {
    constexpr int half = F / 2;
    for (int i = threadIdx.x; i < half; i += blockDim.x)
      half_turns[i] = ::exp(-log_theta * i / half) * 0.31830988618379067;
  }

  /// Task 2 t is the query of token `first` + t, task 2 t + 1 its key.
  template <class Step>
  __device__ static RawToken<F, typename Step::Scalar> fetch(const Step& s, Index b, Index head, Index first,
                                                             int task) {
    constexpr int E = F / 32;
    const Index rate_at = (b * s.steps + first + task / 2) * s.heads + head;
    const Index at = rate_at * F + threadIdx.x % 32 * E;
    RawToken<F, typename Step::Scalar> raw{};
    if (task % 2 == 0) {
      raw.row = load_lanes<E>(s.q + at);
      raw.logit = s.logit[rate_at], raw.bias = s.rate_bias[head], raw.base_lr = s.base_lr[0];
    } else {
      raw.row = load_lanes<E>(s.k + at);
      raw.value = load_lanes<E>(s.v + at);
    }
    return raw;
  }
  template <class Step>
  __device__ void prepare(const Step& s, Index place, int task,
                          const RawToken<F, typename Step::Scalar>& raw) {
    using Row = WarpRow<F>;
    const int t = task / 2;
    if (task % 2 == 0) {
      rotated(s, Row::widened(raw.row), place).store(q[t]);
      if (threadIdx.x % 32 == 0) {
        rate[t] = wide(raw.base_lr) * Sigmoid::f(wide(raw.logit) + wide(raw.bias)) / static_cast<float>(F);
        if constexpr (Step::video) {
          scale[t] = 1 / static_cast<float>(s.mini_batch);
        } else {
          scale[t] = fmaxf(1 / static_cast<float>(place + 1) + wide(s.token_scale[place]), 0.0f);
        }
        ends[t] = place == s.mini_batch - 1;
      }
      return;
    }
    const Row key = rotated(s, Row::widened(raw.row), place);
    key.store(k[t]);
    Row wanted = Row::widened(raw.value);
#pragma unroll
    for (int e = 0; e < Row::E; ++e) wanted.of[e] -= key.of[e];
    if constexpr (Step::video) {
      const float mean = Row::sum([&](int e) { return wanted.of[e]; }) / F;
      const float square = Row::sum([&](int e) { return (wanted.of[e] - mean) * (wanted.of[e] - mean); });
      const float rstd = 1 / (std::sqrt(square / (F - 1)) + 1e-8f);
      const Row g = Row::load(gamma), b = Row::load(beta);
#pragma unroll
      for (int e = 0; e < Row::E; ++e) wanted.of[e] = g.of[e] * (wanted.of[e] - mean) * rstd + b.of[e];
    }
    as_stored<Step>(wanted).store(target[t]);
  }

  /// `count` tokens from `first` on; a warp takes the query or the key of one. `early` is its first task.
  template <class Step>
  __device__ void prepare(const Step& s, Index b, Index head, Index first, int count, Index position,
                          const RawToken<F, typename Step::Scalar>& early) {
    __syncthreads();  // the last tokens have served; gamma, beta and angles are there
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    if (warp < 2 * count) prepare(s, (position + first + warp / 2) % s.mini_batch, warp, early);
    for (int task = warp + warps; task < 2 * count; task += warps)
      prepare(s, (position + first + task / 2) % s.mini_batch, task, fetch(s, b, head, first, task));
    __syncthreads();
  }

 private:
  template <class Step>
  __device__ static WarpRow<F> as_stored(WarpRow<F> row) {
#pragma unroll
    for (int e = 0; e < row.E; ++e) row.of[e] = wide(static_cast<typename Step::Scalar>(row.of[e]));
    return row;
  }

  /// Prepare::rotate of ttt/prepare.hpp
  template <class Step>
  __device__ WarpRow<F> rotated(const Step& s, WarpRow<F> x, Index place) const {
    constexpr int E = WarpRow<F>::E;
    if constexpr (Step::video) {
      const float length = std::sqrt(WarpRow<F>::sum([&](int e) { return x.of[e] * x.of[e]; }));
      const float inverse = 1 / fmaxf(length, 1e-12f);
#pragma unroll
      for (int e = 0; e < E; ++e) x.of[e] *= inverse;
    }
    if (s.rope) {
#pragma unroll
      for (int e = 0; e < E; e += 2) {
        double sine, cosine;
        sincospi(half_turns[(threadIdx.x % 32 * E + e) / 2] * static_cast<double>(place), &sine, &cosine);
        const float re = x.of[e], im = x.of[e + 1], c = static_cast<float>(cosine),
                    i = static_cast<float>(sine);
        x.of[e] = re * c - im * i;
        x.of[e + 1] = re * i + im * c;
      }
    }
    return as_stored<Step>(x);
  }
};

/// Zeros for the tokens of a session that is not active: defined numbers for the layers above.
template <int F, int blocks, class Step>
__device__ void answer_nothing(const Step& s, Index b, Index head, int rank) {
  for (Index i = static_cast<Index>(rank) * blockDim.x + threadIdx.x; i < s.steps * F;
       i += blocks * blockDim.x)
    s.out[((b * s.steps + i / F) * s.heads + head) * F + i % F] = typename Step::Scalar(0);
}

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
