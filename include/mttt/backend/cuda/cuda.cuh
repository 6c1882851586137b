// Cuda: the backend of NVIDIA GPUs. cuBLAS for products, kernels of ours for the functors of the blocks.
//
// All work goes through one stream, in order; calls return before it is done, except to_host, to_device and
// synchronize. Once the arena has grown to what a pass needs, later passes allocate nothing.
//
// Cuda<bf16> stores in bf16 and computes in float32. `as<float>()` is the same GPU, stream and arena for
// blocks that store float32: a codec beside a language model in bf16, optimiser moments beside weights.
//
// Products of float32 are exact to float32 unless tf32(true) lets them round their factors to 11 bits, as
// PyTorch's convolutions do: several times faster on tensor cores.
//
// Formula, shapes: see backend/backend.hpp.
// Units:   elements.
// Errors:  those of check.cuh and memory.cuh: no GPU, too old a driver, no code for this GPU, no memory.
// Not supported: several GPUs in one thread; use of one object from several threads at once.
// Source:  cuBLAS (cublas<t>gemm); Kokkos' team policies for the rows.
#pragma once

#include <algorithm>
#include <concepts>
#include <memory>

#include "mttt/backend/arena.hpp"
#include "mttt/backend/backend.hpp"
#include "mttt/backend/cuda/attention.cuh"
#include "mttt/backend/cuda/attention_step.cuh"
#include "mttt/backend/cuda/brief_attention.cuh"
#include "mttt/backend/cuda/depth_frame.cuh"
#include "mttt/backend/cuda/gemm.cuh"
#include "mttt/backend/cuda/layers_step.cuh"
#include "mttt/backend/cuda/memory.cuh"
#include "mttt/backend/cuda/nearest.cuh"
#include "mttt/backend/cuda/rotated_attention.cuh"
#include "mttt/backend/cuda/sort.cuh"
#include "mttt/backend/cuda/stream.cuh"
#include "mttt/backend/cuda/team.cuh"
#include "mttt/backend/cuda/ttt/linear_backward.cuh"
#include "mttt/backend/cuda/ttt/mlp_backward.cuh"
#include "mttt/backend/cuda/ttt/step.cuh"
#include "mttt/backend/cuda/tuning.cuh"

namespace mttt {

namespace detail {

template <class F>
__global__ void map_kernel(Index n, F f) {
  start_next();
  await_inputs();
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) f(i);
}

/// All that `map` needs as one class: a pointer in a kernel's signature may be spelled by nvcc through the
/// alias that first named its type, in a block whose config it cannot spell.
template <class F, class Out, class... In>
struct MapArrays {
  F f;
  Out* out;
  const void* in[sizeof...(In)];
  __device__ void run(Index n, Index first, Index count) const {
    run(n, first, count, std::index_sequence_for<In...>{});
  }

 private:
  template <std::size_t... I>
  __device__ void run(Index n, Index first, Index count, std::index_sequence<I...>) const {
    map_packs(n, first, count, f, out, static_cast<const In*>(in[I])...);
  }
};

template <class Arrays>
__global__ void map_arrays_kernel(Index n, Arrays arrays) {
  start_next();
  await_inputs();
  arrays.run(n, static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x,
             static_cast<Index>(gridDim.x) * blockDim.x);
}

/// One team a block; `pool`, if given, holds `each` bytes of scratch a block, else it is in shared memory.
template <class F>
__global__ void rows_kernel(Index n, F f, std::byte* pool, Index each) {
  start_next();
  await_inputs();
  extern __shared__ double2 shared[];
  const CudaTeam team(pool == nullptr ? static_cast<void*>(shared) : pool + blockIdx.x * each);
  for (Index i = blockIdx.x; i < n; i += gridDim.x) {
    f(team, i);
    __syncthreads();  // the next row takes the same scratch
  }
}

/// Threads that a block of this kernel can have at most: its registers decide.
template <class Kernel>
int largest_block(Kernel kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "asking for a kernel's limits");
  return attributes.maxThreadsPerBlock / 32 * 32;
}

