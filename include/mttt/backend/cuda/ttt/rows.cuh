// The inner model's row functions on what products of tiles leave in registers.
//
// A tile of R tokens is cut into pieces, one a warp: 16 rows, and one of S slices of the F columns. Sums over
// a row are taken in a warp by shuffles, and between the warps of a row's slices through shared memory, in
// the order of the slices: one order whatever the batch.
//
// Formula: see ttt/inner_model.hpp: inner_norm, inner_loss_gradient and their backwards.
// Shapes:  a piece c[N / 8][4], N = F / S, as in tiles.cuh. Arrays [2] are of a lane's two rows.
// Units:   as in tiles.cuh.
// Errors:  none.
// Not supported: what mma.cuh does not.
// Source:  Chan et al. 1983 for moments of parts.
#pragma once

#include "mttt/backend/cuda/ttt/tiles.cuh"

namespace mttt::detail {

/// Sums over four neighbouring lanes, which hold one row; of several numbers side by side, as a shuffle takes
/// long.
template <int n>
__device__ void sum_quads(float (&x)[n]) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    float other[n];
#pragma unroll
    for (int i = 0; i < n; ++i) other[i] = __shfl_xor_sync(0xffffffffu, x[i], distance);
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] += other[i];
  }
}

/// Where a warp's piece lies, and how it meets the other slices of its rows. Every sum of a mini-batch has a
/// `place` in `exchange` of its own; between two uses of a place must stand a barrier of these warps.
template <int R_, int F_, int S_>
struct Piece {
  static constexpr int R = R_, F = F_, S = S_, N = F / S;
  static_assert(R % 16 == 0 && N % 16 == 0);
  static constexpr int place_floats = S > 1 ? S* R * 4 : 0;

  int first_row, slice;  // of the warp: rows first_row and 15 more
  float* exchange;       // in shared memory: place_floats a place
  NamedBarrier barrier;  // of all warps of the tile
  int lane = lane_of_warp();

  __device__ int row(int half) const { return first_row + lane / 4 + 8 * half; }
  __device__ int chunk() const { return slice * N / 8; }
  __device__ int column(int j) const { return slice * N + 8 * j + lane % 4 * 2; }
  /// Address in tile T, which has F columns, of the pair (j, half).
  template <class T>
  __device__ std::uint32_t pair_at(std::uint32_t tile, int j, int half) const {
    const std::uint32_t first = T::at(tile, row(0), chunk()) + static_cast<std::uint32_t>(lane % 4 * 4);
    return further<T>(first, j) + static_cast<std::uint32_t>(half * 8 * 128);
  }

  /// Sums over whole rows of V <= 4 numbers a row.
  template <int V>
  __device__ void sum(float (&s)[2][V], int place) const {
    static_assert(V <= 4);
    sum_quads(reinterpret_cast<float(&)[2 * V]>(s));
    if constexpr (S > 1) {
      float of[2][S][4];
      exchange_rows<V>(s, of, place);
#pragma unroll
      for (int i = 0; i < 2 * V; ++i) {
        s[i / V][i % V] = of[i / V][0][i % V];
#pragma unroll
        for (int slice_of = 1; slice_of < S; ++slice_of) s[i / V][i % V] += of[i / V][slice_of][i % V];
      }
    }
  }

  /// z <- (z - mean) rstd of its row. Parts of a row have their own means and squared deviations from these,
  /// which are joined: a lane's four to sixteen numbers, the quad's, the slices'.
  __device__ void normalise(float (&z)[N / 8][4], float (&rstd)[2], float eps, int place) const {
    float of_row[2][2] = {};  // mean, sum of squared deviations
    for_pairs<N>([&](int j, int half) { of_row[half][0] += z[j][2 * half] + z[j][2 * half + 1]; });
#pragma unroll
    for (int half = 0; half < 2; ++half) of_row[half][0] *= 4.0f / N;
    for_pairs<N>([&](int j, int half) {
      const float x = z[j][2 * half] - of_row[half][0], y = z[j][2 * half + 1] - of_row[half][0];
      of_row[half][1] += x * x + y * y;
    });
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
      float other[2][2];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        other[i / 2][i % 2] = __shfl_xor_sync(0xffffffffu, of_row[i / 2][i % 2], distance);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float apart = other[half][0] - of_row[half][0];
        of_row[half][0] = (of_row[half][0] + other[half][0]) * 0.5f;
        of_row[half][1] += other[half][1] + apart * apart * (static_cast<float>(N / 8 * distance));
      }
    }
    if constexpr (S > 1) {
      float of[2][S][4];
      exchange_rows<2>(of_row, of, place);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float mean = 0, square = 0;
#pragma unroll
        for (int i = 0; i < S; ++i) mean += of[half][i][0] * (1.0f / S);
#pragma unroll
        for (int i = 0; i < S; ++i)
          square += of[half][i][1] + N * (of[half][i][0] - mean) * (of[half][i][0] - mean);
        of_row[half][0] = mean, of_row[half][1] = square;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) rstd[half] = rsqrtf(of_row[half][1] * (1.0f / F) + eps);
    for_pairs<N>([&](int j, int half) {
      const float shift = -of_row[half][0] * rstd[half];
      z[j][2 * half] = fmaf(z[j][2 * half], rstd[half], shift);
      z[j][2 * half + 1] = fmaf(z[j][2 * half + 1], rstd[half], shift);
    });
  }

 private:
  /// Every slice's numbers of this lane's rows. All reads are under way before the first is used.
  template <int V>
  __device__ void exchange_rows(const float (&mine)[2][V], float (&of)[2][S][4], int place) const {
    float* at = exchange + place * place_floats;
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2 * V; ++i) at[(slice * R + row(i / V)) * 4 + i % V] = mine[i / V][i % V];
    }
    barrier.sync();
