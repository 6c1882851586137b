// Blocks that stay on their multiprocessors through product after product of one row.
//
// One thread of a block asks for the weights of all products in their order, as far ahead as its queue in shared
// memory has room, for weights wait for nobody: while blocks tell each other a product's results, which takes
// some 2 us, the memory goes on. It asks for a few stages at a time: what blocks tell each other would queue behind
// more. The others multiply as streamed_rows.cuh does, to the bit.
//
// What blocks tell each other lies in memory that is full of a NaN before, which no result is, and is written once:
// who reads a number knows whether it is there, and nobody waits until all he wrote is seen by all. Blocks that
// are about to end a product are counted, so that none asks in vain, and often, for what is not there yet.
//
// Formula: a product is finish(norm(x) w^T); norm is RmsNorm, rounded to bf16. Block i of n takes the columns from
//          cols i / n to cols (i + 1) / n.
// Shapes:  x (depth), w (cols, depth), of a gated product (2 cols, depth).
// Units:   elements; stages in bytes.
// Errors:  none.
// Not supported: compute capability below 9.0; more than one row; depths that streamed_rows.cuh does not take.
// Source:  as streamed_rows.cuh; cooperative launches: CUDA C++ Programming Guide, Cooperative Groups.
#pragma once

#include "mttt/backend/cuda/streamed_rows.cuh"

namespace mttt::detail {

inline constexpr int resident_warps = tuning::resident_warps, resident_threads = 32 * resident_warps;

/// The queue of stages, by their bytes and their number; the most that are asked for and not yet there.
template <int stage_bytes, int n, int most>
struct ResidentQueueShape {
  static constexpr int stage = stage_bytes, stages = n, under_way = most;
};

/// finish(norm(x) weights^T), without norm where it is null.
template <int rows_depth, bool is_gated, class W>
struct ResidentProduct {
  static constexpr int depth = rows_depth;
  static constexpr bool gated = is_gated;
  const WeightRows<W>& weights;
  int cols;
  const bf16* norm = nullptr;
  float eps = 0;
};

/// How the warps that multiply share a stage: `groups` times k_warps of them, RW rows of weights each.
template <class Queue, int depth, bool gated, class W>
struct ResidentShape {
  static constexpr int P = streamed_slices(depth);
  static_assert(P > 0);
  static constexpr int k_warps = depth / streamed_slice / P, groups = resident_warps / k_warps,
                       halves = gated ? 2 : 1;
  static constexpr int group_bytes = groups * WeightRows<W>::row_bytes(depth);
  static constexpr int RW = 4 * group_bytes <= Queue::stage            ? 4
                            : gated || 2 * group_bytes <= Queue::stage ? 2
                                                                       : 1;
  static_assert(RW * group_bytes <= Queue::stage);
  static constexpr int RH = RW / halves, pairs = RH * groups;
};

template <class Queue, class W>
struct ResidentShared {
  std::uint64_t full[Queue::stages], empty[Queue::stages];
  float squares[resident_warps];
  float scales[2][WeightFormat<W>::row_scales ? resident_threads : 1];

  /// By one thread, before the block's first wait for all of its threads.
  __device__ void open() {
    for (int s = 0; s < Queue::stages; ++s) {
      barrier_init(shared_address(full + s), 1);
      barrier_init(shared_address(empty + s), resident_warps);
    }
    barrier_publish();
  }
};

/// A place in the queue of stages.
template <class Queue>
struct ResidentPlace {
  int stage = 0;
  unsigned parity = 0;
  __device__ void next() {
    if (++stage == Queue::stages) stage = 0, parity ^= 1;
  }
};

struct OwnColumns {
  int first, count;
  __device__ explicit OwnColumns(unsigned cols)
      : first(static_cast<int>(cols * blockIdx.x / gridDim.x)),
        count(static_cast<int>(cols * (blockIdx.x + 1) / gridDim.x) - first) {}
};

/// Results of rounding to bf16, and of arithmetic in float32, that are NaN are 0x7fff and 0x7fffffff.
inline constexpr std::uint8_t untold = 0xff;

template <int = 0>
__device__ void tell(bf16* to, bf16 value) {
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(to),
               "h"(reinterpret_cast<const unsigned short&>(value))
               : "memory");
}
template <int = 0>
__device__ void tell(float* to, float value) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
}
template <int = 0>
__device__ void read_told(const void* from, std::uint32_t (&words)[4]) {
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from)
               : "memory");
}
template <int = 0>
__device__ void read_told(const void* from, std::uint32_t (&words)[2]) {
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "l"(from)
               : "memory");
}
template <int = 0>
__device__ void read_told(const void* from, std::uint32_t& word) {
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
}
template <int = 0>
__device__ void read_told(const void* from, std::uint16_t& half) {
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(half) : "l"(from) : "memory");
}
/// Whether one of two numbers of bf16 is not there.
__device__ inline bool lacks_half(std::uint32_t two) {
  return (((two & 0x7fff7fffu) + 0x00010001u) & two & 0x80008000u) != 0;
}
__device__ inline bool lacks_word(std::uint32_t one) { return one == 0xffffffffu; }

