// Ranks: the processes that train one model together, one process a GPU, and what they do in common.
//
// A class of ranks is a handle that is copied. It has
//   size(), rank()                  how many there are, and which one this is: 0 writes files and lines
//   all_reduce_sum(be, x, n)            every rank's x[i] becomes the sum over the ranks
//   reduce_scatter(be, x, to, parts)    each part's sum in its owner's `to`; if that is x, what others then hold
//                                       there is undefined
//   all_gather(be, x, to, parts)        every rank's `to` gets each part from its owner's x, which may be `to`
//   mark()                              how far the three have come, a number
//   wait(be, mark)                      the backend's later work sees what they have done until then
//   wait(be)                            the same, of all that they have done
// The three work in the backend's memory, behind what the backend was given before and beside what it is given then:
// that may not touch x or `to` before wait. On numbers of the host,
//   sum(x)                          the sum over the ranks, the same bits at every rank
//   gather(mine, all, parts)        bytes: what each rank holds of its own part, at rank 0, where `all` has room
//                                   for the parts together; elsewhere it is null
//   barrier()
// All ranks call the same of them in the same order with the same parts. OneRank does nothing and costs
// nothing; others are MpiRanks (io/mpi.hpp) and NcclRanks (backend/cuda/nccl.cuh).
//
// Formula: a sum over ranks is added in the order of the ranks by MpiRanks, in that of its rings by NCCL: the same
//          bits in every run with as many ranks.
// Shapes:  parts do not overlap.
// Units:   elements; gather: bytes.
// Errors:  those of MPI and NCCL. A rank that fails leaves the others waiting: the program that catches its error
//          ends them all (MpiSession::abort).
// Not supported: ranks that join or leave; several GPUs in one process.
// Source:  MPI 3.1, chapter 5.
#pragma once

#include <concepts>
#include <cstddef>
#include <vector>

#include "mttt/core/tensor.hpp"

namespace mttt {

/// Elements [from, from + count) of an array, for which one rank stands.
struct RankPart {
  Index from, count;
  int owner;
};
using RankParts = std::vector<RankPart>;

/// Nobody else.
struct OneRank {
  static constexpr int size() { return 1; }
  static constexpr int rank() { return 0; }
  template <class B, class T>
  void all_reduce_sum(B&, T*, Index) const {}
  template <class B, class T>
  void reduce_scatter(B&, const T*, T*, const RankParts&) const {}
  template <class B, class T>
  void all_gather(B&, const T*, T*, const RankParts&) const {}
  static constexpr Index mark() { return 0; }
  template <class B>
  void wait(B&, Index = 0) const {}
  static constexpr double sum(double x) { return x; }
  void gather(const std::byte*, std::byte*, const RankParts&) const {}
  void barrier() const {}
};

template <class R, class B>
concept RanksOf = std::copyable<R> &&
    requires(const R ranks, B be, double* x, std::byte* bytes, const RankParts parts) {
  { ranks.size() } -> std::same_as<int>;
  { ranks.rank() } -> std::same_as<int>;
  ranks.all_reduce_sum(be, x, Index{1});
  ranks.reduce_scatter(be, x, x, parts);
  ranks.all_gather(be, x, x, parts);
  ranks.wait(be, ranks.mark());
  ranks.wait(be);
  { ranks.sum(1.0) } -> std::same_as<double>;
  ranks.gather(bytes, bytes, parts);
  ranks.barrier();
};

/// `whole` rows (lanes of a batch, say), as even as they go; `each` elements a row.
inline RankParts even_parts(Index whole, int size, Index each = 1) {
  RankParts parts;
  for (int r = 0; r < size; ++r) {
    const Index from = whole * r / size, to = whole * (r + 1) / size;
    parts.push_back({from * each, (to - from) * each, r});
  }
  return parts;
}

}  // namespace mttt
