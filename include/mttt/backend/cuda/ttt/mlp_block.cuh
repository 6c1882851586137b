// One block of the cluster that scans a head's two-layer inner model: how its planes lie, and what each warp
// has of them. For mlp.cuh and mlp_backward.cuh.
//
// Formula: ttt/inner_model.hpp.
// Shapes:  a head of F columns has `blocks` blocks, each H = 8192 / F columns of the hidden width. Planes (C,
//          H), (C, F) and (C, C) of a mini-batch are cut into 16 rows and some columns a warp, W1 (F, H) and
//          W2 (H, F) into 16 rows and 64 or 32 columns.
// Units:   elements. GELU is x / (1 + 2^y), by two approximations of the GPU of 2^-22 each: tanh.approx
//          (2^-11) would lose the small values of GELU's left tail to cancellation.
// Errors:  none.
// Not supported: compute capability below 9.0.
// Source:  ttt/inner_model.hpp.
#pragma once

#include "mttt/backend/cuda/launch.cuh"
#include "mttt/backend/cuda/ttt/mlp_rows.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt::detail::mlp {

extern __shared__ __align__(1024) unsigned char memory_of_block[];

/// GELU by tanh and its derivatives, as in math/scalar.hpp: x s, s = sigmoid(2 u) = (1 + tanh(u)) / 2.
struct FastGelu {
  float x, s, slope;  // slope: 2 du / dx
  __device__ explicit FastGelu(float at) : x(at) {
    constexpr float c = 2 * 0.79788456080286536f, cubic = 0.044715f;
    const float square = x * x;
    constexpr float fold = -1.4426950408889634f * c;
    const float e = exp2_fast(x * (fold + fold * cubic * square));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.f + e));
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

/// Where a head's tokens lie in tensors (B, T, H): first computed, as divisions cost hundreds of cycles.
struct HeadRows {
  Index first, heads;
  template <class Scan>
  __device__ HeadRows(const Scan& scan, Index head)
      : first(head / scan.heads * scan.steps * scan.heads + head % scan.heads), heads(scan.heads) {}
  __device__ Index at(Index token) const { return first + token * heads; }
};

/// One block of a head's cluster: where its planes lie, and what each of its warps has of them.
template <int width, int hidden, int mini_batch, int warps_, bool in_groups = false>
struct MlpBlock {
  static constexpr int F = width, C = mini_batch, blocks = F * hidden / 8192, H = hidden / blocks;
  static_assert(C == 16 || C == 32 || C == 64);
  static constexpr int warps = warps_, threads = 32 * warps;
  static constexpr int token_warps = C / 16, column_warps = warps / token_warps, stride = F + 8;
  /// Planes (C, N): 16 rows and so many columns a warp; warps beyond the last column have none.
  template <int N>
  static constexpr int columns = N / column_warps > 16 ? N / column_warps : 16;
  static constexpr int NH = columns<H> / 8, NF = columns<F> / 8, NC = columns<C> / 8, NW = 64 / warps;
  static_assert(F * H == 8192 && F >= 64 && H >= 64);
  /// Four warps have the 64 rows of a mini-batch, and the same 32 columns of wide planes and of weights.
  static constexpr bool groups = in_groups && C == 64 && warps == 16 && by_groups<threads>();
  /// Rows of what is a sum over the cluster are all blocks' where the cluster is two blocks: each then reads
  /// one plane of the other. Else each block has some, and gives what comes of them to all.
  static constexpr bool rows_shared_out = blocks > 2;
  static constexpr int own_rows = C / blocks;
  using Rows = RowLanes<rows_shared_out ? own_rows : C, F, threads>;
  using Hidden = float[NH][4];
  using Width = float[NF][4];
  using Square = float[NC][4];
  using Weights = float[NW][4];
  using Biases = float[2][4];  // sums of columns: 16 a warp

