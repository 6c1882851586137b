// What the steps of TTT-Linear and TTT-MLP have alike: tokens prepared from their projections, and rows of a
// head in the registers of a warp.
//
// Formula: ttt/prepare.hpp.
// Shapes:  as TttStreamStep of ttt/prepare.hpp; at most tuning::ttt_step_tokens tokens at a time.
// Units:   none.
// Errors:  none.
// Not supported: heads of other widths than 64 and 128; float64.
// Source:  CUDA C++ Programming Guide, distributed shared memory.
#pragma once

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/mma.cuh"
#include "mttt/backend/cuda/pack.cuh"
#include "mttt/backend/cuda/ttt/cluster.cuh"
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
    if constexpr (blocks > 1) {
      __syncwarp();
      arrive_at_cluster();
    }
  }
  __device__ static void wait() {
    if constexpr (blocks == 1) {
      __syncthreads();
    } else {
      __syncwarp();
      await_cluster();
    }
  }
  /// `value` to the place that `to` is in block `peer`.
  __device__ static void push(float* to, int peer, const Quad& value) {
    if constexpr (blocks == 1) {
      store_lanes(to, value);
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                       address_in_block(shared_address(to), peer)),
                   "f"(value.of[0]), "f"(value.of[1]), "f"(value.of[2]), "f"(value.of[3])
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

}  // namespace mttt::detail
