// Cpu: the reference backend. Tiles of ours and Eigen for products, vectorised loops for the rest, OpenMP
// threads where they pay.
//
// Cpu<bf16> stores in bf16 and computes in float: it widens the planes of a product first. It is here to check
// what bf16 does to a model, and the GPU against; it saves memory, not time.
//
// Formula, shapes: see backend/backend.hpp.
// Units:   elements.
// Errors:  Error when the machine has no memory left: for what, how much was wanted, what to lower.
// Not supported: use of one Cpu object from several threads at once; give each its own. Where the system
//          promises memory that it does not have (overcommit, the limit of a container), it ends the process.
// Source:  none.
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstring>
#include <memory>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "mttt/backend/arena.hpp"
#include "mttt/backend/backend.hpp"
#include "mttt/backend/cpu/matmul.hpp"
#include "mttt/backend/cpu/narrow.hpp"
#include "mttt/backend/cpu/quantised.hpp"
#include "mttt/core/error.hpp"
#include "mttt/core/memory_use.hpp"

namespace mttt {

/// Zeroed bytes aligned for the widest vectors. Many of them come, where the system has such, in pages of 2 MB:
/// weights are then read at 33 GB/s instead of 25 by one thread of an EPYC, whose table of pages is small.
class CpuMemory {
 public:
  explicit CpuMemory(Index bytes, MemoryUse use = MemoryUse::other) {
    constexpr Index huge_page = Index{2} << 20;
    if (bytes >= 4 * huge_page) alignment_ = std::align_val_t{huge_page};
    if (bytes >= 0) data_ = ::operator new(static_cast<std::size_t>(bytes), alignment_, std::nothrow);
    if (data_ == nullptr) {
      fail("memory of this machine for " + std::string(name_of(use)), "no room",
           bytes < 0 ? "a size that can be counted"
                     : detail::binary_size(static_cast<double>(bytes)) + " more",
           advice_of(use));
    }
#ifdef MADV_HUGEPAGE  // asked for; small pages do as well
    if (bytes >= 4 * huge_page) ::madvise(data_, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
#endif
    std::memset(data_, 0, static_cast<std::size_t>(bytes));
    bytes_ = bytes;
    all_bytes += bytes;
  }
  template <class B>
  CpuMemory(B&, Index bytes, MemoryUse use = MemoryUse::other) : CpuMemory(bytes, use) {}
  CpuMemory(CpuMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        alignment_(other.alignment_),
        bytes_(std::exchange(other.bytes_, 0)) {}
  CpuMemory(const CpuMemory&) = delete;
  CpuMemory& operator=(const CpuMemory&) = delete;
  CpuMemory& operator=(CpuMemory&&) = delete;
  ~CpuMemory() {
    // Exchanged, for clang-tidy 14 sees the memory of a std::optional die twice.
    ::operator delete(std::exchange(data_, nullptr), alignment_);
    all_bytes -= bytes_;
  }

  void* data() { return data_; }
  const void* data() const { return data_; }

  /// Bytes that all objects of this process hold.
  static Index held() { return all_bytes; }

 private:
  static inline std::atomic<Index> all_bytes = 0;
  void* data_ = nullptr;
  std::align_val_t alignment_{64};
  Index bytes_ = 0;
};

/// A row's team on the CPU: one thread, vectorised loops.
class CpuTeam {
 public:
  static constexpr Index causal_block = 16;  // rows: of 64 tokens' causal products 5 of 8 parts are computed

  explicit CpuTeam(void* scratch) : scratch_(scratch) {}

  template <class F, class Out, class... In>
  void map(Index n, const F& f, Out* out, const In*... in) const {
    MTTT_SIMD
    for (Index i = 0; i < n; ++i) out[i] = static_cast<Out>(f(wide(in[i])...));
  }
  template <class F>
  void for_each(Index n, const F& f) const {
    MTTT_SIMD
    for (Index i = 0; i < n; ++i) f(i);
  }
  template <class A, class F>
  A sum(Index n, const F& f) const {
    A total = 0;
    MTTT_SIMD_SUM(total)
    for (Index i = 0; i < n; ++i) total += f(i);
    return total;
  }
  template <class A, class F, class... In>
  requires(sizeof...(In) > 0) A sum(Index n, const F& f, const In*... in)
  const {
    A total = 0;
    MTTT_SIMD_SUM(total)
    for (Index i = 0; i < n; ++i) total += f(wide(in[i])...);
    return total;
  }
  template <class A, class F>
  A max(Index n, const F& f) const {
    A largest = f(0);
    MTTT_SIMD_MAX(largest)
    for (Index i = 1; i < n; ++i) {
      const A value = f(i);
      largest = largest < value ? value : largest;
    }
    return largest;
  }
  template <class A, class F>
  Index argmax(Index n, const F& f) const {
    Index best = 0;
    A largest = f(0);
    for (Index i = 1; i < n; ++i) {
      const A value = f(i);
      if (value > largest) {
        largest = value;
        best = i;
      }
    }
    return best;
  }
  template <class F>
  void rows(Index n, const F& f) const {
    for (Index r = 0; r < n; ++r) f(*this, r);
  }
  template <class F>
  void histogram(Index n, Index bins, const F& f, std::int32_t* counts) const {
    std::fill_n(counts, bins, 0);
    for (Index i = 0; i < n; ++i) {
      const Index bin = f(i);
      if (bin >= 0 && bin < bins) ++counts[bin];
    }
  }
  void scan(Index n, std::int32_t* counts) const {
    for (Index i = 1; i < n; ++i) counts[i] += counts[i - 1];
  }
  /// C = alpha A B + beta C of planes that fit into a cache.
  template <class T>
  void matmul(Matrix<const T> a, std::type_identity_t<Matrix<const T>> b, std::type_identity_t<Matrix<T>> c,
              std::type_identity_t<T> alpha = 1, std::type_identity_t<T> beta = 0) const {
    detail::matmul_small<T>(a, b, c, alpha, beta);
  }
  template <class T>
  void matmul(Matrix<T> a, std::type_identity_t<Matrix<const T>> b, std::type_identity_t<Matrix<T>> c,
              std::type_identity_t<T> alpha = 1, std::type_identity_t<T> beta = 0) const {
    detail::matmul_small<T>(a, b, c, alpha, beta);
  }
  template <class T>
  T* scratch() const {
    return static_cast<T*>(scratch_);
  }
  void sync() const {}
  bool leader() const { return true; }

 private:
  void* scratch_;
};

template <StorageType T>
class Cpu {
 public:
  using Scalar = T;
  using Accum = Wide<T>;
  using Memory = CpuMemory;
  using Team = CpuTeam;
  static constexpr bool host_memory = true;  // the host may read what blocks wrote, without waiting

  /// 0 threads: as many as OpenMP offers (1 without OpenMP).
  explicit Cpu(int threads = 0)
      : threads_(threads > 0 ? threads : available_threads()), arena_(std::make_shared<Arena<CpuMemory>>()) {}
  Cpu(const Cpu&) = delete;
  Cpu& operator=(const Cpu&) = delete;
  Cpu(Cpu&&) noexcept = default;

  /// The same threads and arena, for blocks that store U.
  template <StorageType U>
  Cpu<U> as() const {
    return Cpu<U>(threads_, arena_);
  }

  int threads() const { return threads_; }
  Index arena_bytes() const { return arena_->capacity(); }

  [[nodiscard]] auto scope() { return ArenaScope<Arena<CpuMemory>>(*arena_); }

  /// A tensor in the arena, its contents undefined; one argument for each `dyn`.
  template <class U, Index... E, class... N>
  Tensor<U, E...> make(N... dims) {
    return make_tensor<U, E...>(*arena_, dims...);
  }

  template <class UA, class UB, class V>
  requires ProductTypes<UA, UB, V>
  void matmul(Matrix<UA> a, Matrix<UB> b, Matrix<V> c, Wide<V> alpha = 1, Wide<V> beta = 0) {
    const auto guard = scope();
    if constexpr (std::same_as<Wide<UA>, V>) {
      multiply<V>(widened(a), widened(b), c, alpha, beta);
    } else {
      const Matrix<Wide<V>> wide_c = widened(c);
      multiply<Wide<V>>(widened(a), widened(b), wide_c, alpha, beta);
      narrow(wide_c, c);
    }
  }

  template <class UA, class UB, class V>
  requires ProductTypes<UA, UB, V>
  void matmul_grid(Index outer, Index inner, MatrixGrid<UA> a, MatrixGrid<UB> b, MatrixGrid<V> c,
                   Wide<V> alpha = 1, Wide<V> beta = 0) {
    if constexpr (std::same_as<std::remove_const_t<UA>, Wide<UA>>) {
      multiply_grid<V>(outer, inner, a, b, c, alpha, beta);
    } else {
      for (Index i = 0; i < outer * inner; ++i)
        matmul(a.at(i / inner, i % inner), b.at(i / inner, i % inner), c.at(i / inner, i % inner), alpha,
               beta);
    }
  }

  /// WithWeights' product for few rows (cpu/quantised.hpp).
  template <class Format>
  bool quantised_product(Matrix<const T> a, QuantisedMatrix<Format> w, Matrix<T> c, Accum alpha, Accum beta,
                         detail::Instructions instructions = detail::processor_instructions())  //
      requires std::same_as<Accum, float> {
    if (a.transposed || a.rows > 16) return false;
    const auto guard = scope();
    detail::RowsIn16Bits x{.rows = a.rows, .cols = a.cols};
    const Index blocks = a.rows * x.blocks(), numbers = blocks * detail::row_block;
    x.scales = make<float, dyn>(blocks).data();
    if (instructions == detail::Instructions::avx512_vnni) {
      x.high = make<std::int8_t, dyn>(numbers).data();
      x.low = make<std::int8_t, dyn>(numbers).data();
      x.less = make<std::int32_t, dyn>(blocks * 16).data();
    } else {
      x.numbers = make<std::int16_t, dyn>(numbers).data();
    }
    detail::round_rows<Format>(a.data, a.ld, x);
    parallel(w.rows, std::max<Index>(1, parallel_weights / std::max<Index>(1, a.rows * a.cols)),
             [&](Index begin, Index end, int) {
               detail::quantised_product(instructions, x, w.take_rows(begin, end),
                                         detail::take_columns(c, begin, end), alpha, beta);
             });
    return true;
  }

  /// WithWeights' product for few rows by weights (N, K) in 16 bits (cpu/narrow.hpp).
  template <NarrowNumber N>
  bool narrow_product(
      Matrix<const T> a, Matrix<const N> w, Matrix<T> c, T alpha, T beta,
      detail::Instructions instructions = detail::processor_instructions()) requires std::same_as<T, float> {
    if (a.transposed || a.rows > 16) return false;
    parallel(w.rows, std::max<Index>(4, parallel_work / std::max<Index>(1, a.rows * a.cols) / 4 * 4),
             [&](Index begin, Index end, int) {
               detail::narrow_product<N>(instructions, a, detail::take_rows(w, begin, end),
                                         detail::take_columns(c, begin, end), alpha, beta);
             });
    return true;
  }

  template <class F, class Out, class... In>
  void map(Index n, const F& f, Out* out, const In*... in) {
    parallel(n, parallel_elements, [&](Index begin, Index end, int) {
      CpuTeam(nullptr).map(end - begin, f, out + begin, (in + begin)...);
    });
  }

  template <class F>
  void for_each(Index n, const F& f) {
    parallel(n, parallel_elements, [&](Index begin, Index end, int) {
      MTTT_SIMD
      for (Index i = begin; i < end; ++i) f(i);
    });
  }

  /// `scratch` bytes a team; `cost`, about the number of operations of a row, decides whether threads pay.
  template <class F>
  void rows(Index n, const F& f, Index scratch = 0, Index cost = 256) {
    const auto guard = scope();
    const Index each = (scratch + 63) / 64 * 64;
    auto* pool = each == 0 ? nullptr : static_cast<std::byte*>(arena_->alloc(each * threads_));
    parallel(n, std::max<Index>(1, parallel_cost / std::max<Index>(1, cost)),
             [&](Index begin, Index end, int thread) {
               const CpuTeam team(pool == nullptr ? nullptr : pool + each * thread);
               for (Index i = begin; i < end; ++i) f(team, i);
             });
  }

  template <class U>
  void copy(const U* from, U* to, Index n) {
    if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(U));
  }
  template <class U>
  void fill(U* to, Index n, U value) {
    std::fill_n(to, n, value);
  }
  template <class U>
  void to_host(const U* from, U* to, Index n) {
    copy(from, to, n);
  }
  template <class U>
  void to_device(const U* from, U* to, Index n) {
    copy(from, to, n);
  }

 private:
  // Waking a second thread costs about 10 us, more on a busy machine: what takes less than about
  // 20 us stays on one.
  static constexpr Index parallel_work = Index{1} << 19;      // multiply-adds of a product
  static constexpr Index parallel_weights = Index{1} << 18;   // of a product with quantised ones
  static constexpr Index parallel_elements = Index{1} << 16;  // of an element-wise function
  static constexpr Index parallel_cost = Index{1} << 17;      // operations of rows

  static int available_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
  }

