// Sharding: what several ranks that train one model share out, and how a rank has a unit of it whole while it is used.
//
//   none        every rank has all
//   optimizer   moments and, in mixed precision, float32 originals are shared out (ZeRO stage 1)
//   gradients   and so are gradients: summed at their owners as soon as a unit's backward pass is done (stage 2)
//   full        and so is what the model reads: gathered before a unit's passes (stage 3, FSDP)
//
// A rank's part of a Store is a window of it (core/store.hpp), which is its memory: one cut of all that is shared out,
// not one of every unit. A unit (core/units.hpp) is whole in one of two slots, those of even numbers in the first,
// those of odd numbers in the second: its tensors lie there for good, and another unit's in the same place. So a unit
// is gathered into one slot while the model reads the other, and sums of one go on while the other is added to.
//
// Which unit comes next, SlotReader knows from the micro-batch before, whatever the order is.
//
// Formula: window of a gradient += sum over ranks of a micro-batch's slots. With one micro-batch a step these are the
//          sums of the other shardings, in their order, and so the same bits; with several, ranks are added up in each
//          and not at the end: other roundings, the same for gradients and full.
// Shapes:  two slots of the largest unit of each parity.
// Units:   bytes of a Store, elements in RankParts.
// Errors:  none.
// Not supported: cutting a unit: one wider than the others makes a slot that wide.
// Source:  Rajbhandari et al. 2020 (arXiv 1910.02054); Zhao et al. 2023 (arXiv 2304.11277).
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/core/store.hpp"
#include "mttt/core/units.hpp"
#include "mttt/nn/elementwise.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

enum class Sharding { none, optimizer, gradients, full };

inline const std::vector<std::string> sharding_names{"none", "optimizer", "gradients", "full"};

inline const std::string& name_of(Sharding sharding) {
  return sharding_names[static_cast<std::size_t>(sharding)];
}
inline std::optional<Sharding> sharding_named(std::string_view name) {
  for (std::size_t i = 0; i < sharding_names.size(); ++i)
    if (sharding_names[i] == name) return static_cast<Sharding>(i);
  return {};
}

namespace detail {

/// Bytes [first, last) of a Store.
struct UnitRange {
  Index first, last;
};

struct AnyUnit {
  void operator()(const auto&) const {}
};

/// Where the units of an aggregate lie; all of it is one where its type names none.
template <class P, class B>
std::vector<UnitRange> unit_ranges(const Store<P, B>& store) {
  constexpr Index line = Store<P, B>::alignment;
  std::vector<UnitRange> units;
  Index end = 0;
  std::size_t tensor = 0;
  const auto add = [&](const auto& unit) {
    UnitRange range{end, end};
    for_each_tensor(
        [&](std::string_view, const auto& t) {
          const Index at = store.place_of(tensor++);
          if (left_out(t)) return;
          const Index bytes =
              t.size() * static_cast<Index>(sizeof(typename std::remove_cvref_t<decltype(t)>::value_type));
          range.last = at + (bytes + line - 1) / line * line;
        },
        unit);
    end = range.last;
    units.push_back(range);
  };
  if constexpr (requires(const P& p) { P::visit_units(AnyUnit{}, p); }) {
    P::visit_units(add, *store);
  } else {
    add(*store);
  }
  return units;
}

/// What of the parts lies in [first, last).
inline RankParts parts_within(const RankParts& parts, Index first, Index last) {
  RankParts within;
  for (const RankPart& part : parts) {
    const Index begin = std::max(first, part.from), end = std::min(last, part.from + part.count);
    if (begin < end) within.push_back({begin, end - begin, part.owner});
  }
  return within;
}

/// The slots of a Store of T's, of which this rank holds its part of `shares`.
template <class P, class B, class T>
class Slots {
 public:
  Slots(B& be, Store<P, B>& store, const std::vector<UnitRange>& units, const RankParts& shares)
      : store_(&store), units_(units), shares_(shares), slots_{memory(be, 0), memory(be, 1)} {
    std::size_t unit = 0;
    store.place([&](Index at) {
      while (at >= units_[unit].last) ++unit;
      return reinterpret_cast<std::byte*>(base(static_cast<Index>(unit)));
    });
  }
  Slots(const Slots&) = delete;

  static Index slot_of(Index unit) { return unit % 2; }
  bool empty(Index unit) const { return range(unit).first == range(unit).last; }
  /// Element i of the store is window()[i], where this rank holds it, and base(unit)[i] while the unit is there.
  T* window() { return store_->template flat<T>().data(); }
  T* base(Index unit) {
    auto& slot = slots_[static_cast<std::size_t>(slot_of(unit))];
    return reinterpret_cast<T*>(static_cast<std::byte*>(slot.data()) - range(unit).first);
  }
  RankParts parts(Index unit) const {
    return parts_within(shares_, element(range(unit).first), element(range(unit).last));
  }
  Index from(Index unit) const { return element(range(unit).first); }
  Index count(Index unit) const { return element(range(unit).last) - from(unit); }

