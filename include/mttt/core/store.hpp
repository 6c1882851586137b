// Store: the one flat block of memory behind an aggregate of tensors (Params, their gradients and moments,
// State).
//
// Every tensor of the aggregate starts at a multiple of 64 bytes; the padding between them is zero and stays
// zero under every element-wise optimiser, so that clipping, AdamW, EMA, snapshot, fork and save may treat
// the block as one array. Shapes:  a tensor whose first extent is `dyn` gets `batch` there; all other extents
// must be static. Units:   bytes. Errors:  what the backend's memory throws when it is exhausted. Not
// supported: growing. Source:  none.
#pragma once

#include <utility>

#include "mttt/core/visit.hpp"

namespace mttt {

template <class P, class B>
class Store {
 public:
  static constexpr Index alignment = 64;

  explicit Store(B& be, Index batch = 1) : batch_(batch), bytes_(layout(nullptr)), memory_(be, bytes_) {
    layout(static_cast<std::byte*>(memory_.data()));
  }
  Store(B& be, const Store& other) : Store(be, other.batch_) { assign(be, other); }
  Store(Store&& other) noexcept
      : batch_(other.batch_),
        aggregate_(other.aggregate_),
        bytes_(other.bytes_),
        memory_(std::move(other.memory_)) {}
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;
  Store& operator=(Store&&) = delete;

  /// Copies the contents of a store of equal layout (snapshot, restore).
  void assign(B& be, const Store& other) {
    if (bytes_ != other.bytes_) {
      fail("Store::assign", std::to_string(other.bytes_) + " bytes", std::to_string(bytes_) + " bytes",
           "use stores of the same block and batch");
    }
    be.copy(static_cast<const std::byte*>(other.memory_.data()), static_cast<std::byte*>(memory_.data()),
            bytes_);
  }

  P& operator*() { return aggregate_; }
  const P& operator*() const { return aggregate_; }
  P* operator->() { return &aggregate_; }
  const P* operator->() const { return &aggregate_; }

  Index batch() const { return batch_; }
  Index bytes() const { return bytes_; }
  std::byte* data() { return static_cast<std::byte*>(memory_.data()); }
  const std::byte* data() const { return static_cast<const std::byte*>(memory_.data()); }

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
  Index layout(std::byte* base) {
    Index offset = 0;
    for_each_tensor(
        [&](std::string_view, auto& tensor) {
          using Tens = std::remove_cvref_t<decltype(tensor)>;
          using T = typename Tens::value_type;
          auto extents = Tens::static_extents;
          if (extents[0] == dyn) extents[0] = batch_;
          tensor = Tens(reinterpret_cast<T*>(base == nullptr ? nullptr : base + offset), extents);
          const Index end = offset + tensor.size() * static_cast<Index>(sizeof(T));
          offset = (end + alignment - 1) / alignment * alignment;
        },
        aggregate_);
    return offset;
  }

  Index batch_;
  P aggregate_{};
  Index bytes_;
  typename B::Memory memory_;
};

}  // namespace mttt
