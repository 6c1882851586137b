// CudaTeam: a row's team on the GPU, one thread block.
//
// Member m of a team of M takes the elements m, m + M, m + 2M, ... of each loop, in `map` and `sum` over arrays
// the packs of 16 bytes of that number (pack.cuh); what one member writes, another reads only after
// team.sync(). sum, max and argmax wait for the team before they read anything, and
// give the same bits to all members and in every run: partial results meet in a fixed order.
//
// Formula, shapes: see backend/backend.hpp.
// Units:   elements.
// Errors:  none.
// Not supported: teams of more than 1024 or of a number of threads that is no multiple of 32; products by
//          tensor cores.
// Source:  warp shuffles: CUDA C++ Programming Guide.
#pragma once

#include "mttt/backend/cuda/pack.cuh"
#include "mttt/backend/member_matmul.hpp"
#include "mttt/core/tensor.hpp"

namespace mttt {

/// Part of a team: a warp. Its members go step by step, so that a sum costs five shuffles.
class CudaWarp {
 public:
  template <class F>
  __device__ void for_each(Index n, const F& f) const {
    for (Index i = threadIdx.x % 32; i < n; i += 32) f(i);
  }
  template <class A, class F>
  __device__ A sum(Index n, const F& f) const {
    A part = 0;
    for (Index i = threadIdx.x % 32; i < n; i += 32) part += f(i);
    for (int distance = 16; distance > 0; distance /= 2)
      part += __shfl_xor_sync(0xffffffffu, part, distance);  // both of a pair add the same two: the same bits
    return part;
  }
  __device__ void sync() const { __syncwarp(); }
  __device__ bool leader() const { return threadIdx.x % 32 == 0; }
};

class CudaTeam {
 public:
  __device__ explicit CudaTeam(void* scratch) : scratch_(scratch) {}

  template <class F, class Out, class... In>
  __device__ void map(Index n, const F& f, Out* out, const In*... in) const {
    detail::map_packs(n, threadIdx.x, blockDim.x, f, out, in...);
  }
  template <class F>
  __device__ void for_each(Index n, const F& f) const {
    for (Index i = threadIdx.x; i < n; i += blockDim.x) f(i);
  }

  template <class A, class F>
  __device__ A sum(Index n, const F& f) const {
    sync();
    A part = 0;
    for (Index i = threadIdx.x; i < n; i += blockDim.x) part += f(i);
    return reduce(part, Plus{});
  }
  template <class A, class F, class... In>
  __device__ A sum(Index n, const F& f, const In*... in) const requires(sizeof...(In) > 0) {
    sync();
    A part = 0;
    constexpr int width = detail::pack_width<In...>;
    if (detail::in_packs<width>(n, in...)) {
      for (Index i = threadIdx.x; i < n / width; i += blockDim.x) {
        [&](const detail::Pack<In, width>&... packs) {
          for (int k = 0; k < width; ++k) part += f(wide(packs.of[k])...);
        }(detail::pack<width>(in, i)...);
      }
    } else {
      for (Index i = threadIdx.x; i < n; i += blockDim.x) part += f(wide(in[i])...);
    }
    return reduce(part, Plus{});
  }
  template <class A, class F>
  __device__ A max(Index n, const F& f) const {
    sync();
    A part = f(first(n));
    for (Index i = threadIdx.x + blockDim.x; i < n; i += blockDim.x)
      part = Larger{}(part, static_cast<A>(f(i)));
    return reduce(part, Larger{});
  }
  template <class A, class F>
  __device__ Index argmax(Index n, const F& f) const {
    sync();
    Place<A> part{static_cast<A>(f(first(n))), first(n)};
    for (Index i = threadIdx.x + blockDim.x; i < n; i += blockDim.x)
      part = Earlier{}(part, Place<A>{static_cast<A>(f(i)), i});
    return reduce(part, Earlier{}).index;
  }

  template <class F>
  __device__ void rows(Index n, const F& f) const {
    for (Index r = threadIdx.x / 32; r < n; r += blockDim.x / 32) f(CudaWarp{}, r);
  }