  int rank, warp, row, hidden_column, width_column, square_column;  // of this warp's part of a plane
  int row1, column1, row2, column2;  // of W1 (F, H) and W2 (H, F): 16 x 8 NW each
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
    if constexpr (groups) warp = __shfl_sync(0xffffffffu, warp, 0);  // known to be the same in all lanes
    row = warp % token_warps * 16;
    hidden_column = warp / token_warps * columns<H>, width_column = warp / token_warps * columns<F>;
    square_column = warp / token_warps * columns<C>;
    row1 = warp % (F / 16) * 16, column1 = warp / (F / 16) * 8 * NW;
    row2 = warp % (H / 16) * 16, column2 = warp / (H / 16) * 8 * NW;
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
  /// Always, if the columns are enough for all warps; which the compiler is to know.
  __device__ bool has_hidden() const { return column_warps * columns<H> <= H || hidden_column < H; }
  __device__ bool has_width() const { return column_warps * columns<F> <= F || width_column < F; }
  __device__ bool has_square() const { return column_warps * columns<C> <= C || square_column < C; }

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

  // What is started must be waited for (await_all) before its sums are read. Sums that are under way together
  // must all have their first numbers before the first product starts: else the compiler takes the products
  // one by one.

  /// z = b1, b1 + in W1
  __device__ void begin_first(Hidden& z) const {
    pairs(z, row, hidden_column, [&](float& a, float& b, int, int c) { a = b1[c], b = b1[c + 1]; });
  }
  __device__ void start_first(Hidden& z, Factor<C, F> in) const {
    start_all<groups, F>(z, in, w1, row, hidden_column);
  }
  __device__ void first_layer(Hidden& z, Factor<C, F> in) const {
    begin_first(z);
    start_first(z, in);
    await_all<groups>(z);
  }
  /// This block's share of b2, of b2 + in W2.
  __device__ void begin_second(Width& z) const {
    const float share = rank == 0 ? 1 : 0;  // not a choice for each number, which would be a branch each
    pairs(z, row, width_column,
          [&](float& a, float& b, int, int c) { a = share * b2[c], b = share * b2[c + 1]; });
  }
  __device__ void start_second(Width& z, Factor<C, H> in) const {
    start_all<groups, H>(z, in, w2, row, width_column);
  }
  __device__ void second_layer(Width& z, Factor<C, H> in) const {
    begin_second(z);
    start_second(z, in);
    await_all<groups>(z);
  }
  template <int NT>
  __device__ void put_plane(float (&z)[NT][4], float* plane) const {
    pairs(z, row, width_column, [&](float a, float b, int r, int c) {
      *reinterpret_cast<float2*>(plane + r * stride + c) = {a, b};
    });
  }
  /// Which row of a mini-batch this thread has.
  __device__ int row_of(const Rows& rows) const {
    return rows_shared_out ? rank * own_rows + rows.row : rows.row;
  }
  /// Rows of a plane into a tile, all of which every block has after meet_over_rows.
  __device__ void put_rows(const Rows& rows, Factor<C, F> tile, const float (&x)[Rows::count]) const {
    if constexpr (rows_shared_out) {
      rows.template push<blocks>(tile, row_of(rows), x);
    } else {
      rows.store(tile, rows.row, x);
    }
  }
  __device__ static void meet_over_rows() {
#if __CUDA_ARCH__ >= 900
    if constexpr (rows_shared_out) {
      offer_to_cluster();
      meet();
      offer_to_cluster();  // to the products that this thread starts: others have written the rows
    } else {
      sync();
    }
#endif
  }
  __device__ static void offer_to_cluster() {
    if constexpr (groups) asm volatile("fence.proxy.async;" ::: "memory");
  }
  /// The causal products of a layer's inputs, and the bias's 1, or what this block has of it: one + Xbar X^T.
  template <int K, int D>
  __device__ void causal(Square& dots, Factor<C, D> queries, Factor<C, D> keys, float one) const {
    clear(dots);
    start_causal<K>(dots, queries, keys);
    await_all<groups>(dots);
    mask(dots, one);
  }
  template <int K, int D>
  __device__ void start_causal(Square& dots, Factor<C, D> queries, Factor<C, D> keys) const {
    if (groups || square_column <= row) start_all<groups, K>(dots, queries, keys.t(), row, square_column);
  }
  __device__ void mask(Square& dots, float one) const {
    pairs(dots, row, square_column, [&](float& a, float& b, int t, int s) {
      a = s <= t ? one + a : 0;
      b = s + 1 <= t ? one + b : 0;
    });
  }
  /// -scale_t times row t: P from the causal products, dA from dP.
  __device__ void put_scaled(const Square& dots, Factor<C, 64> tile) const {
    Square scaled;
    each(scaled, [&](int i, float& x) { x = (&dots[0][0])[i]; });
    pairs(scaled, row, square_column,
          [&](float& a, float& b, int t, int) { a *= -scale[t], b *= -scale[t]; });
    put(scaled, tile, row, square_column);
  }
  __device__ void put_causal(Square& dots, float one) const {
    if (!has_square()) return;
    await_all<groups>(dots);
    mask(dots, one);
    put_scaled(dots, p);
  }
  /// z += P g, of this warp's columns from `column` on.
  template <int N, int D>
  __device__ void start_answers(float (&z)[N][4], Factor<C, D> g, int column) const {
    if constexpr (groups) {
      start_all<groups, C>(z, p, g, row, column);
    } else {
      accumulate<C>(z, p, g, row, column, 0, row + 16);
    }
  }