  template <class U>
  void multiply(Matrix<const U> a, Matrix<const U> b, Matrix<U> c, U alpha, U beta) {
    const Index work = std::max<Index>(1, parallel_work / std::max<Index>(1, a.cols));
    if (detail::prefer_dots<U>(a, b)) {
      parallel(b.cols, std::max<Index>(4, work / a.rows / 4 * 4), [&](Index begin, Index end, int) {
        dots(a, detail::take_columns(b, begin, end), detail::take_columns(c, begin, end), alpha, beta);
      });
    } else {
      // Strips along the longer side of C, of a width that does not depend on the number of threads: nor do
      // the bits. A strip packs the other side anew, so it should not be narrow.
      const bool columns = c.cols >= c.rows;
      const Index length = columns ? c.cols : c.rows, across = columns ? c.rows : c.cols;
      const Index strip = std::clamp((length / 8 + 63) / 64 * 64, Index{64}, Index{256});
      const auto memory = panels<U>(c.rows, c.cols, detail::prefer_panels<U>(a, b) ? 0 : a.cols);
      parallel((length + strip - 1) / strip, std::max<Index>(1, work / (strip * across)),
               [&](Index first, Index last, int thread) {
                 for (Index i = first; i < last; ++i) {
                   const Index begin = i * strip, end = std::min(length, begin + strip);
                   if (columns) {
                     blocked(a, detail::take_columns(b, begin, end), detail::take_columns(c, begin, end),
                             alpha, beta, memory, thread);
                   } else {
                     blocked(detail::take_rows(a, begin, end), b, detail::take_rows(c, begin, end), alpha,
                             beta, memory, thread);
                   }
                 }
               });
    }
  }
  template <class U>
  void multiply_grid(Index outer, Index inner, MatrixGrid<const U> a, MatrixGrid<const U> b, MatrixGrid<U> c,
                     U alpha, U beta) {
    const Index work = std::max<Index>(1, c.first.rows * c.first.cols * a.first.cols);
    const bool by_dots = detail::prefer_dots<U>(a.first, b.first);
    const bool eigen = !by_dots && !detail::prefer_panels<U>(a.first, b.first);
    const auto memory = panels<U>(c.first.rows, c.first.cols, eigen ? a.first.cols : 0);
    parallel(outer * inner, std::max<Index>(1, parallel_work / work),
             [&](Index begin, Index end, int thread) {
               for (Index i = begin; i < end; ++i) {
                 const auto pa = a.at(i / inner, i % inner), pb = b.at(i / inner, i % inner);
                 const auto pc = c.at(i / inner, i % inner);
                 by_dots ? dots(pa, pb, pc, alpha, beta) : blocked(pa, pb, pc, alpha, beta, memory, thread);
               }
             });
  }