template <class T>
struct Fill {
  T* to;
  T value;
  MTTT_HD void operator()(Index i) const { to[i] = value; }
};

/// What backends of several storage types share: one GPU, one stream, one arena, one cuBLAS.
struct CudaContext {
  explicit CudaContext(int number)
      : device(open_device(number)),
        processors(device_attribute(number, cudaDevAttrMultiProcessorCount)),
        capability(compiled_capability()),
        // less what the reductions' slots take
        shared_limit(device_attribute(number, cudaDevAttrMaxSharedMemoryPerBlockOptin) - 1024),
        launch(stream, number),
        gemm(launch, capability, processors) {}
  ~CudaContext() { cudaStreamSynchronize(stream); }

  int device, processors, capability;
  Index shared_limit;
  Stream stream;
  Arena<CudaMemory> arena;
  Launcher launch;
  Gemm gemm;

  /// Two counts of a kernel whose blocks wait for each other, 0 between kernels.
  unsigned* counts() { return static_cast<unsigned*>(counts_.data()); }

 private:
  CudaMemory counts_{2 * sizeof(unsigned), MemoryUse::workspace};
};

}  // namespace detail

template <StorageType T>
class Cuda {
 public:
  using Scalar = T;
  using Accum = Wide<T>;
  using Memory = CudaMemory;
  using Team = CudaTeam;

  explicit Cuda(int device = 0) : context_(std::make_shared<detail::CudaContext>(device)) {}
  Cuda(const Cuda&) = delete;
  Cuda& operator=(const Cuda&) = delete;
  Cuda(Cuda&&) = default;

  /// The same GPU, stream and arena, for blocks that store U.
  template <StorageType U>
  Cuda<U> as() const {
    return Cuda<U>(context_);
  }

  int device() const { return context_->device; }
  cudaStream_t stream() const { return context_->stream; }
  Index arena_bytes() const { return context_->arena.capacity(); }

  /// Products of float32 on this GPU's tensor cores, their factors rounded to TF32; of all that share the GPU.
  void tf32(bool on) { context_->gemm.tf32(on); }
  bool tf32() const { return context_->gemm.tf32(); }

  /// Waits until all work is done; errors of kernels are reported here at the latest.
  void synchronize() { detail::check(cudaStreamSynchronize(stream()), "waiting for the GPU"); }

  /// Records what f queues on this backend, to be run by the graph's launch() as often as one likes. f must
  /// not wait for the GPU (to_host, to_device, synchronize).
  template <class F>
  [[nodiscard]] CudaGraph capture(F&& f) {
    return CudaGraph(stream(), context_, f);
  }

  [[nodiscard]] auto scope() { return ArenaScope<Arena<CudaMemory>>(context_->arena); }

  /// A tensor in the arena, its contents undefined; one argument for each `dyn`.
  template <class U, Index... E, class... N>
  Tensor<U, E...> make(N... dims) {
    return make_tensor<U, E...>(context_->arena, dims...);
  }

  template <class UA, class UB, class V>
  requires ProductTypes<UA, UB, V>
  void matmul(Matrix<UA> a, Matrix<UB> b, Matrix<V> c, Wide<V> alpha = 1, Wide<V> beta = 0) {
    matmul_grid(1, 1, MatrixGrid<UA>{a, 0, 0}, MatrixGrid<UB>{b, 0, 0}, MatrixGrid<V>{c, 0, 0}, alpha, beta);
  }
  template <class UA, class UB, class V>
  requires ProductTypes<UA, UB, V>
  void matmul_grid(Index outer, Index inner, MatrixGrid<UA> a, MatrixGrid<UB> b, MatrixGrid<V> c,
                   Wide<V> alpha = 1, Wide<V> beta = 0) {
    using U = std::remove_const_t<UA>;
    context_->gemm.template grid<U, V>(outer, inner, a, b, c, alpha, beta);
  }

