// TTT-MLP on Hopper: the scan of a head's two-layer inner model in one kernel, forward.
//
// A head is the work of a cluster of blocks, each with a slice of 8192 / F columns of the hidden width: two blocks
// of 128 columns for heads of 64, eight of 64 for heads of 128. Why: the float32 weights (128 KB, or 512 KB) then
// fit into the registers of a block's 8 or 16 warps, and their bf16 copies beside the planes of a
// mini-batch into shared memory; 64 heads of one session fill the card. What belongs to the hidden width
// stays in its block: W1, b1, W2, Z1, X2, G1, Zbar1. Sums over it meet twice a mini-batch, by reads of the
// other blocks' shared memory in the order of their ranks: Z2, and Zbar2, whose rows the blocks then share
// out. Xbar2 X2^T is a sum over the hidden width too, but what it leads to is linear in it: each block
// multiplies its own part by G2, and the parts meet in Zbar2.
//
// Formula: ttt/dual.hpp, two layers. Rates go to the gradients: Gl = lr G, which G1 inherits from G2; then
//          P[t, s] = -scale_t (1 + Xbar[t] . X[s]) for s <= t,  Zbar = Xbar W + b + P Gl,
//          W <- W - scale_C X^T Gl, a product into fresh sums, so that a scale of 0 changes nothing.
// Shapes:  ttt/dual.hpp; a checkpoint every `group` mini-batches, (groups, B, H, size).
// Units:   elements. bf16 are the operands of tensor cores, and the storage; all else is float32. GELU is
//          x / (1 + 2^y), by two approximations of the GPU of 2^-22 each: tanh.approx (2^-11) would lose
//          the small values of GELU's left tail to cancellation.
// Errors:  those of check.cuh.
// Not supported: compute capability below 9.0; hidden widths other than 4 F; tensors off 16-byte boundaries.
// Source:  ttt/dual.hpp is the reference; PTX ISA: mma, barrier.cluster, mapa.
#pragma once

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/mma.cuh"

namespace mttt::detail::mlp {

extern __shared__ __align__(1024) unsigned char memory_of_block[];

/// This thread's lane, as if it were another one each time: else what follows from it, the addresses of all planes
/// of a loop, is kept in registers.
__device__ inline int lane_again() {
  int lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));
  return lane;
}

/// A tile as a factor of products: its element (i, j) is the factor's (i, j), or (j, i) if it is turned.
template <int R, int D, bool turned = false>
struct Factor {
  std::uint32_t at;

  static constexpr int bytes = Tile<R, D>::bytes;
  __device__ Factor<R, D, !turned> t() const { return {at}; }
  /// The i-th of several that follow each other.
  __device__ Factor stage(Index i) const { return {at + static_cast<std::uint32_t>(i * bytes)}; }
  /// Address of the pair at (row, column) of the tile.
  __device__ std::uint32_t pair(int row, int column) const {
    return Tile<R, D>::at(at, row, column / 8) + column % 8 * 2;
  }
  /// 16 x 16 at (m, k) of a left factor, at (k, n) of a right one.
  __device__ void left(std::uint32_t (&f)[4], int m, int k, int lane) const {
    turned ? load_transposed(f, piece<true>(k, m, lane)) : load_matrices(f, piece<false>(m, k, lane));
  }
  __device__ void right(std::uint32_t (&f)[4], int k, int n, int lane) const {
    turned ? load_matrices(f, piece<true>(n, k, lane)) : load_transposed(f, piece<false>(k, n, lane));
  }

 private:
  /// What this lane tells of four 8 x 8 matrices from (row, column) on, by columns of two or by rows of two.
  template <bool by_rows>
  __device__ std::uint32_t piece(int row, int column, int lane) const {
    const int down = by_rows ? lane % 8 + lane / 16 * 8 : lane % 16;
    const int right = by_rows ? lane / 8 % 2 : lane / 16, chunk = column / 8;
    return at + static_cast<std::uint32_t>((row + down) * 128 + chunk / 8 * (R * 128) +
                                           (chunk % 8 ^ right ^ down % 8) * 16);
  }
};