  /// The plane in the type to compute in: itself, or a copy in the arena.
  template <class U>
  auto widened(Matrix<U> m) {
    if constexpr (std::same_as<std::remove_const_t<U>, Wide<U>>) {
      return m;
    } else {
      const Index rows = m.transposed ? m.cols : m.rows, cols = m.transposed ? m.rows : m.cols;
      Wide<U>* copy = make<Wide<U>, dyn>(rows * cols).data();
      for (Index r = 0; r < rows; ++r)
        for (Index i = 0; i < cols; ++i) copy[r * cols + i] = wide(m.data[r * m.ld + i]);
      return Matrix<Wide<U>>{copy, m.rows, m.cols, cols, m.transposed};
    }
  }
  template <class U>
  static void narrow(Matrix<Wide<U>> from, Matrix<U> to) {
    for (Index r = 0; r < to.rows; ++r)
      for (Index i = 0; i < to.cols; ++i) to.data[r * to.ld + i] = U(from.data[r * from.ld + i]);
  }

  template <StorageType U>
  friend class Cpu;
  Cpu(int threads, std::shared_ptr<Arena<CpuMemory>> arena) : threads_(threads), arena_(std::move(arena)) {}

  /// Packing memory for Eigen's products of this size, one piece a thread, while it lives; none, for ours, where
  /// K is 0.
  struct Panels {
    ArenaScope<Arena<CpuMemory>> scope;
    std::byte* first;
    Index each;
    std::byte* of(int thread) const { return first + each * thread; }
  };
  template <class U>
  Panels panels(Index M, Index N, Index K) {
    const Index each = K == 0 ? 0 : (detail::Blocking<U>(N, M, K).bytes() + 63) / 64 * 64;
    return {ArenaScope<Arena<CpuMemory>>(*arena_), static_cast<std::byte*>(arena_->alloc(each * threads_)),
            each};
  }
  template <class U>
  static void dots(Matrix<const U> a, Matrix<const U> b, Matrix<U> c, U alpha, U beta) {
    detail::matmul_by_dots<U>(a.data, a.ld, b.data, b.ld, c.data, c.ld, a.rows, b.cols, a.cols, alpha, beta);
  }
  template <class U>
  static void blocked(Matrix<const U> a, Matrix<const U> b, Matrix<U> c, U alpha, U beta,
                      const Panels& memory, int thread) {
    if (memory.each == 0 && a.cols > 0) return detail::matmul_by_panels<U>(a, b, c, alpha, beta);
    detail::scale(c, beta);
    if (a.cols == 0) return;
    detail::Blocking<U> blocking(c.cols, c.rows, a.cols);
    blocking.use(memory.of(thread), memory.each);
    detail::matmul_by_eigen<U>(a, b, c, alpha, blocking);
  }

  /// f(begin, end, thread) over pieces of [0, n), at least `grain` long, one a thread.
  template <class F>
  void parallel(Index n, [[maybe_unused]] Index grain, const F& f) {
    if (n <= 0) return;
#ifdef _OPENMP
    const Index pieces = std::min<Index>(threads_, (n + grain - 1) / grain);
    if (pieces > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(static_cast <int>(pieces))
      {
        const Index thread = omp_get_thread_num(), team = omp_get_num_threads();
        const Index step = (n + team - 1) / team;
        const Index begin = thread * step, end = std::min(n, begin + step);
        if (begin < end) f(begin, end, static_cast<int>(thread));
      }
      return;
    }
#endif
    f(Index{0}, n, 0);
  }

  int threads_;
  std::shared_ptr<Arena<CpuMemory>> arena_;
};

static_assert(Backend<Cpu<float>> && Backend<Cpu<double>> && Backend<Cpu<bf16>>);

}  // namespace mttt