  template <class F, class Out, class... In>
  void map(Index n, const F& f, Out* out, const In*... in) {
    if (n <= 0) return;
    constexpr int width = detail::pack_width<Out, In...>;
    const Index blocks = (n / width + tuning::map_threads) / tuning::map_threads;
    using Arrays = detail::MapArrays<F, Out, In...>;
    context_->launch("starting an element-wise kernel", detail::map_arrays_kernel<Arrays>,
                     grid(blocks, tuning::map_blocks), tuning::map_threads, 0, n, Arrays{f, out, {in...}});
  }

  /// Products with what stands around them in one kernel, and convolutions as such products: see fused.hpp.
  template <class F>
  void product_step(Matrix<const T> x, NormRows<T> norm, Matrix<const T> w, Matrix<T> y,
                    Finish<T> finish = {}) {
    if constexpr (std::is_same_v<T, bf16>) {
      if (w.ld == w.cols &&
          context_->gemm.template streamed<F>(x, norm, detail::weight_rows(w), y, finish, y.ld, 1, true))
        return;
    }
    if (norm.weight != nullptr) {
      context_->gemm.template few<F, true, T, T>(x, norm, w, y, finish, y.ld);
    } else {
      context_->gemm.template few<F, false, T, T>(x, norm, w, y, finish, y.ld);
    }
  }
  /// y = F(a) * b, [a | b] = norm(x) w^T; false, and nothing done, for what no kernel takes.
  template <class F>
  bool gated_step(Matrix<const T> x, NormRows<T> norm, Matrix<const T> w, Matrix<T> y) {
    if constexpr (std::is_same_v<T, bf16>) {
      return w.ld == w.cols && context_->gemm.template streamed_gate<F>(x, norm, detail::weight_rows(w), y);
    }
    return false;
  }
  /// Whether product_step is the fastest way to multiply so many rows with w.
  bool steps_products(Index rows, Matrix<const T>) const { return rows <= tuning::few_rows<T>; }

  /// The same with weights in 8 or 4 bits, where steps_products says so.
  template <class Format>
  bool steps_products(Index rows, const QuantisedMatrix<Format>& w) const {
    return std::is_same_v<T, bf16> && context_->capability >= 90 && rows <= tuning::few_rows<T> &&
           detail::streamed_slices(w.cols) > 0;
  }
  template <class F, class Format>
  void product_step(Matrix<const T> x, NormRows<T> norm, const QuantisedMatrix<Format>& w, Matrix<T> y,
                    Finish<T> finish = {}) {
    if constexpr (std::is_same_v<T, bf16>) {
      if (context_->gemm.template streamed<F>(x, norm, detail::weight_rows(w), y, finish, y.ld, 1, true))
        return;
    }
    fail("Cuda::product_step", "rows or weights that no kernel takes", "those that steps_products takes",
         "ask steps_products first; rows must start at multiples of 16 bytes");
  }
  template <class F, class Format>
  bool gated_step(Matrix<const T> x, NormRows<T> norm, const QuantisedMatrix<Format>& w, Matrix<T> y) {
    if constexpr (std::is_same_v<T, bf16>) {
      return context_->gemm.template streamed_gate<F>(x, norm, detail::weight_rows(w), y);
    }
    return false;
  }
  template <class U, class Format, class V>
  bool quantised_product(Matrix<U> a, const QuantisedMatrix<Format>& w, Matrix<V> c, Wide<V> alpha,
                         Wide<V> beta) {
    if constexpr (std::is_same_v<std::remove_const_t<U>, bf16>) {
      const Finish<V> finish{.addend = beta == Wide<V>(0) ? nullptr : c.data};
      return !a.transposed && (beta == Wide<V>(0) || beta == Wide<V>(1)) &&
             a.rows <= tuning::few_rows<bf16> &&
             context_->gemm.template streamed<Identity>(Matrix<const bf16>(a), {}, detail::weight_rows(w), c,
                                                        finish, c.ld, alpha, false);
    }
    return false;
  }
  template <class F>
  void conv_step(const ConvStep<T>& conv, Finish<T> finish) {
    context_->gemm.template conv_step<F>(conv, finish);
  }
  template <class F>
  void conv_transpose_step(const ConvTransposeStep<T>& conv) {
    context_->gemm.template conv_transpose_step<F>(conv);
  }