/// Rows of ones: products with it are sums of columns.
struct Ones {
  __device__ void left(std::uint32_t (&to)[4], int, int, int) const {
    to[0] = to[1] = to[2] = to[3] = 0x3f803f80u;
  }
};

/// c += a b over K, of 16 MT rows from m and 8 NT columns from n on; of K only [first, end), which spares what a
/// triangle makes zero.
template <int K, int MT, int NT, class A, class B>
__device__ __forceinline__ void accumulate(float (&c)[MT][NT][4], const A& a, const B& b, int m, int n,
                                           int first = 0, int end = K) {
  static_assert(NT % 2 == 0);
  const int lane = lane_again();
#pragma unroll
  for (int k = 0; k < K; k += 16) {
    if (k < first || k >= end) continue;
    std::uint32_t left[MT][4];
#pragma unroll
    for (int i = 0; i < MT; ++i) a.left(left[i], m + 16 * i, k, lane);
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      std::uint32_t right[4];
      b.right(right, k, n + 8 * j, lane);
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        multiply(c[i][j], left[i], right[0], right[1]);
        multiply(c[i][j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

/// f(a, b, row, column) of each two neighbours in such sums.
template <int MT, int NT, class Fn>
__device__ __forceinline__ void pairs(float (&c)[MT][NT][4], int m, int n, Fn&& f) {
  const int lane = lane_again();
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        f(c[i][j][2 * half], c[i][j][2 * half + 1], m + 16 * i + 8 * half + lane / 4,
          n + 8 * j + lane % 4 * 2);
      }
    }
  }
}
template <int MT, int NT>
__device__ __forceinline__ void clear(float (&c)[MT][NT][4]) {
#pragma unroll
  for (int i = 0; i < MT * NT * 4; ++i) (&c[0][0][0])[i] = 0;
}
/// c *= factor
template <int MT, int NT>
__device__ __forceinline__ void multiply_by(float (&c)[MT][NT][4], float factor) {
#pragma unroll
  for (int i = 0; i < MT * NT * 4; ++i) (&c[0][0][0])[i] *= factor;
}

__device__ inline void store_shared(std::uint32_t at, std::uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}
__device__ inline std::uint32_t load_shared(std::uint32_t at) {
  std::uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}
__device__ inline float low_of(std::uint32_t both) { return __uint_as_float(both << 16); }
__device__ inline float high_of(std::uint32_t both) { return __uint_as_float(both & 0xffff0000u); }

/// Sums into a tile, rounded.
template <int MT, int NT, int R, int D>
__device__ __forceinline__ void put(float (&c)[MT][NT][4], Factor<R, D> tile, int m, int n) {
  pairs(c, m, n, [&](float a, float b, int row, int column) {
    store_shared(tile.pair(row, column), pack_bf16(a, b));
  });
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ inline int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void await_cluster() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/// x += n numbers at the same place of the shared memory of block `rank`.
template <int n>
__device__ void add_of_block(float* x, std::uint32_t at, int rank) {
  std::uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
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
#endif

/// GELU by tanh and its derivatives, as in math/scalar.hpp: x s, s = sigmoid(2 u) = (1 + tanh(u)) / 2.
struct FastGelu {
  float x, s, slope;  // slope: 2 du / dx
  __device__ explicit FastGelu(float at) : x(at) {
    constexpr float c = 2 * 0.79788456080286536f, cubic = 0.044715f;
    const float square = x * x;
    const float e = exp2_fast(-1.4426950408889634f * (x * (c + c * cubic * square)));
    s = __fdividef(1.f, 1.f + e);
    slope = c + 3 * c * cubic * square;
  }
  __device__ float f() const { return x * s; }
  __device__ float df() const { return s + x * s * (1 - s) * slope; }
  __device__ float ddf() const {
    constexpr float c = 2 * 0.79788456080286536f, cubic = 0.044715f;
    const float ds = s * (1 - s) * slope;
    return 2 * ds + x * (ds * (1 - 2 * s) * slope + s * (1 - s) * (6 * c * cubic) * x);
  }
};

/// R rows of F numbers shared out among threads: as many lanes of one warp a row as there are.
template <int R, int F, int threads>
struct RowLanes {
  static constexpr int lanes = threads / R < 32 ? threads / R : 32, count = F / lanes,
                       pack = count < 4 ? count : 4;
  static_assert(pack % 2 == 0);
  int row, lane;
  __device__ RowLanes()
      : row(static_cast<int>(threadIdx.x) / lanes), lane(static_cast<int>(threadIdx.x) % lanes) {}
  __device__ bool active() const { return row < R; }
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
  template <int TR, int D>
  __device__ void store(Factor<TR, D> tile, const float (&x)[count]) const {
#pragma unroll
    for (int i = 0; i < count; i += 2) store_shared(tile.pair(row, column(i)), pack_bf16(x[i], x[i + 1]));
  }
  __device__ static float at(const std::uint32_t (&raw)[count / 2], int i) {
    return i % 2 == 0 ? low_of(raw[i / 2]) : high_of(raw[i / 2]);
  }
  /// The sum over the cluster of row `of` of a plane of floats.
  template <int blocks>
  __device__ void gather(float (&x)[count], const float* plane, int of) const {
#if __CUDA_ARCH__ >= 900
#pragma unroll
    for (int i = 0; i < count; ++i) x[i] = 0;
#pragma unroll(blocks <= 2 ? blocks : 1)
    for (int rank = 0; rank < blocks; ++rank) {
#pragma unroll
      for (int i = 0; i < count; i += pack)
        add_of_block<pack>(x + i, shared_address(plane + of * (F + 8) + column(i)), rank);
    }
#endif
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
    const float rstd = normalise(z, eps);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int c = column(i);
      g[i] = (gamma[c] * z[i] + beta[c] - at(target, i)) * gamma[c];
    }
    const float mean_h = mean([&](int i) { return g[i]; }),
                mean_hx = mean([&](int i) { return g[i] * z[i]; });
#pragma unroll
    for (int i = 0; i < count; ++i) g[i] = rstd * (g[i] - mean_h - z[i] * mean_hx);
    return rstd;
  }
};

/// Warps of a block.
constexpr int mlp_warps(int mini_batch) { return mini_batch == 16 ? 8 : 16; }

/// One block of a head's cluster: where its planes lie, and what each of its warps has of them.
template <int width, int hidden, int mini_batch>
struct MlpBlock {
  static constexpr int F = width, C = mini_batch, blocks = F * hidden / 8192, H = hidden / blocks;
  static_assert(C == 16 || C == 32 || C == 64);
  static constexpr int warps = mlp_warps(C), threads = 32 * warps;
  static constexpr int token_warps = C / 16, column_warps = warps / token_warps, stride = F + 8;
  /// Planes (C, N): 16 rows and so many columns a warp; warps beyond the last column have none.
  template <int N>
  static constexpr int columns = N / column_warps > 16 ? N / column_warps : 16;
  static constexpr int NH = columns<H> / 8, NF = columns<F> / 8, NC = columns<C> / 8, NW = 32 / warps;
  using Rows = RowLanes<C, F, threads>;
  using Hidden = float[1][NH][4];
  using Width = float[1][NF][4];
  using Square = float[1][NC][4];
  using Weights = float[2][NW][4];
  using Biases = float[1][NW][4];

  int rank, warp, row, hidden_column, width_column, square_column;  // of this warp's part of a plane
  int row1, column1, row2, column2;  // of W1 (F, H) and W2 (H, F): 32 x 8 NW each
  Factor<F, H> w1;
  Factor<H, F> w2;
  Factor<C, H> x2, g1, xbar;
  Factor<C, F> g2;
  Factor<C, 64> p;  // its first C columns
  float *part, *b1, *b2, *gamma, *beta, *scale;

  /// Lays out what both passes have; returns what follows.
  __device__ unsigned char* place(unsigned char* memory) {
#if __CUDA_ARCH__ >= 900
    rank = cluster_rank();
#endif
    warp = static_cast<int>(threadIdx.x) / 32;
    row = warp % token_warps * 16;
    hidden_column = warp / token_warps * columns<H>, width_column = warp / token_warps * columns<F>;
    square_column = warp / token_warps * columns<C>;
    row1 = warp % (F / 32) * 32, column1 = warp / (F / 32) * 8 * NW;
    row2 = warp % (H / 32) * 32, column2 = warp / (H / 32) * 8 * NW;
    take(memory, w1), take(memory, w2), take(memory, x2), take(memory, g1), take(memory, xbar),
        take(memory, g2);
    take(memory, p);
    take(memory, part, C * stride);
    take(memory, b1, H), take(memory, b2, F), take(memory, gamma, F), take(memory, beta, F);
    take(memory, scale, C);
    return memory;
  }
  static constexpr int placed =
      2 * F * H * 2 + 3 * C * H * 2 + C * F * 2 + C * 128 + (C * stride + H + 3 * F + C) * 4;
  template <int R, int D>
  __device__ static void take(unsigned char*& memory, Factor<R, D>& tile) {
    tile.at = shared_address(memory);
    memory += Factor<R, D>::bytes;
  }
  __device__ static void take(unsigned char*& memory, float*& array, int n) {
    array = reinterpret_cast<float*>(memory);
    memory += n * 4;
  }
  __device__ bool has_hidden() const { return hidden_column < H; }
  __device__ bool has_width() const { return width_column < F; }
  __device__ bool has_square() const { return square_column < C; }

  // A head's flat array: W1 b1 W2 b2.
  __device__ Index at1(int r, int c) const { return r * hidden + rank * H + c; }
  __device__ Index at2(int r, int c) const { return (F + 1) * hidden + (rank * H + r) * F + c; }
  __device__ Index bias1(int c) const { return F * hidden + rank * H + c; }
  __device__ Index bias2(int c) const { return (2 * F + 1) * hidden + c; }
  static constexpr Index size = (2 * F + 1) * hidden + F;

  /// Biases into shared memory, weights into registers.
  __device__ void load_biases(const float* flat) const {
    for (int i = threadIdx.x; i < H; i += threads) b1[i] = flat[bias1(i)];
    for (int i = threadIdx.x; i < F; i += threads) b2[i] = flat[bias2(i)];
  }
  __device__ void load_weights(const float* flat, Weights& v1, Weights& v2) const {
    const auto read = [&](float& a, float& b, Index from) {
      const float2 two = *reinterpret_cast<const float2*>(flat + from);
      a = two.x, b = two.y;
    };
    pairs(v1, row1, column1, [&](float& a, float& b, int r, int c) { read(a, b, at1(r, c)); });
    pairs(v2, row2, column2, [&](float& a, float& b, int r, int c) { read(a, b, at2(r, c)); });
  }
  /// The barrier that made the biases final lies before.
  __device__ void store_state(float* flat, Weights& v1, Weights& v2) const {
    store_weights1(flat, v1);
    store_weights2(flat, v2);
    for (int i = threadIdx.x; i < H; i += threads) flat[bias1(i)] = b1[i];
    if (rank == 0) {
      for (int i = threadIdx.x; i < F; i += threads) flat[bias2(i)] = b2[i];
    }
  }
  __device__ void store_weights1(float* flat, Weights& v1) const {
    pairs(v1, row1, column1, [&](float a, float b, int r, int c) {
      *reinterpret_cast<float2*>(flat + at1(r, c)) = {a, b};
    });
  }
  __device__ void store_weights2(float* flat, Weights& v2) const {
    pairs(v2, row2, column2, [&](float a, float b, int r, int c) {
      *reinterpret_cast<float2*>(flat + at2(r, c)) = {a, b};
    });
  }

  /// z = b1 + in W1
  __device__ void first_layer(Hidden& z, Factor<C, F> in) const {
    pairs(z, row, hidden_column, [&](float& a, float& b, int, int c) { a = b1[c], b = b1[c + 1]; });
    accumulate<F>(z, in, w1, row, hidden_column);
  }
  /// This block's share of b2 + in W2.
  __device__ void second_layer(Width& z, Factor<C, H> in) const {
    pairs(z, row, width_column,
          [&](float& a, float& b, int, int c) { a = rank == 0 ? b2[c] : 0, b = rank == 0 ? b2[c + 1] : 0; });
    accumulate<H>(z, in, w2, row, width_column);
  }
  template <int NT>
  __device__ void put_plane(float (&z)[1][NT][4], float* plane) const {
    pairs(z, row, width_column, [&](float a, float b, int r, int c) {
      *reinterpret_cast<float2*>(plane + r * stride + c) = {a, b};
    });
  }
  /// The causal products of a layer's inputs, and the bias's 1, or what this block has of it: one + Xbar X^T.
  template <int K, int D>
  __device__ void causal(Square& dots, Factor<C, D> queries, Factor<C, D> keys, float one) const {
    clear(dots);
    if (square_column <= row) accumulate<K>(dots, queries, keys.t(), row, square_column);
    pairs(dots, row, square_column, [&](float& a, float& b, int t, int s) {
      a = s <= t ? one + a : 0;
      b = s + 1 <= t ? one + b : 0;
    });
  }
  /// -scale_t times row t: P from the causal products, dA from dP.
  __device__ void put_scaled(const Square& dots, Factor<C, 64> tile) const {
    Square scaled;
#pragma unroll
    for (int i = 0; i < 4 * NC; ++i) (&scaled[0][0][0])[i] = (&dots[0][0][0])[i];
    pairs(scaled, row, square_column,
          [&](float& a, float& b, int t, int) { a *= -scale[t], b *= -scale[t]; });
    put(scaled, tile, row, square_column);
  }
  template <int K, int D>
  __device__ void put_causal(Factor<C, D> queries, Factor<C, D> keys, float one) const {
    if (!has_square()) return;
    Square dots;
    causal<K>(dots, queries, keys, one);
    put_scaled(dots, p);
  }

  /// dw = x^T g, db = 1^T g of a layer; db in the first lanes of the warps whose rows begin at 0.
  template <class X, class G>
  __device__ static void gathered(Weights& dw, Biases& db, X x, G g, int m, int n) {
    clear(dw), clear(db);
    accumulate<C>(dw, x.t(), g, m, n);
    if (m == 0) accumulate<C>(db, Ones{}, g, 0, n);
  }
  /// f(sum, column) of the sums of columns.
  template <class Fn>
  __device__ static void each_bias(Biases& db, int m, int n, Fn&& f) {
    const int lane = threadIdx.x % 32;
    if (m != 0 || lane >= 4) return;
#pragma unroll
    for (int j = 0; j < NW; ++j) {
      f(db[0][j][0], n + 8 * j + lane * 2);
      f(db[0][j][1], n + 8 * j + lane * 2 + 1);
    }
  }
  /// w += factor dw, and its copy in a tile; b likewise.
  template <int R, int D>
  __device__ static void update(Weights& w, Weights& dw, Biases& db, float factor, Factor<R, D> tile,
                                float* b, int m, int n) {
#pragma unroll
    for (int i = 0; i < 8 * NW; ++i) (&w[0][0][0])[i] += factor * (&dw[0][0][0])[i];
    put(w, tile, m, n);
    each_bias(db, m, n, [&](float sum, int c) { b[c] += factor * sum; });
  }

  /// Starts to copy n rows of a tensor; the others are zeros.
  __device__ static void load(Factor<C, F> to, const bf16* from, Index step, int n) {
    constexpr int chunks = F / 8;
    for (int i = threadIdx.x; i < C * chunks; i += threads) {
      const int r = i / chunks, chunk = i % chunks;
      const bool in = r < n;
      copy_async(Tile<C, F>::at(to.at, r, chunk), from + (in ? r * step : 0) + chunk * 8, in);
    }
  }
  __device__ static void load_rates(float* to, const float* from, Index step, int n) {
    const int r = threadIdx.x;
    if (r >= C) return;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to + r)),
                 "l"(from + (r < n ? r * step : 0)), "r"(r < n ? 4 : 0)
                 : "memory");
  }
};

