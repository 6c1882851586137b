// The codes of a chain of residual codebooks for few rows: one kernel a level.
//
// A block scores a few codes of a level against one row and leaves the best of them; each block of the next
// level first finds the best of all those and takes its vector off the row. A last launch writes the last code.
//
// Formula: code = argmax over c of r . e_c - half_norm_c, of equals the lowest; r -= e_code. See codec/rvq.hpp.
// Shapes:  residual (rows, dim), embedding (levels, card, dim), half_norm (levels, card).
// Units:   elements.
// Errors:  those of check.cuh.
// Not supported: vectors of more than 4 packs a lane, 512 floats.
// Source:  none.
#pragma once

#include "mttt/backend/cuda/few_rows.cuh"

namespace mttt::detail {

/// The best code of those that a block scored.
template <class A>
struct Candidate {
  A score;
  int code;
  __device__ bool beats(const Candidate& other) const {
    return score > other.score || (score == other.score && code < other.code);
  }
};

template <class T>
struct NearestLevel {
  const T *embedding, *half_norm;        // of this level; null after the last
  const T* earlier;                      // embedding of the level before; null at the first
  const Candidate<Wide<T>>* candidates;  // (rows, blocks) of the level before
  Candidate<Wide<T>>* found;             // of this one
  const T* residual;                     // (rows, dim) as the level before had it
  T* left;                               // as this level has it; another array than residual
  std::int32_t* code;                    // of the level before, for row 0
  Index steps, session_stride;           // of the codes
  int card, dim, blocks;
};

template <class T>
__global__ void __launch_bounds__(tuning::nearest_threads) nearest_kernel(NearestLevel<T> level) {
  using A = Wide<T>;
  constexpr int width = pack_width<T>, packs = 4, warps = tuning::nearest_threads / 32;
  constexpr int own = tuning::nearest_codes / warps;
  extern __shared__ double2 memory[];
  T* r = reinterpret_cast<T*>(memory);  // (dim)
  __shared__ Candidate<A> best[warps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, dim = level.dim;
  const int first = blockIdx.x * tuning::nearest_codes + warp * own;
  const Index row = blockIdx.y;
  start_next();
  await_inputs();

  Packed<T> e[own][packs];  // asked for before the row is known
#pragma unroll
  for (int i = 0; i < own; ++i) {
#pragma unroll
    for (int p = 0; p < packs; ++p) {
      const int k = (p * 32 + lane) * width;
      const bool inside = level.embedding != nullptr && first + i < level.card;
      e[i][p] =
          load_weights<true>(level.embedding + static_cast<Index>(first + i) * dim + k, inside ? dim - k : 0);
    }
  }
  const T* taken = nullptr;
  if (level.earlier != nullptr) {
    Candidate<A> mine{-INFINITY, level.card};
    for (int i = threadIdx.x; i < level.blocks; i += tuning::nearest_threads) {
      const Candidate<A> other = level.candidates[row * level.blocks + i];
      if (other.beats(mine)) mine = other;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const Candidate<A> other{__shfl_xor_sync(0xffffffffu, mine.score, distance),
                               __shfl_xor_sync(0xffffffffu, mine.code, distance)};
      if (other.beats(mine)) mine = other;
    }
    if (lane == 0) best[warp] = mine;
    __syncthreads();
    mine = best[0];
#pragma unroll
    for (int w = 1; w < warps; ++w) mine = best[w].beats(mine) ? best[w] : mine;
    // Scores that are not numbers beat nothing: the first code then stands for all.
    if (mine.code == level.card) mine.code = 0;
    taken = level.earlier + static_cast<Index>(mine.code) * dim;
    if (blockIdx.x == 0 && threadIdx.x == 0)
      level.code[row / level.steps * level.session_stride + row % level.steps] = mine.code;
  }
  if (level.embedding == nullptr) return;
  for (int k = threadIdx.x; k < dim; k += tuning::nearest_threads) {
    A value = wide(level.residual[row * dim + k]);
    if (taken != nullptr) value -= wide(taken[k]);
    r[k] = static_cast<T>(value);
    if (blockIdx.x == 0) level.left[row * dim + k] = r[k];
  }
  __syncthreads();
  A score[own] = {};
#pragma unroll
  for (int p = 0; p < packs; ++p) {
    const int k = (p * 32 + lane) * width;
    const Packed<T> x = load_pack<true>(r + k, dim - k);
#pragma unroll
    for (int i = 0; i < own; ++i) {
#pragma unroll
      for (int j = 0; j < width; ++j) score[i] = fma(wide(x.of[j]), wide(e[i][p].of[j]), score[i]);
    }
  }
  Candidate<A> mine{-INFINITY, level.card};
#pragma unroll
  for (int i = 0; i < own; ++i) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
      score[i] += __shfl_xor_sync(0xffffffffu, score[i], distance);
    if (first + i < level.card) {
      const Candidate<A> other{score[i] - wide(level.half_norm[first + i]), first + i};
      if (other.beats(mine)) mine = other;
    }
  }
  __syncthreads();  // best has been read
  if (lane == 0) best[warp] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int w = 1; w < warps; ++w) mine = best[w].beats(mine) ? best[w] : mine;
    level.found[row * level.blocks + blockIdx.x] = mine;
  }
}

/// False, and nothing done, for what it does not take.
template <class T, class B>
bool nearest_levels(B& be, const Launcher& launch, const T* embedding, const T* half_norm, Index levels,
                    Index card, Index dim, T* residual, Index rows, std::int32_t* codes, Index steps,
                    Index session_stride) {
  if (rows > tuning::nearest_rows || dim % pack_width<T> != 0 || dim > 4 * 32 * pack_width<T> ||
      !whole_packs(embedding, 0))
    return false;
  const auto scope = be.scope();
  const Index blocks = (card + tuning::nearest_codes - 1) / tuning::nearest_codes;
  T* rest[2] = {residual, be.template make<T, dyn>(rows * dim).data()};
  const Index bytes = rows * blocks * static_cast<Index>(sizeof(Candidate<Wide<T>>));
  Candidate<Wide<T>>* found[2];
  for (auto*& f : found)
    f = reinterpret_cast<Candidate<Wide<T>>*>(be.template make<std::byte, dyn>(bytes).data());
  for (Index q = 0; q <= levels; ++q) {
    const bool last = q == levels;
    const NearestLevel<T> level{last ? nullptr : embedding + q * card * dim,
                                last ? nullptr : half_norm + q * card,
                                q == 0 ? nullptr : embedding + (q - 1) * card * dim,
                                found[(q + 1) % 2],
                                found[q % 2],
                                rest[q % 2],
                                rest[(q + 1) % 2],
                                q == 0 ? nullptr : codes + (q - 1) * steps,
                                steps,
                                session_stride,
                                static_cast<int>(card),
                                static_cast<int>(dim),
                                static_cast<int>(blocks)};
    launch("a level of codes", nearest_kernel<T>,
           dim3(last ? 1u : static_cast<unsigned>(blocks), static_cast<unsigned>(rows)),
           tuning::nearest_threads, dim * static_cast<Index>(sizeof(T)), level);
  }
  return true;
}

}  // namespace mttt::detail
