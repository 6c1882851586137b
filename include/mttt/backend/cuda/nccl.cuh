// NcclRanks: processes that train on one GPU each, over NCCL. MPI starts them and carries what the host sums.
//
// Formula, shapes, units: see train/ranks.hpp. Parts are reduced to, and sent out by, their owners, in one
//          group of calls that NCCL runs as one.
// Errors:  NCCL's, with its own words; more processes than GPUs on a machine.
// Not supported: two processes on one GPU; moving on without a rank that was lost.
// Source:  the NCCL user guide, "Using multiple NCCL communicators concurrently" and "Group calls".
#pragma once

#include <nccl.h>

#include <array>
#include <memory>
#include <string>

#include "mttt/backend/cuda/cuda.cuh"
#include "mttt/io/mpi.hpp"

namespace mttt {

namespace detail {

inline void check(ncclResult_t found, const char* doing) {
  if (found == ncclSuccess) return;
  fail(std::string("NCCL, ") + doing, ncclGetErrorString(found), "success",
       std::string(ncclGetLastError(nullptr)) + "; NCCL_DEBUG=INFO says more");
}

template <class T>
constexpr ncclDataType_t nccl_type() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>, "sums are of float or double");
  return std::is_same_v<T, float> ? ncclFloat32 : ncclFloat64;
}

}  // namespace detail

/// The GPU of this process: the one of its place among the processes of this machine; the only one, where the
/// launcher shows each process but its own.
inline int device_of(const MpiRanks& ranks) {
  int count = 0;
  detail::check(cudaGetDeviceCount(&count), "counting the GPUs");
  const int local = ranks.local_rank();
  if (count == 1 && ranks.size() > 1) return 0;
  if (local >= count) {
    fail("processes on this machine", "more than " + std::to_string(count), "one a GPU",
         "start one process for each GPU: mpirun -n " + std::to_string(count));
  }
  return local;
}

namespace detail {

/// A connection of all ranks with a stream of its own, so that sums go on beside the backend's work.
struct NcclLink {
  ncclComm_t communicator = nullptr;
  cudaStream_t stream = nullptr;
  cudaEvent_t given = nullptr;
  std::array<cudaEvent_t, 16> marks{};  // in turns: whoever waits for an older one waits for a later one
  Index marked = 0;

  NcclLink(int size, int rank, const ncclUniqueId& id) {
    int least = 0, greatest = 0;  // sums first: others wait for them
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities");
    check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest), "making a stream");
    check(cudaEventCreateWithFlags(&given, cudaEventDisableTiming), "making an event");
    for (cudaEvent_t& mark : marks)
      check(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming), "making an event");
    check(ncclCommInitRank(&communicator, size, id, rank), "connecting the ranks");
  }
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;
  ~NcclLink() {
    cudaStreamSynchronize(stream);
    ncclCommDestroy(communicator);
    cudaEventDestroy(given);
    for (const cudaEvent_t mark : marks) cudaEventDestroy(mark);
    cudaStreamDestroy(stream);
  }
};

}  // namespace detail

class NcclRanks {
 public:
  /// All ranks at once. `be` is on the GPU of this process.
  template <StorageType T>
  explicit NcclRanks(Cuda<T>& be, MpiRanks ranks = {}) : ranks_(ranks) {
    if (ranks_.size() == 1) return;
    ncclUniqueId id{};
    if (ranks_.rank() == 0) detail::check(ncclGetUniqueId(&id), "opening the communication");
    ranks_.broadcast(&id, sizeof id);
    detail::check(cudaSetDevice(be.device()), "choosing the GPU");
    link_ = std::make_shared<detail::NcclLink>(ranks_.size(), ranks_.rank(), id);
  }

  int size() const { return ranks_.size(); }
  int rank() const { return ranks_.rank(); }

  template <class B, class T>
  void all_reduce_sum(B& be, T* x, Index n) const {
    together(be, {{0, n, 0}}, "a sum over the ranks", [&](const RankPart& all) {
      return ncclAllReduce(x, x, static_cast<std::size_t>(all.count), detail::nccl_type<T>(), ncclSum,
                           link_->communicator, link_->stream);
    });
  }
  template <class B, class T>
  void reduce_scatter(B& be, const T* x, T* to, const RankParts& parts) const {
    together(be, parts, "a sum over the ranks, each its part", [&](const RankPart& part) {
      return ncclReduce(x + part.from, to + part.from, static_cast<std::size_t>(part.count),
                        detail::nccl_type<T>(), ncclSum, part.owner, link_->communicator, link_->stream);
    });
  }
  template <class B, class T>
  void all_gather(B& be, const T* x, T* to, const RankParts& parts) const {
    together(be, parts, "sending the ranks' parts to all", [&](const RankPart& part) {
      return ncclBroadcast(x + part.from, to + part.from, static_cast<std::size_t>(part.count) * sizeof(T),
                           ncclUint8, part.owner, link_->communicator, link_->stream);
    });
  }
  Index mark() const {
    if (size() == 1) return 0;
    detail::check(cudaEventRecord(event(link_->marked), link_->stream), "recording an event");
    return link_->marked++;
  }
  template <class B>
  void wait(B& be, Index mark) const {
    if (size() > 1) detail::check(cudaStreamWaitEvent(be.stream(), event(mark)), "waiting for the ranks");
  }
  template <class B>
  void wait(B& be) const {
    wait(be, mark());
  }

  double sum(double x) const { return ranks_.sum(x); }
  void gather(const std::byte* mine, std::byte* all, const RankParts& parts) const {
    ranks_.gather(mine, all, parts);
  }
  void barrier() const { ranks_.barrier(); }

 private:
  cudaEvent_t event(Index mark) const {
    return link_->marks[static_cast<std::size_t>(mark) % link_->marks.size()];
  }

  template <class B, class F>
  void together(B& be, const RankParts& parts, const char* doing, const F& f) const {
    if (size() == 1) return;
    detail::check(cudaEventRecord(link_->given, be.stream()), "recording an event");
    detail::check(cudaStreamWaitEvent(link_->stream, link_->given), "waiting for the backend");
    detail::check(ncclGroupStart(), doing);
    for (const RankPart& part : parts) {
      if (part.count > 0) detail::check(f(part), doing);
    }
    detail::check(ncclGroupEnd(), doing);
  }

  MpiRanks ranks_;
  std::shared_ptr<detail::NcclLink> link_;
};

}  // namespace mttt