extern __shared__ __align__(128) unsigned char resident_memory[];

template <int = 0>
__device__ void copy_word(std::uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

/// The thread that asks.
template <class Queue, class W>
class ResidentAsker {
 public:
  __device__ explicit ResidentAsker(ResidentShared<Queue, W>& shared) : shared_(shared) {}

  template <int depth, bool gated>
  __device__ void ask(const ResidentProduct<depth, gated, W>& product) {
    using Shape = ResidentShape<Queue, depth, gated, W>;
    const OwnColumns own(product.cols);
    for (int done = 0; done < own.count; done += Shape::pairs) {
      const int n = min(Shape::pairs, own.count - done);
      stage(Shape::halves * n * WeightRows<W>::row_bytes(depth),
            [&](std::uint32_t to, std::uint32_t barrier) {
#pragma unroll
              for (int h = 0; h < Shape::halves; ++h) {
                product.weights.ask(to, Shape::halves * Shape::pairs, h * Shape::pairs,
                                    h * product.cols + own.first + done, n, depth, barrier);
              }
            });
    }
  }
  /// The next stage, of so many bytes, which `copy` asks for.
  template <class Copy>
  __device__ void stage(int bytes, const Copy& copy) {
    // A queue's first round waits for nobody.
    barrier_wait(shared_address(shared_.empty + place_.stage), place_.parity ^ 1);
    if (asked_ < Queue::under_way) {
      ++asked_;
    } else {
      barrier_wait(shared_address(shared_.full + landing_.stage), landing_.parity);
      landing_.next();
    }
    const std::uint32_t barrier = shared_address(shared_.full + place_.stage);
    barrier_expect(barrier, bytes);
    copy(shared_address(resident_memory) + place_.stage * Queue::stage, barrier);
    place_.next();
  }

 private:
  ResidentShared<Queue, W>& shared_;
  ResidentPlace<Queue> place_, landing_;
  int asked_ = 0;  // at first, without waiting
};

/// A thread that multiplies.
template <class Queue, class W>
class ResidentBlock {
 public:
  static constexpr int threads = resident_threads;

  /// `row` has room for the longest row and for two of those that are normed, `parts` for a product's parts;
  /// `arrived` counts blocks, from 0.
  __device__ ResidentBlock(ResidentShared<Queue, W>& shared, bf16* row, float* parts, unsigned* arrived)
      : shared_(shared), row_(row), parts_(parts), arrived_(arrived) {}

  __device__ bf16* row() const { return row_; }
  __device__ float* parts() const { return parts_; }
  __device__ void sync() const { sync_consumers(threads); }

  /// Says that the block will be done with a product in a moment.
  __device__ void arrive() {
    met_ += gridDim.x;
    if (threadIdx.x == 0) asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(arrived_) : "memory");
  }
  /// Until all blocks have arrived as often as this one. What they have told may still be on its way.
  __device__ void await_others() const {
    if (threadIdx.x == 0) {
      std::uint32_t arrived;
      do read_told(arrived_, arrived);
      while (arrived < met_);
    }
    sync();
  }
  /// Whether this is the last block to leave, in thread 0: it has set the counts back.
  __device__ bool leave() const {
    if (threadIdx.x != 0) return false;
    __threadfence();
    if (atomicAdd(arrived_ + 1, 1u) + 1 != gridDim.x) return false;
    arrived_[0] = arrived_[1] = 0;
    return true;
  }

  /// The next product's row, in chunks of eight numbers: `read(at, chunk)` reads one, and says whether it lacks any.
  template <int depth, class Read>
  __device__ __forceinline__ void fetch(const Read& read) {
    constexpr int n = (depth / 8 + threads - 1) / threads;
    std::uint32_t chunk[n][4];
    bool lacks;
    do {
      lacks = false;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        const int at = static_cast<int>(threadIdx.x) + i * threads;
        if (at < depth / 8) lacks |= read(at, chunk[i]);
      }
    } while (lacks);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * threads;
      if (at < depth / 8)
        reinterpret_cast<uint4*>(row_)[at] = {chunk[i][0], chunk[i][1], chunk[i][2], chunk[i][3]};
    }
    sync();
  }
  /// A row that was there before the kernel.
  template <int depth>
  __device__ __forceinline__ void fetch_given(const bf16* from) {
    fetch<depth>([from](int at, std::uint32_t(&chunk)[4]) {
      read_told(from + 8 * at, chunk);
      return false;
    });
  }
  /// A row that blocks have told, or are about to.
  template <int depth>
  __device__ __forceinline__ void fetch_told(const bf16* from) {
    await_others();
    fetch<depth>([from](int at, std::uint32_t(&chunk)[4]) {
      read_told(from + 8 * at, chunk);
      return lacks_half(chunk[0]) || lacks_half(chunk[1]) || lacks_half(chunk[2]) || lacks_half(chunk[3]);
    });
  }

  /// Starts to read what a product needs that depends on nobody: its norm, behind the row, and its scales.
  template <int depth, bool gated>
  __device__ __forceinline__ void look_ahead(const ResidentProduct<depth, gated, W>& product) {
    constexpr int halves = gated ? 2 : 1;
    const int tid = threadIdx.x;
    if constexpr (WeightFormat<W>::row_scales) {
      const OwnColumns own(product.cols);
      if (tid < own.count) {
#pragma unroll
        for (int h = 0; h < halves; ++h)
          copy_word(shared_address(&shared_.scales[h][tid]),
                    product.weights.scales + h * product.cols + own.first + tid);
      }
    }
    if (product.norm != nullptr) {
      for (int at = tid; at < depth / 8; at += threads)
        copy_async(shared_address(row_ + depth + 8 * at), product.norm + 8 * at, true);
    }
    commit_copies();
  }

  /// Lets `prepare_row` wait for the others and fetch the row, and hands column i of the block's with its sum, or
  /// with the two of a pair, to `finish`, from thread i. The product has been looked ahead to; `next` looks ahead
  /// to the next one, after `finish`, for which the others wait.
  template <int depth, bool gated, class FetchRow, class Next, class Finish>
  __device__ __forceinline__ void product(const ResidentProduct<depth, gated, W>& product,
                                          const FetchRow& prepare_row, const Next& next,
                                          const Finish& finish) {
    using Shape = ResidentShape<Queue, depth, gated, W>;
    constexpr int P = Shape::P, RW = Shape::RW, RH = Shape::RH, pairs = Shape::pairs, halves = Shape::halves;
    const OwnColumns own(product.cols);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, k_warp = warp % Shape::k_warps,
              group = warp / Shape::k_warps, slice = k_warp * P, tid = threadIdx.x;
    prepare_row();
    LaneSums<1, P, W> lanes;
    load_slices<InShared, W, P>(row_ + slice * streamed_slice, lane, lanes.x[0]);
    await_copies_but<0>();
    if (product.norm != nullptr) {
      const float square = lanes.square(0);
      if (lane == 0) shared_.squares[warp] = square;
      sync();
      float alpha[P * 8];
      load_slices<InShared, W, P>(row_ + depth + slice * streamed_slice, lane, alpha);
      lanes.norm(0, shared_.squares, 1, Shape::k_warps, depth, product.eps, alpha);
    }
    lanes.prepare();

    const int parts_ld = own.count * halves;
    for (int done = 0; done < own.count; done += pairs, place_.next()) {
      barrier_wait(shared_address(shared_.full + place_.stage), place_.parity);
      if (done + pairs >= own.count) arrive();
      float sums[RW] = {};
      if (group < Shape::groups) {
        int stage_row[RW];
#pragma unroll
        for (int r = 0; r < RW; ++r) stage_row[r] = r / RH * pairs + group * RH + r % RH;
        lanes.template add<RW>(resident_memory + place_.stage * Queue::stage, halves * pairs, stage_row,
                               slice, depth, lane, sums);
      }
      release();
      sum_lanes<RW, 16>(sums, lane);
      constexpr int owners = 32 / RW;
      const int r = lane / owners, pair = done + group * RH + r % RH;
      if (lane % owners == 0 && group < Shape::groups && pair < own.count)
        parts_[k_warp * parts_ld + pair * halves + r / RH] = sums[0];
    }
    sync();
    if (tid < own.count) {
      float total[halves] = {};
#pragma unroll
      for (int k = 0; k < Shape::k_warps; ++k) {
#pragma unroll
        for (int h = 0; h < halves; ++h) total[h] += parts_[k * parts_ld + tid * halves + h];
      }
      if constexpr (WeightFormat<W>::row_scales) {
#pragma unroll
        for (int h = 0; h < halves; ++h)
          total[h] = __fmul_rn(total[h], shared_.scales[h][tid]);  // rounded before a sum
      }
      finish(own.first + tid, total);
    }
    next();
  }

  /// The next stage of what else the queue carries, once it is there.
  template <class Use>
  __device__ __forceinline__ void stage(const Use& use) {
    barrier_wait(shared_address(shared_.full + place_.stage), place_.parity);
    use(resident_memory + place_.stage * Queue::stage);
    release();
    place_.next();
  }

 private:
  __device__ void release() const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(shared_.empty + place_.stage));
  }

  ResidentShared<Queue, W>& shared_;
  bf16* row_;
  float* parts_;
  unsigned* arrived_;
  unsigned met_ = 0;
  ResidentPlace<Queue> place_;
};

/// Floats that a product's parts take on a GPU of so many multiprocessors.
template <class Queue, int depth, bool gated, class W>
Index resident_parts(Index cols, int processors) {
  using Shape = ResidentShape<Queue, depth, gated, W>;
  return Shape::k_warps * Shape::halves * ((cols + processors - 1) / processors);
}

}  // namespace mttt::detail