template <int F, int hidden, int C>
inline constexpr int cluster_blocks = MlpBlock<F, hidden, C>::blocks;

template <int F, int hidden, int C>
inline constexpr int forward_shared = MlpBlock<F, hidden, C>::placed + 4 * C* F * 2 +
                                      (C * MlpBlock<F, hidden, C>::stride + 2 * C) * 4;

template <int F, int hidden, int C, class Job>
__global__ void __cluster_dims__(cluster_blocks<F, hidden, C>, 1, 1) __launch_bounds__(32 * mlp_warps(C), 1)
    forward_kernel(Job job) {
#if __CUDA_ARCH__ >= 900
  using Block = MlpBlock<F, hidden, C>;
  constexpr int blocks = Block::blocks, H = Block::H, own = C / blocks;
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
  const Index head = blockIdx.x / blocks, step = scan.heads * F;
  const auto load = [&](Index m, int stage) {
    const int n = static_cast<int>(scan.tokens(m));
    Block::load(keys.stage(stage), scan.k + scan.row_at(head, m, 0), step, n);
    Block::load(queries.stage(stage), scan.q + scan.row_at(head, m, 0), step, n);
    Block::load_rates(rates + stage * C, scan.lr + scan.lr_at(head, m, 0), scan.heads, n);
    commit_copies();
  };
  const Index count = scan.mini_batches();
  if (count > 0) load(0, 0);
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

  const typename Block::Rows rows;
  const RowLanes<own, F, Block::threads> own_rows;
  const int answer = block.rank * own + own_rows.row;
  for (Index m = 0; m < count; ++m) {
    const int n = static_cast<int>(scan.tokens(m)), stage = static_cast<int>(m % 2);
    const Factor<C, F> k = keys.stage(stage), q = queries.stage(stage);
    await_copies();
    __syncthreads();  // the copies, and the weights that the mini-batch before has made, are there
    if (m % scan.group == 0) block.store_state(scan.checkpoint(m / scan.group, head), w1, w2);
    if (m + 1 < count) load(m + 1, stage ^ 1);
    std::uint32_t target[Block::Rows::count / 2];
    rows.load(target, scan.target + scan.row_at(head, m, 0) + rows.row * step, rows.row < n);

    typename Block::Hidden z, slope;
    if (block.has_hidden()) {
      block.first_layer(z, k);
#pragma unroll
      for (int i = 0; i < Block::NH * 4; ++i) {
        const FastGelu gelu((&z[0][0][0])[i]);
        (&z[0][0][0])[i] = gelu.f(), (&slope[0][0][0])[i] = gelu.df();
      }
      put(z, block.x2, block.row, block.hidden_column);
    }
    __syncthreads();
    if (block.has_width()) {
      typename Block::Width y;
      block.second_layer(y, block.x2);
      block.put_plane(y, block.part);
    }
    arrive_at_cluster();
    block.template put_causal<F>(q, k, 1);
    await_cluster();
    {
      float g[Block::Rows::count], y[Block::Rows::count];
      rows.template gather<blocks>(y, block.part, rows.row);
      rows.loss_gradient(g, y, target, block.gamma, block.beta, scan.eps);
      const float rate = rates[stage * C + rows.row];
#pragma unroll
      for (int i = 0; i < Block::Rows::count; ++i) g[i] *= rate;
      rows.store(block.g2, g);
    }
    __syncthreads();
    if (block.has_hidden()) {
      typename Block::Hidden g;
      clear(g);
      accumulate<F>(g, block.g2, block.w2.t(), block.row, block.hidden_column);
#pragma unroll
      for (int i = 0; i < Block::NH * 4; ++i) (&g[0][0][0])[i] *= (&slope[0][0][0])[i];
      put(g, block.g1, block.row, block.hidden_column);
      block.first_layer(z, q);
    }
    __syncthreads();  // all products with W1 are done, too
    typename Block::Weights learned;
    typename Block::Biases learned_bias;
    if (n == C) {
      Block::gathered(learned, learned_bias, k, block.g1, block.row1, block.column1);
      Block::update(w1, learned, learned_bias, -block.scale[C - 1], block.w1, block.b1, block.row1,
                    block.column1);
    }
    if (block.has_hidden()) {
      accumulate<C>(z, block.p, block.g1, block.row, block.hidden_column, 0, block.row + 16);
#pragma unroll
      for (int i = 0; i < Block::NH * 4; ++i) (&z[0][0][0])[i] = FastGelu((&z[0][0][0])[i]).f();
      put(z, block.xbar, block.row, block.hidden_column);
    }
    __syncthreads();
    block.template put_causal<H>(block.xbar, block.x2, block.rank == 0 ? 1 : 0);
    typename Block::Width y;
    if (block.has_width()) block.second_layer(y, block.xbar);
    __syncthreads();
    if (block.has_width()) {
      accumulate<C>(y, block.p, block.g2, block.row, block.width_column, 0, block.row + 16);
      block.put_plane(y, answers);
    }
    arrive_at_cluster();
    if (n == C) Block::gathered(learned, learned_bias, block.x2, block.g2, block.row2, block.column2);
    await_cluster();  // all products with W2 are done, too
    if (n == C) {
      Block::update(w2, learned, learned_bias, -block.scale[C - 1], block.w2, block.b2, block.row2,
                    block.column2);
    }
    if (own_rows.active()) {
      float o[RowLanes<own, F, Block::threads>::count];
      own_rows.template gather<blocks>(o, answers, answer);
      own_rows.normalise(o, scan.eps);
#pragma unroll
      for (int i = 0; i < RowLanes<own, F, Block::threads>::count; i += 2) {
        const int c = own_rows.column(i);
        const std::uint32_t query = load_shared(q.pair(answer, c));
        o[i] = low_of(query) + (block.gamma[c] * o[i] + block.beta[c]);
        o[i + 1] = high_of(query) + (block.gamma[c + 1] * o[i + 1] + block.beta[c + 1]);
      }
      if (answer < n) own_rows.store(job.out + scan.row_at(head, m, answer), o);
    }
  }
  __syncthreads();  // the biases are final
  block.store_state(weights, w1, w2);
  if (job.gradients != nullptr) {
    float* const to = job.gradients + head * Block::size;
    typename Block::Weights learned;
    typename Block::Biases learned_bias;
    const bool open = scan.steps % C != 0;
    clear(learned), clear(learned_bias);
    if (open)
      Block::gathered(learned, learned_bias, keys.stage((count + 1) % 2), block.g1, block.row1,
                      block.column1);
    block.store_weights1(to, learned);
    Block::each_bias(learned_bias, block.row1, block.column1,
                     [&](float sum, int c) { to[block.bias1(c)] = sum; });
    if (open) Block::gathered(learned, learned_bias, block.x2, block.g2, block.row2, block.column2);
    block.store_weights2(to, learned);
    Block::each_bias(learned_bias, block.row2, block.column2, [&](float sum, int c) {
      if (block.rank == 0) to[block.bias2(c)] = sum;
    });
  }
  arrive_at_cluster();
  await_cluster();  // no block leaves while others read its memory
#endif
}

