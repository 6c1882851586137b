// Chunks: all tensors of a block's parameters cut into pieces of at most one size, so that one pass of a
// backend goes over all of them.
//
// The table lies in the backend's memory and is made once: the place, length and tensor of each chunk, and
// the group of each tensor, which is sent again only when the groups have changed. It counts places within a
// Store, so that one table serves every Store of the same block and type: weights, gradient and moments.
// What the model reads lies at places of its own, which it knows too: it may be in another type, rounded, and
// it holds the tensors that do not train, which gradient and moments leave out.
//
// Formula: none.
// Shapes:  chunks of 2^14 elements, the last one of a tensor shorter; each starts at a multiple of 64 bytes.
// Units:   elements.
// Errors:  stores of different blocks; groups of another model.
// Not supported: tensors of several element types in one block.
// Source:  the multi-tensor kernels of NVIDIA Apex (csrc/multi_tensor_apply.cuh), for what they do.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "mttt/backend/backend.hpp"
#include "mttt/core/lanes.hpp"
#include "mttt/core/store.hpp"
#include "mttt/train/param_groups.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

namespace detail {

struct Chunk {
  Index at, read_at;  // where it starts, in Stores of gradient and moments, and of what the model reads
  std::int32_t length, tensor;
};

/// f(first, width) over [0, n): W neighbours at a time on a GPU, one at a time at the end and on a CPU, whose
/// compiler packs by itself.
template <Index W, class Team, class F>
MTTT_HD void for_each_lanes(Team team, Index n, const F& f) {
  Index done = 0;
#ifdef __CUDA_ARCH__
  done = n / W * W;
  team.for_each(n / W, [&](Index k) { f(k * W, std::integral_constant<Index, W>{}); });
#endif
  team.for_each(n - done, [&](Index i) { f(done + i, std::integral_constant<Index, 1>{}); });
}

template <class T, class U>
struct ConvertChunks {
  const Chunk* chunks;
  const T* from;
  U* to;
  bool to_rounded;
  template <class Team>
  MTTT_HD void operator()(Team team, Index i) const {
    const Chunk c = chunks[i];
    const T* in = from + (to_rounded ? c.at : c.read_at);
    U* out = to + (to_rounded ? c.read_at : c.at);
    team.for_each(c.length, [=](Index k) { out[k] = static_cast<U>(in[k]); });
  }
};

}  // namespace detail

/// `P` is what the model reads, `M` the same Params in the type to compute in, often P itself.
template <class P, class B, class M = P>
class ChunkTable {
 public:
  using Stored = typename B::Scalar;
  using Value = typename B::Accum;
  static constexpr Index length = 1 << 14;
  static_assert(
      std::same_as<P, M> == std::same_as<Stored, Value>,
      "training on a backend that stores in a short type (bf16) needs the same Params in the type to "
      "compute in, as the third parameter of Trainer: Moshi<C, Cuda<float>>::Params");

  /// What each of several ranks stands for: whole chunks.
  struct Shares {
    RankParts chunks;   // of the table
    RankParts trained;  // elements of gradient and moments
    RankParts read;     // elements of what the model reads, which frozen tensors may cut into several parts
  };
  /// What is cut evenly: what trains, or all that the model reads. A rank's part of `read` then is in one piece, frozen
  /// tensors included.
  enum class Evenly { trained, read };

  ChunkTable(B& be, const Store<P, B>& params, const Store<M, B>& grad, int ranks = 1,
             Evenly evenly = Evenly::trained)
      : chunks_(cut(params, grad)), memory_(be, bytes()) {
    be.to_device(chunks_.data(), place<detail::Chunk>(0), size());
    be.to_device(first_.data(), place<Index>(chunk_bytes()), tensors() + 1);
    const Index trained = grad.bytes() / static_cast<Index>(sizeof(Value)),
                read = params.bytes() / static_cast<Index>(sizeof(Stored));
    shares_ = evenly == Evenly::read ? share_read(ranks, trained, read) : share(ranks, trained);
    chunks_ = {};
    host_sums_.resize(static_cast<std::size_t>(tensors()));
  }

  Index size() const { return first_.back(); }
  Index tensors() const { return static_cast<Index>(first_.size()) - 1; }

  const detail::Chunk* chunks() const { return place<detail::Chunk>(0); }
  /// Chunks of tensor t: first()[t] to before first()[t + 1].
  const Index* first() const { return place<Index>(chunk_bytes()); }
  /// The groups in the backend's memory.
  const ParamGroup* groups(B& be, const std::vector<ParamGroup>& groups, std::string_view asked_by) {
    if (static_cast<Index>(groups.size()) != tensors()) {
      fail(asked_by, std::to_string(groups.size()) + " parameter groups", std::to_string(tensors()),
           "call make_groups with the parameters of this model");
    }
    auto* to = place<ParamGroup>(chunk_bytes() + first_bytes());
    if (groups != sent_) {
      for (std::size_t t = 0; t < groups.size(); ++t) {
        if (!groups[t].frozen && left_out_[t])
          fail(asked_by, "tensor " + std::to_string(t) + " that is to train, and has no gradient",
               "it frozen, as when the trainer was made", "make another trainer with the new groups");
      }
      be.to_device(groups.data(), to, tensors());
      sent_ = groups;
    }
    return to;
  }
  const Shares& shares() const { return shares_; }
  /// Room for a number of each tensor in the host's memory.
  std::vector<double>& host_sums() { return host_sums_; }

  RankPart all() const { return {0, size(), 0}; }