  /// dw += x^T g, and db = 1^T g, of a layer.
  template <class X, int R, int D>
  __device__ static void gather_gradients(Weights& dw, Biases& db, X x, Factor<R, D> g, int m, int n) {
    start_all<groups, C>(dw, x.t(), g, m, n);
    const int column = bias_column();
    clear(db);
    if (column < D) accumulate<C>(db, Ones{}, g, 0, column);
    await_all<groups>(dw);
  }
  __device__ static int bias_column() { return static_cast<int>(threadIdx.x) / 32 * 16; }
  /// f(sum, column) of a layer's D sums of columns.
  template <int D, class Fn>
  __device__ static void each_bias(Biases& db, Fn&& f) {
    const int lane = static_cast<int>(lane_again() % 32);
    if (bias_column() >= D || lane >= 4) return;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      f(db[j][0], bias_column() + 8 * j + lane * 2);
      f(db[j][1], bias_column() + 8 * j + lane * 2 + 1);
    }
  }
  /// w += factor dw, and its copy in a tile; b likewise.
  template <int R, int D>
  __device__ static void update(Weights& w, Weights& dw, Biases& db, float factor, Factor<R, D> tile,
                                float* b, int m, int n) {
    each(w, [&](int i, float& x) { x += factor * number(dw, i); });
    put(w, tile, m, n);
    each_bias<D>(db, [&](float sum, int c) { b[c] += factor * sum; });
  }

  /// A barrier of the block, after which products of groups may read what was written to tiles.
  __device__ static void sync() {
    offer();
    __syncthreads();
  }
  __device__ static void offer() {
    if constexpr (groups) offer_copies<threads>();
  }

  /// Starts to copy n rows of a tensor; the others are zeros.
  __device__ static void load(Factor<C, F> to, const bf16* from, Index step, int n) {
    constexpr int chunks = F / 8, pass = threads / chunks;
    const int thread = thread_again(), chunk = thread % chunks;
#pragma unroll
    for (int first = 0; first < C; first += pass) {
      const int r = first + thread / chunks;
      const bool in = r < n;
      if (C % pass == 0 || r < C)
        copy_async(Tile<C, F>::at(to.at, r, chunk), from + (in ? r * step : 0) + chunk * 8, in);
    }
  }
  __device__ static void load_rates(float* to, const float* from, Index step, int n) {
    const int r = thread_again();
    if (r < C) copy_number(to + r, from + (r < n ? r * step : 0), r < n);
  }
};

}  // namespace mttt::detail::mlp
