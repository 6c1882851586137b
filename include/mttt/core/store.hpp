// Store: one flat block of memory behind an aggregate of tensors (Params, gradients, moments, State).
//
// Every tensor of the aggregate starts at a multiple of 64 bytes; the padding between them is zero and stays
// zero under every element-wise optimiser, so that clipping, AdamW, EMA, snapshot, fork and save may treat
// the block as one array.
//
// A Store may leave tensors out (gradients and moments of parameters that do not train): these keep their
// extents and have no memory, their data() is null.
//
// A Store may hold a window of its bytes: all tensors have their places, and only those within it memory. It is
// what one of several processes keeps of numbers whose rest the others keep. Its tensors may be placed elsewhere,
// several in the same memory, for who uses them one after the other (train/sharding.hpp).
//
// Shapes:  a tensor whose first extent is `dyn` gets `batch` there; all other extents must be static.
// Units:   bytes.
// Errors:  what the backend's memory throws when it is exhausted; assign, upload and download refuse a store
//          of another size.
// Not supported: growing beyond all bytes.
// Source:  none.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "mttt/core/memory_use.hpp"
#include "mttt/core/visit.hpp"

namespace mttt {

template <class P, class B>
class Store {
 public:
  static constexpr Index alignment = 64;

  /// `held`: of each tensor, in the order of for_each_tensor, whether it has a place; empty: all have.
  explicit Store(B& be, Index batch = 1, std::vector<bool> held = {})
      : batch_(batch),
        held_(std::move(held)),
        bytes_(layout(nullptr)),
        last_(bytes_),
        memory_(std::in_place, be, bytes_, use()) {
    layout(data());
  }
  /// The window [first, last) of such a store, in bytes.
  Store(B& be, std::vector<bool> held, Index first, Index last)
      : batch_(1),
        held_(std::move(held)),
        bytes_(layout(nullptr)),
        first_(first),
        last_(last),
        memory_(std::in_place, be, window_bytes(first, last), MemoryUse::parameters) {
    layout(data());
  }
  Store(B& be, const Store& other)
      : batch_(other.batch_),
        held_(other.held_),
        bytes_(layout(nullptr)),
        first_(other.first_),
        last_(other.last_),
        memory_(std::in_place, be, window_bytes(first_, last_), use()) {
    layout(data());
    assign(be, other);
  }
  Store(Store&& other) noexcept
      : batch_(other.batch_),
        held_(std::move(other.held_)),
        of_sessions_(other.of_sessions_),
        aggregate_(other.aggregate_),
        places_(std::move(other.places_)),
        bytes_(other.bytes_),
        first_(other.first_),
        last_(other.last_),
        memory_(std::move(other.memory_)) {}
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  Store& operator=(Store&&) = delete;

  /// Copies the contents of a store of equal layout (snapshot, restore), or of a part of it into a window.
  void assign(B& be, const Store& other) {
    if (bytes_ != other.bytes_ || first_ < other.first_ || last_ > other.last_) {
      fail("Store::assign", std::to_string(other.bytes_) + " bytes", std::to_string(bytes_) + " bytes",
           "use stores of the same block and batch");
    }
    if (first_ == last_) return;
    be.copy(other.data() + first_, data() + first_, last_ - first_);
  }

  /// Holds the window [first, last) from now on: what it held of it, zeros elsewhere. Tensors move.
  void hold(B& be, Index first, Index last) {
    typename B::Memory memory(be, window_bytes(first, last), use());
    const Index from = std::max(first, first_), to = std::min(last, last_);
    if (from < to) be.copy(data() + from, static_cast<std::byte*>(memory.data()) + (from - first), to - from);
    if constexpr (requires { be.synchronize(); }) be.synchronize();  // before what was copied from goes
    memory_.emplace(std::move(memory));
    first_ = first, last_ = last;
    layout(data());
  }
  /// Tensors from now on: byte `at` of the store, where a tensor starts, lies at base_of(at) + at.
  template <class F>
  void place(const F& base_of) {
    lay(base_of);
  }
  /// Where tensor t starts, in bytes, those that are left out at 0.
  Index place_of(std::size_t t) const { return places_[t]; }

  P& operator*() { return aggregate_; }
  const P& operator*() const { return aggregate_; }
  P* operator->() { return &aggregate_; }
  const P* operator->() const { return &aggregate_; }