#pragma unroll
    for (int i = 0; i < 2 * S; ++i) {
      const float* from = at + (i % S * R + row(i / S)) * 4;
      if constexpr (V > 2) {
        *reinterpret_cast<float4*>(of[i / S][i % S]) = *reinterpret_cast<const float4*>(from);
      } else {
        *reinterpret_cast<float2*>(of[i / S][i % S]) = *reinterpret_cast<const float2*>(from);
      }
    }
  }
};

/// Sums over the rows of pieces, added up over many pieces in float32: a lane keeps `kept` columns of the
/// slice.
template <int N>
struct ColumnSums {
  static constexpr int values = N / 4, kept = N >= 32 ? N / 32 : 1;
  float sum[kept] = {};

  /// share: a lane's columns as in a piece, both rows added.
  __device__ void add(float (&share)[N / 8][2]) {
    float v[values];
#pragma unroll
    for (int i = 0; i < values; ++i) v[i] = share[i / 2][i % 2];
    halve<values, 16>(v);
    halve<values / 2, 8>(v);
    if constexpr (values / 4 > 1) {
      halve<values / 4, 4>(v);
    } else {
      v[0] += __shfl_xor_sync(0xffffffffu, v[0], 4);
    }
#pragma unroll
    for (int i = 0; i < kept; ++i) sum[i] += v[i];
  }
  /// Whether this lane is the one to write its columns, and which column of the slice is sum[i].
  __device__ static bool writes() { return values > 4 || lane_of_warp() / 4 % 2 == 0; }
  __device__ static int column(int i) {
    const int lane = lane_of_warp();
    int at = lane / 16 * (values / 2) + lane / 8 % 2 * (values / 4) + i;
    if constexpr (values > 4) at += lane / 4 % 2 * (values / 8);
    return at / 2 * 8 + lane % 4 * 2 + at % 2;
  }

 private:
  /// Lanes with the bit `mask` keep the upper half of the sums of both, the others the lower.
  template <int n, int mask>
  __device__ static void halve(float (&v)[values]) {
    const bool upper = (lane_of_warp() & mask) != 0;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const float give = upper ? v[i] : v[i + n / 2], keep = upper ? v[i + n / 2] : v[i];
      v[i] = keep + __shfl_xor_sync(0xffffffffu, give, mask);
    }
  }
};

/// Rows of N columns, rounded, into tile T from a row and a chunk on: four matrices at a time where the GPU
/// has an instruction for it.
template <class T, int N>
__device__ void write_rows(std::uint32_t tile, int row, int chunk, int lane, const float (&c)[N / 8][4]) {
#if __CUDA_ARCH__ >= 900
  const std::uint32_t first = T::at(tile, row + lane % 16, chunk ^ lane / 16);
#pragma unroll
  for (int n = 0; n < N / 16; ++n) {
    std::uint32_t m[4];
    pack_factor(m, c[2 * n], c[2 * n + 1]);
    store_matrices(further<T>(first, 2 * n), m[0], m[1], m[2], m[3]);
  }
#else
  const std::uint32_t first = T::at(tile, row + lane / 4, chunk) + static_cast<std::uint32_t>(lane % 4 * 4);
  for_pairs<N>([&](int j, int half) {
    write_pair(further<T>(first, j) + static_cast<std::uint32_t>(half * 8 * 128), c[j][2 * half],
               c[j][2 * half + 1]);
  });
#endif
}
/// f(j, half, the pair of tile T there), as for_pairs.
template <class T, class P, class Function>
__device__ void for_pairs_of(const P& piece, std::uint32_t tile, Function f) {
  const std::uint32_t first = T::at(tile, piece.first_row + piece.lane % 16, piece.chunk() ^ piece.lane / 16);
#pragma unroll
  for (int n = 0; n < P::N / 16; ++n) {
    std::uint32_t m[4];
    load_matrices(m, further<T>(first, 2 * n));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f(2 * n + i / 2, i % 2, float2{__uint_as_float(m[i] << 16), __uint_as_float(m[i] & 0xffff0000u)});
    }
  }
}

