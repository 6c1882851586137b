// Arena: stack-like memory of activations. Blocks grow it in the first pass; later passes allocate nothing.
//
// `alloc` hands out the next piece, a Scope gives everything back that was allocated during its life. A
// forward pass leaves what its Saved refers to; the caller's Scope around forward and backward releases it.
//
// Shapes:  none.   Units: bytes; pieces are aligned to 64.
// Errors:  what the backend's memory throws when it is exhausted; extents below 0 or beyond all machines.
// Not supported: freeing single pieces, use from several threads at once.
// Source:  none.
#pragma once

#include <algorithm>
#include <vector>

#include "mttt/core/memory_use.hpp"
#include "mttt/core/tensor.hpp"

namespace mttt {

/// `Memory` is constructible from (Index bytes, MemoryUse) and has data().
template <class Memory>
class Arena {
 public:
  struct Mark {
    std::size_t chunk;
    Index used;
  };

  void* alloc(Index bytes) {
    const Index need = (bytes + 63) / 64 * 64;
    while (chunk_ < chunks_.size() && used_ + need > chunks_[chunk_].bytes) {
      ++chunk_;
      used_ = 0;
    }
    if (chunk_ == chunks_.size()) {
      const Index last = chunks_.empty() ? first_chunk / 2 : chunks_.back().bytes;
      const Index size = std::max(need, std::min(2 * last, largest_chunk));
      chunks_.push_back({size, Memory(size, MemoryUse::activations)});
      used_ = 0;
    }
    void* piece = static_cast<std::byte*>(chunks_[chunk_].memory.data()) + used_;
    used_ += need;
    return piece;
  }

  Mark mark() const { return {chunk_, used_}; }
  void release(Mark mark) {
    chunk_ = mark.chunk;
    used_ = mark.used;
  }

  /// Bytes held, whether in use or not.
  Index capacity() const {
    Index total = 0;
    for (const Chunk& chunk : chunks_) total += chunk.bytes;
    return total;
  }

 private:
  static constexpr Index first_chunk = Index{1} << 20, largest_chunk = Index{1} << 28;
  struct Chunk {
    Index bytes;
    Memory memory;
  };
  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0;
  Index used_ = 0;
};

/// Releases on destruction what was allocated from the arena since its construction.
template <class A>
class ArenaScope {
 public:
  explicit ArenaScope(A& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  A& arena_;
  typename A::Mark mark_;
};

/// A tensor in the arena, its contents undefined; one number for each `dyn`.
template <class T, Index... E, class Memory, class... N>
Tensor<T, E...> make_tensor(Arena<Memory>& arena, N... dims) {
  static_assert(sizeof...(N) == (Index(E == dyn) + ... + 0),
                "make<T, E...>(dims...) takes one number for each dyn");
  const Index given[sizeof...(N) + 1]{static_cast<Index>(dims)..., 0};
  [[maybe_unused]] std::size_t next = 0;
  const std::array<Index, sizeof...(E)> extents{(E == dyn ? given[next++] : E)...};
  return {static_cast<T*>(arena.alloc(counted_bytes(extents, sizeof(T), MemoryUse::activations))), extents};
}

}  // namespace mttt
