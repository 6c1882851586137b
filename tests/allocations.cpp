// Counts the allocations of the process, for the law that a step makes none. Eigen asks malloc directly, so
// operator new is not enough: malloc itself is interposed. A sanitizer interposes it too, and calls a hook of
// ours instead.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {
std::atomic<std::size_t> count{0};
}

std::size_t allocation_count();
std::size_t allocation_count() { return count.load(); }

#if defined(__has_feature)  // as clang++ says what g++ says by macros
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MTTT_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MTTT_SANITIZED
#endif

#if defined(MTTT_SANITIZED)
extern "C" {
void __sanitizer_malloc_hook(const volatile void*, std::size_t);
void __sanitizer_malloc_hook(const volatile void*, std::size_t) {
  count.fetch_add(1, std::memory_order_relaxed);
}
}
#elif defined(__GLIBC__)
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t bytes) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  count.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t bytes) {
  count.fetch_add(1, std::memory_order_relaxed);
  *out = __libc_memalign(alignment, bytes);
  return *out == nullptr ? 12 : 0;
}
}
#else
void* operator new(std::size_t bytes) {
  count.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#endif