 private:
  const UnitRange& range(Index unit) const { return units_[static_cast<std::size_t>(unit)]; }
  static Index element(Index byte) { return byte / static_cast<Index>(sizeof(T)); }
  typename B::Memory memory(B& be, std::size_t slot) const {
    Index most = Store<P, B>::alignment;
    for (std::size_t u = slot; u < units_.size(); u += 2)
      most = std::max(most, units_[u].last - units_[u].first);
    return {be, most, MemoryUse::parameters};
  }

  Store<P, B>* store_;
  std::vector<UnitRange> units_;
  RankParts shares_;
  std::array<typename B::Memory, 2> slots_;
};

/// What the model reads, gathered a unit ahead.
template <class P, class B>
class SlotReader {
 public:
  using T = typename B::Scalar;
  SlotReader(B& be, Store<P, B>& store, const RankParts& shares)
      : slots_(be, store, unit_ranges(store), shares) {}

  /// The unit is there for what the backend is given next, and the one that will come after it is on its way.
  template <class R>
  void read(B& be, const R& ranks, Index unit) {
    if (there(unit) != unit) gather(be, ranks, unit);
    ranks.wait(be, marks_[slot(unit)]);
    follow(unit);
    for (std::size_t i = next_; i < order_.size(); ++i) {  // what comes next into the other slot
      if (slot(order_[i]) == slot(unit)) continue;
      if (there(order_[i]) != order_[i]) gather(be, ranks, order_[i]);
      return;
    }
  }
  void start_micro_batch() {
    order_ = std::move(seen_);
    seen_.clear();
    next_ = 0;
  }
  /// The parameters have changed.
  void forget() { there_ = {-1, -1}; }

 private:
  static std::size_t slot(Index unit) { return static_cast<std::size_t>(unit % 2); }
  Index& there(Index unit) { return there_[slot(unit)]; }

  template <class R>
  void gather(B& be, const R& ranks, Index unit) {
    ranks.all_gather(be, slots_.window(), slots_.base(unit), slots_.parts(unit));
    marks_[slot(unit)] = ranks.mark();
    there(unit) = unit;
  }
  /// The place behind `unit` in the order of the micro-batch before; somewhere else if it came in another one.
  void follow(Index unit) {
    seen_.push_back(unit);
    if (next_ >= order_.size() || order_[next_] != unit)
      next_ = static_cast<std::size_t>(std::find(order_.begin(), order_.end(), unit) - order_.begin());
    if (next_ < order_.size()) ++next_;
  }

  Slots<P, B, T> slots_;
  std::array<Index, 2> there_{-1, -1}, marks_{};
  std::vector<Index> order_, seen_;
  std::size_t next_ = 0;
};

/// Gradients, summed at their owners unit by unit.
template <class M, class B>
class SlotAdder {
 public:
  using A = typename B::Accum;
  SlotAdder(B& be, Store<M, B>& store, const RankParts& shares)
      : slots_(be, store, unit_ranges(store), shares) {}

  /// Zeros are in the unit's slot.
  template <class R>
  void add(B& be, const R& ranks, Index unit) {
    if (slots_.empty(unit)) return;
    take(be, ranks, summing_[slot(unit)]);
    be.fill(reinterpret_cast<std::byte*>(slots_.base(unit) + slots_.from(unit)),
            slots_.count(unit) * static_cast<Index>(sizeof(A)), std::byte{0});
  }
  template <class R>
  void added(B& be, const R& ranks, Index unit) {
    if (slots_.empty(unit)) return;
    ranks.reduce_scatter(be, slots_.base(unit), slots_.base(unit), slots_.parts(unit));
    summing_[slot(unit)] = {unit, ranks.mark()};
  }
  /// All sums are in the windows.
  template <class R>
  void finish(B& be, const R& ranks) {
    for (Sum& sum : summing_) take(be, ranks, sum);
  }
  bool empty(Index unit) const { return slots_.empty(unit); }

 private:
  /// Of a slot, the unit whose sum goes on in it.
  struct Sum {
    Index unit = -1, mark = 0;
  };
  static std::size_t slot(Index unit) { return static_cast<std::size_t>(unit % 2); }

  /// Adds it to the window.
  template <class R>
  void take(B& be, const R& ranks, Sum& sum) {
    if (sum.unit < 0) return;
    ranks.wait(be, sum.mark);
    for (const RankPart& part : slots_.parts(sum.unit)) {
      if (part.owner == ranks.rank())
        add_to(be, slots_.base(sum.unit) + part.from, slots_.window() + part.from, part.count);
    }
    sum.unit = -1;
  }

  Slots<M, B, A> slots_;
  std::array<Sum, 2> summing_;
};

}  // namespace detail
}  // namespace mttt