/// Queues a kernel of clusters, one a head.
template <class... P, class... A>
void start(const Launcher& launch, void (*kernel)(P...), Index blocks, unsigned threads, int shared,
           A&&... arguments) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "asking for shared memory");
  launch("starting a scan of TTT-MLP", kernel, static_cast<unsigned>(blocks), threads, shared,
         std::forward<A>(arguments)...);
}

}  // namespace mttt::detail::mlp

namespace mttt::detail {

/// Whether all GPUs that this program is compiled for have clusters. nvcc names them for the host's code, too.
constexpr bool compiled_for_clusters() {
#ifdef __CUDA_ARCH_LIST__
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    if (architecture < 900) return false;
  }
#endif
  return true;
}

template <Index width, Index hidden, Index mini_batch>
inline constexpr bool ttt_mlp_takes = width == 64 && hidden == 256 &&
                                      (mini_batch == 16 || mini_batch == 32 || mini_batch == 64) &&
                                      compiled_for_clusters();

/// `Job` is TttForward<bf16, float> of ttt/dual.hpp, its pointers on 16-byte boundaries.
template <int F, int hidden, int C, class Job>
void ttt_mlp_run_forward(const Launcher& launch, const Job& job) {
  const Index heads = job.scan.batch * job.scan.heads;
  if (heads == 0) return;
  mlp::start(launch, mlp::forward_kernel<F, hidden, C, Job>, heads * mlp::cluster_blocks<F, hidden, C>,
             32 * mlp::mlp_warps(C), mlp::forward_shared<F, hidden, C>, job);
}

}  // namespace mttt::detail
