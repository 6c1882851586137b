// Row functions of the fused scans of TTT-MLP, on rows that are shared out among the lanes of warps, and sums
// over the blocks of a cluster.
//
// Formula: ttt/inner_model.hpp: inner_norm, inner_loss_gradient and their backwards. Sums over a cluster are
//          taken in the order of its blocks' ranks.
// Shapes:  R rows of F numbers; planes of floats (R, F + 8), bf16 tensors (., F).
// Units:   elements.
// Errors:  none.
// Not supported: compute capability below 9.0.
// Source:  PTX ISA: ld and st with shared::cluster.
#pragma once

#include "mttt/backend/cuda/ttt/cluster.cuh"
#include "mttt/backend/cuda/ttt/mlp_products.cuh"

namespace mttt::detail::mlp {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/// x += n numbers at the same place of the shared memory of block `rank`.
template <int n>
__device__ void add_of_block(float* x, std::uint32_t at, int rank) {
  const std::uint32_t there = address_in_block(at, rank);
  float y[n];
  if constexpr (n == 4) {
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(y[0]), "=f"(y[1]), "=f"(y[2]), "=f"(y[3])
                 : "r"(there)
                 : "memory");
  } else if constexpr (n == 2) {
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];"
                 : "=f"(y[0]), "=f"(y[1])
                 : "r"(there)
                 : "memory");
  } else {
    static_assert(n == 1);
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(y[0]) : "r"(there) : "memory");
  }
#pragma unroll
  for (int i = 0; i < n; ++i) x[i] += y[i];
}
/// 8 bytes to the same place of the shared memory of block `rank`.
__device__ inline void push_to_block(std::uint32_t at, std::uint32_t low, std::uint32_t high, int rank) {
  const std::uint32_t there = address_in_block(at, rank);
  asm volatile("st.shared::cluster.v2.b32 [%0], {%1, %2};" ::"r"(there), "r"(low), "r"(high) : "memory");
}
#endif

/// R rows of F numbers shared out among threads: as many lanes of one warp a row as there are.
template <int R, int F, int threads>
struct RowLanes {
  static constexpr int lanes = threads / R < 32 ? threads / R : 32, count = F / lanes,
                       pack = count < 4 ? count : 4;
  static_assert(pack % 2 == 0);
  int row, lane;
  __device__ RowLanes() : RowLanes(thread_again()) {}
  __device__ explicit RowLanes(int thread) : row(thread / lanes), lane(thread % lanes) {}
  __device__ bool active() const { return threads == R * lanes || row < R; }
  __device__ int column(int i) const { return (i / pack * lanes + lane) * pack + i % pack; }
  __device__ static float sum(float x) {
#pragma unroll
    for (int d = 1; d < lanes; d *= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
  }
  template <class Fn>
  __device__ static float mean(Fn&& f) {
    float x = 0;
#pragma unroll
    for (int i = 0; i < count; ++i) x += f(i);
    return sum(x) * (1.f / F);
  }

  /// The row's numbers in a tensor, two in each word; zeros beyond its end.
  __device__ void load(std::uint32_t (&raw)[count / 2], const bf16* from, bool valid) const {
#pragma unroll
    for (int i = 0; i < count; i += pack) {
      if constexpr (pack == 4) {
        const uint2 two = valid ? *reinterpret_cast<const uint2*>(from + column(i)) : uint2{0, 0};
        raw[i / 2] = two.x, raw[i / 2 + 1] = two.y;
      } else {
        raw[i / 2] = valid ? *reinterpret_cast<const std::uint32_t*>(from + column(i)) : 0u;
      }
    }
  }
  __device__ void store(bf16* to, const float (&x)[count]) const {
#pragma unroll
    for (int i = 0; i < count; i += pack) {
      if constexpr (pack == 4) {
        *reinterpret_cast<uint2*>(to + column(i)) = {pack_bf16(x[i], x[i + 1]),
                                                     pack_bf16(x[i + 2], x[i + 3])};
      } else {
        *reinterpret_cast<std::uint32_t*>(to + column(i)) = pack_bf16(x[i], x[i + 1]);
      }
    }
  }
  /// Into row `to_row` of a tile.
  template <int TR, int D>
  __device__ void store(Factor<TR, D> tile, int to_row, const float (&x)[count]) const {
#pragma unroll
    for (int i = 0; i < count; i += pack) {
      const std::uint32_t to = tile.pair(to_row, column(i));
      if constexpr (pack == 4) {
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(pack_bf16(x[i], x[i + 1])),
                     "r"(pack_bf16(x[i + 2], x[i + 3]))
                     : "memory");
      } else {
        write_pair(to, x[i], x[i + 1]);
      }
    }
  }
  /// Into row `to_row` of that tile of all blocks; they see it after the cluster's next barrier.
  template <int blocks, int TR, int D>
  __device__ void push(Factor<TR, D> tile, int to_row, const float (&x)[count]) const {
#if __CUDA_ARCH__ >= 900
    static_assert(pack == 4);
#pragma unroll
    for (int i = 0; i < count; i += pack) {
      const std::uint32_t to = tile.pair(to_row, column(i)), low = pack_bf16(x[i], x[i + 1]),
                          high = pack_bf16(x[i + 2], x[i + 3]);
#pragma unroll
      for (int rank = 0; rank < blocks; ++rank) push_to_block(to, low, high, rank);
    }
#endif
  }
  __device__ static float at(const std::uint32_t (&raw)[count / 2], int i) {
    return __uint_as_float(i % 2 == 0 ? raw[i / 2] << 16 : raw[i / 2] & 0xffff0000u);
  }
  /// The sum over the cluster of row `of` of a plane of floats.
  template <int blocks>
  __device__ void gather(float (&x)[count], const float* plane, int of) const {
#if __CUDA_ARCH__ >= 900
    const auto add = [&](int rank) {
#pragma unroll
      for (int i = 0; i < count; i += pack)
        add_of_block<pack>(x + i, shared_address(plane + of * (F + 8) + column(i)), rank);
    };
    if constexpr (blocks == 2) {  // a + b is b + a
      read(x, plane + of * (F + 8));
      add(1 - cluster_rank());
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) x[i] = 0;
#pragma unroll
      for (int rank = 0; rank < blocks; ++rank) add(rank);
    }
#endif
  }

  /// The row's numbers in an array of floats.
  __device__ void read(float (&x)[count], const float* from) const {
#pragma unroll
    for (int i = 0; i < count; i += pack) {
      if constexpr (pack == 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + column(i));
        x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
      } else {
        const float2 two = *reinterpret_cast<const float2*>(from + column(i));
        x[i] = two.x, x[i + 1] = two.y;
      }
    }
  }

  /// (z - mean) / deviation in place of z; returns 1 / deviation.
  __device__ float normalise(float (&z)[count], float eps) const {
    const float middle = mean([&](int i) { return z[i]; });
    const float var = mean([&](int i) { return (z[i] - middle) * (z[i] - middle); });
    const float rstd = rsqrtf(var + eps);
#pragma unroll
    for (int i = 0; i < count; ++i) z[i] = (z[i] - middle) * rstd;
    return rstd;
  }
  /// inner_loss_gradient of ttt/inner_model.hpp; z becomes its normal form. Returns 1 / deviation.
  __device__ float loss_gradient(float (&g)[count], float (&z)[count],
                                 const std::uint32_t (&target)[count / 2], const float* gamma,
                                 const float* beta, float eps) const {
    float scale[count], shift[count];
    read(scale, gamma), read(shift, beta);
    const float rstd = normalise(z, eps);
#pragma unroll
    for (int i = 0; i < count; ++i) g[i] = (scale[i] * z[i] + shift[i] - at(target, i)) * scale[i];
    const float mean_h = mean([&](int i) { return g[i]; }),
                mean_hx = mean([&](int i) { return g[i] * z[i]; });
#pragma unroll
    for (int i = 0; i < count; ++i) g[i] = rstd * (g[i] - mean_h - z[i] * mean_hx);
    return rstd;
  }
};