/// The learned scale and shift of a head's norm, float32 in shared memory: for every two columns scale,
/// scale, shift, shift, so that a lane has its four in one read.
struct NormWeights {
  float* pairs;
  __device__ void set(int column, float gamma, float beta) const {
    float* at = pairs + column / 2 * 4 + column % 2;
    at[0] = gamma, at[2] = beta;
  }
  __device__ float4 both(int column) const { return *reinterpret_cast<const float4*>(pairs + 2 * column); }
  __device__ float2 scale(int column) const { return *reinterpret_cast<const float2*>(pairs + 2 * column); }
};

/// inner_loss_gradient of rows x that are normalised already, times `rate`: g = rate rstd (h - mean(h) - x
/// mean(h x)), and means[half] = {mean(h), mean(h x)} for the way back. Takes one place.
template <class T, class P>
__device__ void loss_gradient(const P& piece, const NormWeights& norm, std::uint32_t target,
                              const float (&rstd)[2], const float (&rate)[2], float (&x)[P::N / 8][4],
                              float (&g)[P::N / 8][4], float (&means)[2][2], int place) {
  float sums[2][2] = {};
  for_pairs_of<T>(piece, target, [&](int j, int half, float2 wanted) {
    const float4 norms = norm.both(piece.column(j));
    const float a = x[j][2 * half], b = x[j][2 * half + 1];
    const float ha = (norms.x * a + (norms.z - wanted.x)) * norms.x;
    const float hb = (norms.y * b + (norms.w - wanted.y)) * norms.y;
    sums[half][0] += ha + hb;
    sums[half][1] += ha * a + hb * b;
    g[j][2 * half] = ha, g[j][2 * half + 1] = hb;
  });
  piece.sum(sums, place);
#pragma unroll
  for (int i = 0; i < 4; ++i) means[i / 2][i % 2] = sums[i / 2][i % 2] * (1.0f / P::F);
  for_pairs<P::N>([&](int j, int half) {
    const float factor = rate[half] * rstd[half];
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; ++e)
      g[j][e] = fmaf(x[j][e], -factor * means[half][1], fmaf(g[j][e], factor, -factor * means[half][0]));
  });
}

/// inner_loss_gradient_backward, of rate g: from d = dl / d(rate g), and x and `means` as loss_gradient
/// leaves them, to dz (in d), dtarget, drate, and a lane's share of dgamma, both rows added; that of dbeta is
/// -dtarget. Takes two places.
template <class T, class P>
__device__ void loss_gradient_backward(const P& piece, const NormWeights& norm, std::uint32_t target,
                                       const float (&rstd)[2], const float (&rate)[2],
                                       const float (&means)[2][2], const float (&x)[P::N / 8][4],
                                       float (&d)[P::N / 8][4], float (&dtarget)[P::N / 8][4],
                                       float (&drate)[2], float (&dgamma)[P::N / 8][2], int place) {
  constexpr float inv = 1.0f / P::F;
  // e = gamma x + beta - target, of a pair
  const auto error = [&](int j, int half) -> float2 {
    const float4 norms = norm.both(piece.column(j));
    const float2 wanted = read_pair(piece.template pair_at<T>(target, j, half));
    return {norms.x * x[j][2 * half] + (norms.z - wanted.x),
            norms.y * x[j][2 * half + 1] + (norms.w - wanted.y)};
  };
  float sums[2][3] = {};  // of d, d x, d h
  for_pairs<P::N>([&](int j, int half) {
    const float2 gamma = norm.scale(piece.column(j)), e = error(j, half);
    const float da = d[j][2 * half], db = d[j][2 * half + 1];
    sums[half][0] += da + db;
    sums[half][1] += da * x[j][2 * half] + db * x[j][2 * half + 1];
    sums[half][2] += da * (e.x * gamma.x) + db * (e.y * gamma.y);
  });
  piece.sum(sums, place);
  float mean_d[2], mean_dx[2], shrink[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float gathered = sums[half][2] - means[half][0] * sums[half][0] - means[half][1] * sums[half][1];
    drate[half] = rstd[half] * gathered;
    mean_d[half] = inv * rate[half] * rstd[half] * sums[half][0];
    mean_dx[half] = inv * rate[half] * rstd[half] * sums[half][1];
    shrink[half] = inv * rate[half] * gathered * rstd[half] * rstd[half];  // drstd rstd^2 / F
  }
  // dh = rstd dg - mean_d - x mean_dx;  dx = dh gamma^2 - rstd dg mean(h x) - h mean_dx
  float totals[2][2] = {};  // of dx, dx x
  for_pairs<P::N>([&](int j, int half) {
    const float2 gammas = norm.scale(piece.column(j)), es = error(j, half);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float gamma = i == 0 ? gammas.x : gammas.y, e = i == 0 ? es.x : es.y, a = x[j][2 * half + i];
      const float dg = rstd[half] * rate[half] * d[j][2 * half + i];
      const float dh = dg - mean_d[half] - a * mean_dx[half], de = dh * gamma;
      const float da = de * gamma - dg * means[half][1] - e * gamma * mean_dx[half];
      dgamma[j][i] = (half == 0 ? 0 : dgamma[j][i]) + dh * e + de * a;
      dtarget[j][2 * half + i] = -de;
      d[j][2 * half + i] = da;
      totals[half][0] += da;
      totals[half][1] += da * a;
    }
  });
  piece.sum(totals, place + 1);
  for_pairs<P::N>([&](int j, int half) {
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; ++e) {
      d[j][e] = rstd[half] * (d[j][e] - inv * totals[half][0] - x[j][e] * (inv * totals[half][1])) -
                shrink[half] * x[j][e];
    }
  });
}