  /// Whole numbers: their sums do not depend on the order.
  template <class F>
  __device__ void histogram(Index n, Index bins, const F& f, std::int32_t* counts) const {
    sync();
    for_each(bins, [=](Index i) { counts[i] = 0; });
    sync();
    for_each(n, [&](Index i) {
      const Index bin = f(i);
      if (bin >= 0 && bin < bins) atomicAdd(counts + bin, 1);
    });
    sync();
  }

  __device__ void scan(Index n, std::int32_t* counts) const {
    std::int32_t before = 0;
    for (Index base = 0; base < n; base += blockDim.x) {
      sync();
      const Index i = base + threadIdx.x;
      std::int32_t value = i < n ? counts[i] : 0;
      for (int distance = 1; distance < 32; distance *= 2) {
        const std::int32_t lower = __shfl_up_sync(0xffffffffu, value, distance);
        if (threadIdx.x % 32 >= distance) value += lower;
      }
      auto* slot = static_cast<std::int32_t*>(slots());
      if (threadIdx.x % 32 == 31) slot[threadIdx.x / 32] = value;
      sync();
      std::int32_t total = before;
      for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
        if (warp == threadIdx.x / 32) value += total;
        total += slot[warp];
      }
      if (i < n) counts[i] = value;
      before = total;
    }
    sync();
  }

  /// C = alpha A B + beta C. Not inlined: a scan calls it a dozen times.
  template <class T>
  __device__ __noinline__ void matmul(Matrix<const T> a, std::type_identity_t<Matrix<const T>> b,
                                      std::type_identity_t<Matrix<T>> c, std::type_identity_t<T> alpha = 1,
                                      std::type_identity_t<T> beta = 0) const {
    detail::member_matmul<T>(static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), a, b, c, alpha,
                             beta);
  }
  template <class T>
  __device__ void matmul(Matrix<T> a, std::type_identity_t<Matrix<const T>> b,
                         std::type_identity_t<Matrix<T>> c, std::type_identity_t<T> alpha = 1,
                         std::type_identity_t<T> beta = 0) const {
    matmul(Matrix<const T>(a), b, c, alpha, beta);
  }

  template <class T>
  __device__ T* scratch() const {
    return static_cast<T*>(scratch_);
  }
  __device__ void sync() const { __syncthreads(); }
  __device__ bool leader() const { return threadIdx.x == 0; }

 private:
  template <class A>
  struct Place {
    A value;
    Index index;
  };
  struct Plus {
    template <class A>
    __device__ A operator()(A a, A b) const {
      return a + b;
    }
  };
  struct Larger {
    template <class A>
    __device__ A operator()(A a, A b) const {
      return a < b ? b : a;
    }
  };
  struct Earlier {
    template <class A>
    __device__ Place<A> operator()(Place<A> a, Place<A> b) const {
      return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
    }
  };

  /// The member's first element. One without an element takes element 0, which changes no maximum.
  __device__ static Index first(Index n) { return threadIdx.x < n ? static_cast<Index>(threadIdx.x) : 0; }

  template <class A>
  __device__ static A from_lane(A value, int distance) {
    return __shfl_down_sync(0xffffffffu, value, distance);
  }
  template <class A>
  __device__ static Place<A> from_lane(Place<A> place, int distance) {
    return {from_lane(place.value, distance), from_lane(place.index, distance)};
  }

  /// One slot a warp, shared by all reductions of a kernel.
  __device__ static void* slots() {
    __shared__ double2 memory[32];
    return memory;
  }

  /// All parts by `join`: within warps by shuffles, then over the warps in order.
  template <class V, class Join>
  __device__ static V reduce(V part, Join join) {
    static_assert(sizeof(V) <= sizeof(double2));
    for (int distance = 16; distance > 0; distance /= 2) part = join(part, from_lane(part, distance));
    V* slot = static_cast<V*>(slots());  // free since the sync at the start of this reduction
    if (threadIdx.x % 32 == 0) slot[threadIdx.x / 32] = part;
    __syncthreads();
    V total = slot[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) total = join(total, slot[warp]);
    return total;
  }

  void* scratch_;
};

}  // namespace mttt