  /// Convolutions as products of windows, and their gradients, where multiplies_windows() says so: windows.cuh.
  bool multiplies_windows() const { return std::is_same_v<T, float> && tf32(); }
  void multiply_windows(const Windows<T>& a, const WindowWeights<T>& w, Matrix<T> y, const T* bias = nullptr,
                        Index bias_width = 1) {
    if constexpr (std::is_same_v<T, float>) context_->gemm.multiply_windows(a, w, y, bias, bias_width);
  }
  void add_window_gradient(const Windows<T>& a, Matrix<const T> d, T* grad, Index k_stride, Index n_stride,
                           T* bias = nullptr) {
    if constexpr (std::is_same_v<T, float>)
      context_->gemm.add_window_gradient(a, d, grad, k_stride, n_stride, bias);
  }

  template <class F>
  void for_each(Index n, const F& f) {
    if (n <= 0) return;
    const Index blocks = (n + tuning::map_threads - 1) / tuning::map_threads;
    context_->launch("starting an element-wise kernel", detail::map_kernel<F>,
                     grid(blocks, tuning::map_blocks), tuning::map_threads, 0, n, f);
  }

  /// `scratch` bytes a team, in shared memory where they fit; `cost`, about the number of operations of a
  /// row, decides how many threads a team has.
  template <class F>
  void rows(Index n, const F& f, Index scratch = 0, Index cost = 256) {
    if (n <= 0) return;
    const auto guard = scope();
    const bool fits = scratch <= context_->shared_limit;
    const Index each = (scratch + 63) / 64 * 64;
    const unsigned blocks = grid(n, fits ? tuning::row_blocks : tuning::row_blocks_global);
    auto* pool = fits ? nullptr : static_cast<std::byte*>(context_->arena.alloc(each * blocks));
    const auto kernel = detail::rows_kernel<F>;
    if (fits && scratch > 48 << 10) {
      detail::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                         static_cast<int>(scratch)),
                    "asking for shared memory");
    }
    static const int most = detail::largest_block(kernel);
    const int threads = std::min(tuning::row_threads(cost), most);
    context_->launch("starting a kernel of rows", kernel, blocks, static_cast<unsigned>(threads),
                     fits ? scratch : 0, n, f, pool, each);
  }

  /// Keys from 0 to `largest` in order, with their values; of equal keys the earlier first. In the arena.
  struct SortedPairs {
    const std::int32_t *keys, *values;
  };
  SortedPairs sort_pairs(const std::int32_t* keys, const std::int32_t* values, Index n, Index largest) {
    return detail::sort_pairs<SortedPairs>(stream(), context_->arena, keys, values, n, largest);
  }

  template <class U>
  void copy(const U* from, U* to, Index n) {
    transfer(from, to, n, cudaMemcpyDeviceToDevice, "copying on the GPU");
  }
  template <class U>
  void fill(U* to, Index n, U value) {
    if (n <= 0) return;
    if constexpr (sizeof(U) == 1) {
      detail::check(cudaMemsetAsync(to, static_cast<int>(value), static_cast<std::size_t>(n), stream()),
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

  /// Fused kernels of nn/attention.hpp's functions of the same names; false, and nothing done, for shapes
  /// that they do not take.
  template <class Shape, class Strides>
  bool attend(const Shape& shape, Index batch, Index steps, const bf16* q, const bf16* k, const bf16* v,
              Strides strides, bf16* out, Strides out_strides, float* lse) {
    return detail::flash_attend(*this, shape, batch, steps, q, k, v, strides, out, out_strides, lse);
  }
  template <class Shape, class Strides>
  bool attend_backward(const Shape& shape, Index batch, Index steps, const bf16* q, const bf16* k,
                       const bf16* v, Strides strides, const bf16* out, const bf16* dout, Strides out_strides,
                       const float* lse, bf16* dq, bf16* dk, bf16* dv) {
    return detail::flash_attend_backward(*this, shape, batch, steps, q, k, v, strides, out, dout, out_strides,
                                         lse, dq, dk, dv);
  }
  template <class Shape, class Strides>
  bool attend(const Shape& shape, Index batch, Index steps, const float* q, const float* k, const float* v,
              Strides strides, float* out, Strides out_strides, float* lse) {
    if (!detail::takes_brief_attention(shape, steps)) return false;
    detail::start_brief_attention<false>(
        context_->launch, batch,
        {q, k, v, nullptr, out, lse, nullptr, nullptr, nullptr, strides.batch, strides.step,
         out_strides.batch, out_strides.step, static_cast<int>(steps), static_cast<int>(shape.heads),
         static_cast<int>(shape.head_dim)});
    return true;
  }
  template <class Shape, class Strides>
  bool attend_backward(const Shape& shape, Index batch, Index steps, const float* q, const float* k,
                       const float* v, Strides strides, const float*, const float* dout, Strides out_strides,
                       const float* lse, float* dq, float* dk, float* dv) {
    if (!detail::takes_brief_attention(shape, steps)) return false;
    detail::start_brief_attention<true>(
        context_->launch, batch,
        {q, k, v, dout, nullptr, const_cast<float*>(lse), dq, dk, dv, strides.batch, strides.step,
         out_strides.batch, out_strides.step, static_cast<int>(steps), static_cast<int>(shape.heads),
         static_cast<int>(shape.head_dim)});
    return true;
  }
  template <class U, class Shape, class Strides>
  bool attend_step(const Shape& shape, Index batch, Index steps, const U* q, const U* k, const U* v,
                   Strides strides, U* cache_k, U* cache_v, const std::int64_t* positions,
                   const std::uint8_t* mask, U* out, Strides out_strides, const std::int64_t* contexts) {
    return detail::ring_attend(stream(), context_->capability, context_->processors, shape, batch, steps, q,
                               k, v, strides, cache_k, cache_v, positions, mask, out, out_strides, contexts);
  }
  /// The same with the rotation of q and k, for a few steps and a short context.
  template <class U, class Shape, class Strides>
  bool rotated_attend_step(const Shape& shape, Index batch, Index steps, const U* q, const U* k, const U* v,
                           Strides strides, U* cache_k, U* cache_v, const std::int64_t* positions,
                           const std::uint8_t* mask, U* out, Strides out_strides,
                           const std::int64_t* contexts, double max_period) {
    return detail::rotated_attend(context_->launch, shape, batch, steps, q, k, v, strides, cache_k, cache_v,
                                  positions, mask, out, out_strides, contexts, max_period);
  }

  /// A step of one session through layers of one kind, heads of `head_dim`; false, and nothing done, for shapes that
  /// the kernel does not take.
  template <Index dim, Index hidden, Index head_dim, class Step>
  bool layers_step(const Step& step) {
    if constexpr (std::is_same_v<T, bf16> && head_dim == 128 && dim % head_dim == 0 &&
                  detail::streamed_slices(dim) > 0 && detail::streamed_slices(hidden) > 0) {
      return detail::layers_step<int{dim}, int{hidden}>(*this, context_->launch, context_->capability,
                                                        context_->processors, context_->counts(), step);
    }
    return false;
  }

  /// A frame of the depformer of one session with its draws; false, and nothing done, for others.
  template <Index in_dim, Index dim, Index hidden, Index head_dim, Index card, class Frame>
  bool depth_frame(const Frame& frame) {
    if constexpr (std::is_same_v<T, bf16> && head_dim == 64 && card % 8 == 0 &&
                  detail::streamed_slices(in_dim) > 0 && detail::streamed_slices(dim) > 0 &&
                  detail::streamed_slices(hidden) > 0) {
      return detail::depth_frame<int{in_dim}, int{dim}, int{hidden}, int{card}>(
          *this, context_->launch, context_->capability, context_->processors, context_->counts(), frame);
    }
    return false;
  }

  /// The codes of a chain of residual codebooks for few rows; false, and nothing done, for others.
  bool nearest_levels(const T* embedding, const T* half_norm, Index levels, Index card, Index dim,
                      T* residual, Index rows, std::int32_t* codes, Index steps, Index session_stride) {
    return detail::nearest_levels(*this, context_->launch, embedding, half_norm, levels, card, dim, residual,
                                  rows, codes, steps, session_stride);
  }

  /// A TTT layer's step from its projections to the answers in one launch, where heads have one of these
  /// shapes; false, and nothing done, on GPUs that cannot. `Step` is TttStreamStep of ttt/prepare.hpp.
  template <Index width, Index hidden, Index layers>
  static constexpr bool steps_ttt = sizeof(Accum) == 4 && detail::steps_ttt(width, hidden, layers);
  template <Index width, Index layers, class Step>
  bool ttt_step(const Step& step) {
    return detail::ttt_step<static_cast<int>(width), static_cast<int>(layers)>(context_->launch,
                                                                               context_->capability, step);
  }

  /// Whether the scans of TTT layers of this shape have kernels of their own: ttt_forward and ttt_backward,
  /// which take TttForward and TttBackward of ttt/dual.hpp.
  template <Index width, Index hidden, Index layers, Index mini_batch>
  static constexpr bool fuses_ttt = sizeof(T) == 2 &&
                                    ((layers == 1 && detail::ttt_linear_takes<width, mini_batch>) ||
                                     (layers == 2 && detail::ttt_mlp_takes<width, hidden, mini_batch>));
  template <Index width, Index hidden, Index layers, Index mini_batch, class Scan>
  void ttt_forward(const Scan& scan) {
    if constexpr (layers == 1) {
      detail::ttt_linear_run_forward<int{width}, int{mini_batch}>(context_->launch, scan);
    } else {
      detail::ttt_mlp_run_forward<int{width}, int{hidden}, int{mini_batch}>(context_->launch, scan);
    }
  }
  template <Index width, Index hidden, Index layers, Index mini_batch, class Scan>
  void ttt_backward(const Scan& scan) {
    if constexpr (layers == 1) {
      detail::ttt_linear_run_backward<int{width}, int{mini_batch}>(
          *this, context_->launch, context_->capability, context_->processors, scan);
    } else {
      detail::ttt_mlp_run_backward<int{width}, int{hidden}, int{mini_batch}>(*this, context_->launch, scan);
    }
  }

 private:
  unsigned grid(Index blocks, int blocks_a_processor) const {
    return static_cast<unsigned>(std::min<Index>(blocks, Index{context_->processors} * blocks_a_processor));
  }
  template <class U>
  void transfer(const U* from, U* to, Index n, cudaMemcpyKind kind, std::string_view what) {
    if (n <= 0) return;
    detail::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n) * sizeof(U), kind, stream()), what);
  }

  template <StorageType U>
  friend class Cuda;
  explicit Cuda(std::shared_ptr<detail::CudaContext> context) : context_(std::move(context)) {}

  std::shared_ptr<detail::CudaContext> context_;
};

static_assert(Backend<Cuda<float>> && Backend<Cuda<double>> && Backend<Cuda<bf16>>);

}  // namespace mttt
