// Work on files that many hands make light: reading, converting and looking at the tensors of a model.
//
// Formula: in_parallel(n, bytes, f) calls f(0) ... f(n - 1), each once, in any order, from as many threads as
//          the machine has cores, at most 16 (more readers make no disk faster) and one for each 4 MiB of the
//          bytes that all of it reads: a thread costs what reading 0.1 MiB does.
// Shapes:  none.   Units: bytes.
// Errors:  of those that f throws, the one of the lowest index is thrown when all threads have ended; later
//          work is not begun after one.
// Not supported: work that waits for other work.
// Source:  none.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mttt::detail {

template <class F>
void in_parallel(std::size_t count, std::uint64_t bytes, F&& f) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  std::size_t failed = count;
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        f(i);
      } catch (...) {
        const std::lock_guard guard(mutex);
        if (i < failed) error = std::current_exception(), failed = i;
        next = count;
      }
    }
  };
  const std::size_t cores = std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 16);
  const std::size_t threads = std::min({cores, count, static_cast<std::size_t>(1 + (bytes >> 22))});
  std::vector<std::thread> others;
  try {
    while (others.size() + 1 < threads) others.emplace_back(work);
  } catch (const std::system_error&) {  // a machine without room for more threads: those that there are
  }
  work();
  for (auto& thread : others) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace mttt::detail