/// Row functions backwards, for numbers that RowLanes shares out.
template <class Rows>
struct RowBackward {
  static constexpr int count = Rows::count;
  using Values = float[count];
  const Rows& rows;
  const float *gamma, *beta;

  /// inner_norm_backward: from d = dy to dz, adding to dgamma and dbeta; x is the normal form.
  __device__ void norm(Values& d, const Values& x, float rstd, Values& dgamma, Values& dbeta) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      dgamma[i] += d[i] * x[i], dbeta[i] += d[i];
      d[i] *= gamma[rows.column(i)];
    }
    const float mean_d = rows.mean([&](int i) { return d[i]; });
    const float mean_dx = rows.mean([&](int i) { return d[i] * x[i]; });
#pragma unroll
    for (int i = 0; i < count; ++i) d[i] = rstd * (d[i] - mean_d - x[i] * mean_dx);
  }

  /// inner_loss_gradient_backward: from d, the gradient of rate * g, to dz and that of the rate, which it
  /// returns; adds to dgamma.
  __device__ float loss(Values& d, const Values& x, float rstd, float rate,
                        const std::uint32_t (&target)[count / 2], Values& dtarget, Values& dgamma) const {
    const auto scale = [&](int i) { return gamma[rows.column(i)]; };
    const auto error = [&](int i) { return scale(i) * x[i] + beta[rows.column(i)] - Rows::at(target, i); };
    const auto h = [&](int i) { return error(i) * scale(i); };
    const float mean_h = rows.mean(h), mean_hx = rows.mean([&](int i) { return h(i) * x[i]; });
    const float drate = F * rstd * rows.mean([&](int i) { return d[i] * (h(i) - mean_h - x[i] * mean_hx); });
#pragma unroll
    for (int i = 0; i < count; ++i) d[i] *= rate * rstd;
    const float mean_d = rows.mean([&](int i) { return d[i]; });
    const float mean_dx = rows.mean([&](int i) { return d[i] * x[i]; });
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float dh = d[i] - mean_d - x[i] * mean_dx;
      dgamma[i] += dh * (error(i) + scale(i) * x[i]);
      dtarget[i] = -dh * scale(i);
      d[i] = dh * scale(i) * scale(i) - d[i] * mean_hx - h(i) * mean_dx;
    }
    const float mean_hat = rows.mean([&](int i) { return d[i]; });
    const float mean_hat_x = rows.mean([&](int i) { return d[i] * x[i]; });
    const float shrink = rate * drate * rstd / F;  // d rstd rstd^2 / F
#pragma unroll
    for (int i = 0; i < count; ++i) d[i] = rstd * (d[i] - mean_hat - x[i] * mean_hat_x) - shrink * x[i];
    return drate;
  }

  /// The sums over the warp's rows, as F numbers of its own.
  __device__ void store_columns(float* sums, const Values& v) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float x = v[i];
#pragma unroll
      for (int distance = Rows::lanes; distance < 32; distance *= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
      if (threadIdx.x % 32 < Rows::lanes) sums[rows.column(i)] = x;
    }
  }

 private:
  static constexpr int F = count * Rows::lanes;
};

}  // namespace mttt::detail::mlp