  Index batch() const { return batch_; }
  const std::vector<bool>& held() const { return held_; }
  Index bytes() const { return bytes_; }
  /// The bytes that have memory.
  Index first() const { return first_; }
  Index last() const { return last_; }
  bool whole() const { return first_ == 0 && last_ == bytes_; }
  /// Where the first byte is, or would be.
  std::byte* data() { return static_cast<std::byte*>(memory_->data()) - first_; }
  const std::byte* data() const { return static_cast<const std::byte*>(memory_->data()) - first_; }

  /// All elements as one array, padding included; for aggregates of one element type.
  template <class T>
  Tensor<T, dyn> flat() {
    return {reinterpret_cast<T*>(data()), {bytes_ / static_cast<Index>(sizeof(T))}};
  }
  template <class T>
  Tensor<const T, dyn> flat() const {
    return {reinterpret_cast<const T*>(data()), {bytes_ / static_cast<Index>(sizeof(T))}};
  }

 private:
  MemoryUse use() const { return of_sessions_ ? MemoryUse::sessions : MemoryUse::parameters; }
  /// An empty window has an address too: where tensors would be is not null, which says that they are left out.
  static Index window_bytes(Index first, Index last) { return std::max(last - first, alignment); }

  Index layout(std::byte* base) {
    return lay([=](Index) { return base; });
  }
  template <class F>
  Index lay(const F& base_of) {
    Index offset = 0;
    std::size_t number = 0;
    places_.clear();
    for_each_tensor(
        [&](std::string_view, auto& tensor) {
          using Tens = std::remove_cvref_t<decltype(tensor)>;
          using T = typename Tens::value_type;
          auto extents = Tens::static_extents;
          if (extents[0] == dyn) {
            extents[0] = batch_;
            of_sessions_ = true;
          }
          const bool held = held_.empty() || held_.at(number++);
          places_.push_back(held ? offset : 0);
          if (!held) {
            tensor = Tens(nullptr, extents);
            return;
          }
          std::byte* const base = base_of(offset);
          tensor = Tens(reinterpret_cast<T*>(base == nullptr ? nullptr : base + offset), extents);
          const Index end = offset + counted_bytes(extents, sizeof(T), MemoryUse::sessions);
          offset = (end + alignment - 1) / alignment * alignment;
        },
        aggregate_);
    return offset;
  }

  Index batch_;
  std::vector<bool> held_;
  bool of_sessions_ = false;  // found by layout
  P aggregate_{};
  std::vector<Index> places_;
  Index bytes_;
  Index first_ = 0, last_ = 0;
  std::optional<typename B::Memory> memory_;
};

namespace detail {
inline void require_same_layout(Index from, Index to) {
  if (from == to) return;
  fail("copying a Store between host and backend", std::to_string(from) + " bytes",
       std::to_string(to) + " bytes", "use stores of the same block and batch");
}
}  // namespace detail

/// Copies a store in host memory to one of a backend: the same block's Params or State, on either side.
template <class P, class Host, class Q, class B>
void upload(B& be, const Store<P, Host>& from, Store<Q, B>& to) {
  detail::require_same_layout(from.bytes(), to.bytes());
  be.to_device(from.data(), to.data(), from.bytes());
}
/// And back.
template <class P, class B, class Q, class Host>
void download(B& be, const Store<P, B>& from, Store<Q, Host>& to) {
  detail::require_same_layout(from.bytes(), to.bytes());
  be.to_host(from.data(), to.data(), from.bytes());
}

/// Copies one session's row of every tensor of a State into a row of another: to fork a conversation, to move
/// it to another batch, to bring one back from a snapshot.
template <class B, class S>
void copy_session(B& be, const S& from, Index from_row, S& to, Index to_row) {
  for_each_tensor(
      [&](std::string_view name, const auto& source, const auto& target) {
        if (from_row < 0 || from_row >= source.extent(0) || to_row < 0 || to_row >= target.extent(0)) {
          fail(std::string("copy_session: ") + std::string(name),
               "row " + std::to_string(from_row) + " to row " + std::to_string(to_row),
               "rows below " + std::to_string(source.extent(0)) + " and " + std::to_string(target.extent(0)),
               "choose sessions of the two states");
        }
        const Index width = source.size() / source.extent(0);
        be.copy(source.data() + from_row * width, target.data() + to_row * width, width);
      },
      from, to);
}

}  // namespace mttt