/// inner_norm_backward with x normalised: from dy to dz, both in d, and a lane's shares of dgamma and dbeta,
/// both rows added. Takes one place.
template <class P>
__device__ void norm_backward(const P& piece, const NormWeights& norm, const float (&rstd)[2],
                              const float (&x)[P::N / 8][4], float (&d)[P::N / 8][4],
                              float (&dgamma)[P::N / 8][2], float (&dbeta)[P::N / 8][2], int place) {
  float sums[2][2] = {};
  for_pairs<P::N>([&](int j, int half) {
    const float2 gammas = norm.scale(piece.column(j));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float dy = d[j][2 * half + i], a = x[j][2 * half + i], dx = dy * (i == 0 ? gammas.x : gammas.y);
      dgamma[j][i] = (half == 0 ? 0 : dgamma[j][i]) + dy * a;
      dbeta[j][i] = (half == 0 ? 0 : dbeta[j][i]) + dy;
      d[j][2 * half + i] = dx;
      sums[half][0] += dx;
      sums[half][1] += dx * a;
    }
  });
  piece.sum(sums, place);
  for_pairs<P::N>([&](int j, int half) {
#pragma unroll
    for (int e = 2 * half; e < 2 * half + 2; ++e) {
      d[j][e] =
          rstd[half] * (d[j][e] - sums[half][0] * (1.0f / P::F) - x[j][e] * (sums[half][1] * (1.0f / P::F)));
    }
  });
}

/// Writes a piece, rounded, into tile T of F columns.
template <class T, class P>
__device__ void write_piece(const P& piece, std::uint32_t tile, const float (&c)[P::N / 8][4]) {
  write_rows<T, P::N>(tile, piece.first_row, piece.chunk(), piece.lane, c);
}
/// The same on to global memory, rows before `valid`; no other warp may read these numbers of the tile
/// meanwhile.
template <class T, class P>
__device__ void store_piece(const P& piece, std::uint32_t tile, const float (&c)[P::N / 8][4], bf16* to,
                            Index step, int valid) {
  constexpr int chunks = P::N / 8, passes = chunks / 2, pass = 32 / chunks;  // rows of a pass
  const int first = piece.first_row + piece.lane / chunks, chunk = piece.chunk() + piece.lane % chunks;
  uint4 eight[passes];
  __syncwarp();
  write_piece<T>(piece, tile, c);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < passes; ++i) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(eight[i].x), "=r"(eight[i].y), "=r"(eight[i].z), "=r"(eight[i].w)
                 : "r"(T::at(tile, first + i * pass, chunk))
                 : "memory");
  }
  to += first * step + chunk * 8;
#pragma unroll
  for (int i = 0; i < passes; ++i, to += pass * step) {
    if (first + i * pass < valid) *reinterpret_cast<uint4*>(to) = eight[i];
  }
  __syncwarp();
}

}  // namespace mttt::detail
