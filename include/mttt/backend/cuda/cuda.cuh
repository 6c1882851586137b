// Cuda: the backend of NVIDIA GPUs. cuBLAS for products, kernels of ours for the functors of the blocks.
//
// All work goes through one stream, in order; calls return before it is done, except to_host, to_device and
// synchronize. Once the arena has grown to what a pass needs, later passes allocate nothing.
//
// Formula, shapes: see backend/backend.hpp.
// Units:   elements.
// Errors:  those of check.cuh and memory.cuh: no GPU, too old a driver, no code for this GPU, no memory.
// Not supported: bf16 storage; several GPUs in one thread; use of one object from several threads at once.
// Source:  cuBLAS (cublas<t>gemm); Kokkos' team policies for the rows.
#pragma once

#include <algorithm>
#include <concepts>

#include "mttt/backend/arena.hpp"
#include "mttt/backend/backend.hpp"
#include "mttt/backend/cuda/gemm.cuh"
#include "mttt/backend/cuda/memory.cuh"
#include "mttt/backend/cuda/team.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt {

namespace detail {

template <class F>
__global__ void map_kernel(Index n, F f) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

/// One team a block; `pool`, if given, holds `each` bytes of scratch a block, else it is in shared memory.
template <class F>
__global__ void rows_kernel(Index n, F f, std::byte* pool, Index each) {
  extern __shared__ double2 shared[];
  const CudaTeam team(pool == nullptr ? static_cast<void*>(shared) : pool + blockIdx.x * each);
  for (Index i = blockIdx.x; i < n; i += gridDim.x) {
    f(team, i);
    __syncthreads();  // the next row takes the same scratch
  }
}

template <class T>
struct Fill {
  T* to;
  T value;
  MTTT_HD void operator()(Index i) const { to[i] = value; }
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }  // NOLINT: implicit on purpose

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace detail

template <std::floating_point T>
class Cuda {
 public:
  using Scalar = T;
  using Accum = std::conditional_t<std::same_as<T, double>, double, float>;
  using Memory = CudaMemory;
  using Team = CudaTeam;

  explicit Cuda(int device = 0)
      : device_(detail::open_device(device)),
        processors_(detail::device_attribute(device, cudaDevAttrMultiProcessorCount)),
        // less what the reductions' slots take
        shared_limit_(detail::device_attribute(device, cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024),
        gemm_(stream_) {}
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  ~Cuda() { cudaStreamSynchronize(stream_); }

  int device() const { return device_; }
  cudaStream_t stream() const { return stream_; }
  Index arena_bytes() const { return arena_.capacity(); }

  /// Waits until all work is done; errors of kernels are reported here at the latest.
  void synchronize() { detail::check(cudaStreamSynchronize(stream_), "waiting for the GPU"); }

  [[nodiscard]] auto scope() { return ArenaScope<Arena<CudaMemory>>(arena_); }

  /// A tensor in the arena, its contents undefined; one argument for each `dyn`.
  template <class U, Index... E, class... N>
  Tensor<U, E...> make(N... dims) {
    return make_tensor<U, E...>(arena_, dims...);
  }

  template <class U>
  void matmul(Matrix<const U> a, std::type_identity_t<Matrix<const U>> b, std::type_identity_t<Matrix<U>> c,
              std::type_identity_t<U> alpha = 1, std::type_identity_t<U> beta = 0) {
    gemm_.template grid<U>(1, 1, {a, 0, 0}, {b, 0, 0}, {c, 0, 0}, alpha, beta);
  }
  template <class U>
  void matmul(Matrix<U> a, std::type_identity_t<Matrix<const U>> b, std::type_identity_t<Matrix<U>> c,
              std::type_identity_t<U> alpha = 1, std::type_identity_t<U> beta = 0) {
    matmul(Matrix<const U>(a), b, c, alpha, beta);
  }
  template <class U>
  void matmul_grid(Index outer, Index inner, MatrixGrid<const U> a,
                   std::type_identity_t<MatrixGrid<const U>> b, std::type_identity_t<MatrixGrid<U>> c,
                   std::type_identity_t<U> alpha = 1, std::type_identity_t<U> beta = 0) {
    gemm_.template grid<U>(outer, inner, a, b, c, alpha, beta);
  }
  template <class U>
  void matmul_grid(Index outer, Index inner, MatrixGrid<U> a, std::type_identity_t<MatrixGrid<const U>> b,
                   std::type_identity_t<MatrixGrid<U>> c, std::type_identity_t<U> alpha = 1,
                   std::type_identity_t<U> beta = 0) {
    matmul_grid(outer, inner, MatrixGrid<const U>(a), b, c, alpha, beta);
  }

  template <class F>
  void for_each(Index n, const F& f) {
    if (n <= 0) return;
    const Index blocks = (n + tuning::map_threads - 1) / tuning::map_threads;
    detail::map_kernel<<<grid(blocks, tuning::map_blocks), tuning::map_threads, 0, stream_>>>(n, f);
    detail::check(cudaGetLastError(), "starting an element-wise kernel");
  }

  /// `scratch` bytes a team, in shared memory where they fit; `cost`, about the number of operations of a
  /// row, decides how many threads a team has.
  template <class F>
  void rows(Index n, const F& f, Index scratch = 0, Index cost = 256) {
    if (n <= 0) return;
    const auto guard = scope();
    const bool fits = scratch <= shared_limit_;
    const Index each = (scratch + 63) / 64 * 64;
    const unsigned blocks = grid(n, fits ? tuning::row_blocks : tuning::row_blocks_global);
    auto* pool = fits ? nullptr : static_cast<std::byte*>(arena_.alloc(each * blocks));
    const auto kernel = detail::rows_kernel<F>;
    if (fits && scratch > 48 << 10) {
      detail::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(scratch)),
                    "asking for shared memory");
    }
    kernel<<<blocks, tuning::row_threads(cost), fits ? static_cast<std::size_t>(scratch) : 0, stream_>>>(
        n, f, pool, each);
    detail::check(cudaGetLastError(), "starting a kernel of rows");
  }

  template <class U>
  void copy(const U* from, U* to, Index n) {
    transfer(from, to, n, cudaMemcpyDeviceToDevice, "copying on the GPU");
  }
  template <class U>
  void fill(U* to, Index n, U value) {
    if (n <= 0) return;
    if constexpr (sizeof(U) == 1) {
      detail::check(cudaMemsetAsync(to, static_cast<int>(value), static_cast<std::size_t>(n), stream_),
                    "filling memory");
    } else {
      for_each(n, detail::Fill<U>{to, value});
    }
  }
  template <class U>
  void to_host(const U* from, U* to, Index n) {
    transfer(from, to, n, cudaMemcpyDeviceToHost, "copying to the host");
    synchronize();
  }
  template <class U>
  void to_device(const U* from, U* to, Index n) {
    transfer(from, to, n, cudaMemcpyHostToDevice, "copying to the GPU");
    synchronize();  // the caller may reuse `from`
  }

 private:
  unsigned grid(Index blocks, int blocks_a_processor) const {
    return static_cast<unsigned>(std::min<Index>(blocks, Index{processors_} * blocks_a_processor));
  }
  template <class U>
  void transfer(const U* from, U* to, Index n, cudaMemcpyKind kind, std::string_view what) {
    if (n <= 0) return;
    detail::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n) * sizeof(U), kind, stream_), what);
  }

  int device_, processors_;
  Index shared_limit_;
  detail::Stream stream_;
  detail::Gemm gemm_;
  Arena<CudaMemory> arena_;
};

static_assert(Backend<Cuda<float>> && Backend<Cuda<double>>);

}  // namespace mttt