  /// The weights rounded to what the model reads, and what it reads as weights to go on from: those of the
  /// chunks in `part`.
  void round(B& be, const Store<M, B>& weights, Store<P, B>& params, RankPart part) const {
    convert<Value, Stored>(be, weights.data(), params.data(), true, part);
  }
  void widen(B& be, const Store<P, B>& params, Store<M, B>& weights, RankPart part) const {
    convert<Stored, Value>(be, params.data(), weights.data(), false, part);
  }

 private:
  Index chunk_bytes() const { return size() * static_cast<Index>(sizeof(detail::Chunk)); }
  Index first_bytes() const { return (tensors() + 1) * static_cast<Index>(sizeof(Index)); }
  Index bytes() const {
    return chunk_bytes() + first_bytes() + tensors() * static_cast<Index>(sizeof(ParamGroup));
  }
  template <class T>
  T* place(Index at) {
    return reinterpret_cast<T*>(static_cast<std::byte*>(memory_.data()) + at);
  }
  template <class T>
  const T* place(Index at) const {
    return reinterpret_cast<const T*>(static_cast<const std::byte*>(memory_.data()) + at);
  }

  std::vector<detail::Chunk> cut(const Store<P, B>& params, const Store<M, B>& grad) {
    std::vector<detail::Chunk> chunks;
    first_.push_back(0);
    for_each_tensor(
        [&](std::string_view, const auto& p, const auto& g) {
          static_assert(std::same_as<typename std::remove_cvref_t<decltype(p)>::value_type, Stored> &&
                            std::same_as<typename std::remove_cvref_t<decltype(g)>::value_type, Value>,
                        "training: parameters must hold the backend's Scalar, gradients its Accum");
          left_out_.push_back(left_out(g));
          const Index at = g.data() - reinterpret_cast<const Value*>(grad.data());
          const Index read_at = p.data() - reinterpret_cast<const Stored*>(params.data());
          for (Index done = 0; done < g.size() && !left_out_.back(); done += length) {
            const auto n = static_cast<std::int32_t>(std::min(length, g.size() - done));
            const auto tensor = static_cast<std::int32_t>(first_.size() - 1);
            chunks.push_back({at + done, read_at + done, n, tensor});
          }
          first_.push_back(static_cast<Index>(chunks.size()));
        },
        *params, *grad);
    return chunks;
  }

  /// Cuts where a rank's even part of all elements would start.
  Shares share(int ranks, Index elements) const {
    Shares shares;
    std::size_t next = 0;
    constexpr Index apart = Store<P, B>::alignment / static_cast<Index>(sizeof(Stored));
    for (int r = 0; r < ranks; ++r) {
      const std::size_t begin = next;
      const Index from = begin == chunks_.size() ? elements : r == 0 ? 0 : chunks_[begin].at;
      const Index goal = elements * (r + 1) / ranks;
      while (next < chunks_.size() && (r + 1 == ranks || chunks_[next].at < goal)) {
        const auto& c = chunks_[next++];
        auto& read = shares.read;
        if (read.empty() || read.back().owner != r || c.read_at - read_end(read.back()) >= apart)
          read.push_back({c.read_at, 0, r});
        read.back().count = c.read_at + c.length - read.back().from;
      }
      const Index to = next == chunks_.size() ? elements : chunks_[next].at;
      shares.chunks.push_back({static_cast<Index>(begin), static_cast<Index>(next - begin), r});
      shares.trained.push_back({from, to - from, r});
    }
    return shares;
  }
  static Index read_end(const RankPart& part) { return part.from + part.count; }

  /// Cuts where a rank's even part of what the model reads would start, or behind the chunk that lies there.
  Shares share_read(int ranks, Index trained, Index read) const {
    constexpr Index line = Store<P, B>::alignment / static_cast<Index>(sizeof(Stored));
    Shares shares;
    std::size_t next = 0;
    Index read_from = 0, trained_from = 0;
    for (int r = 0; r < ranks; ++r) {
      const std::size_t begin = next;
      const bool last = r + 1 == ranks;
      Index read_to = last ? read : read * (r + 1) / ranks / line * line;
      while (next < chunks_.size() && (last || chunks_[next].read_at < read_to)) ++next;
      if (next > begin) {
        const auto& c = chunks_[next - 1];
        read_to = std::max(read_to, (c.read_at + c.length + line - 1) / line * line);
      }
      read_to = std::max(read_to, read_from);
      const Index trained_to = next == chunks_.size() ? trained : chunks_[next].at;
      shares.chunks.push_back({static_cast<Index>(begin), static_cast<Index>(next - begin), r});
      shares.trained.push_back({trained_from, trained_to - trained_from, r});
      shares.read.push_back({read_from, read_to - read_from, r});
      read_from = read_to, trained_from = trained_to;
    }
    return shares;
  }

  template <class T, class U>
  void convert(B& be, const std::byte* from, std::byte* to, bool to_rounded, RankPart part) const {
    be.rows(part.count,
            detail::ConvertChunks<T, U>{chunks() + part.from, reinterpret_cast<const T*>(from),
                                        reinterpret_cast<U*>(to), to_rounded},
            0, length);
  }

  std::vector<Index> first_;  // declared in the order in which they are made
  std::vector<bool> left_out_;
  std::vector<detail::Chunk> chunks_;
  Shares shares_;
  typename B::Memory memory_;  // chunks, first, groups
  std::vector<ParamGroup> sent_;
  std::vector<double> host_sums_;
};

}  // namespace mttt
