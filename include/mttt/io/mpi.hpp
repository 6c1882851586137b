// MpiRanks: processes that `mpirun` or `srun` started, over MPI; on the CPU their numbers too.
//
// MpiSession stands in main: it starts MPI if a launcher started this process, and ends it. MpiRanks are all
// processes then, and one alone otherwise, for which MPI is never touched: a program that is linked with MPI runs
// as before.
//
// Formula: sums are added in the order of the ranks, element by element, whoever owns them: the bits of
//          all_reduce_sum are those of reduce_scatter.
// Shapes:  see train/ranks.hpp.
// Units:   elements, bytes.
// Errors:  MPI's, which end all ranks with MPI's own message; `srun` without an MPI plugin, whose processes do not
//          know of each other.
// Not supported: communicators other than MPI_COMM_WORLD; MPI calls from several threads.
// Source:  MPI 3.1; Open MPI, MPICH and SLURM for the variables that launchers set.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>

#define OMPI_SKIP_MPICXX 1  // the C++ bindings of MPI 2, which are gone from MPI 3
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/train/ranks.hpp"

namespace mttt {

/// MPI from here to the end of the object's life.
class MpiSession {
 public:
  MpiSession() {
    const auto number = [](const char* name) {
      const char* text = std::getenv(name);
      return text == nullptr ? -1 : std::atoi(text);
    };
    bool launched = false;
    for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"})
      launched = launched || number(name) >= 0;
    if (!launched && number("SLURM_STEP_NUM_TASKS") > 1) {
      fail("srun", std::to_string(number("SLURM_STEP_NUM_TASKS")) + " processes that MPI does not connect",
           "an MPI plugin of SLURM", "add --mpi=pmix to srun (srun --mpi=list names others), or use mpirun");
    }
    if (launched) MPI_Init(nullptr, nullptr);
  }
  ~MpiSession() {
    if (running()) MPI_Finalize();
  }
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  static bool running() {
    int started = 0, ended = 0;
    MPI_Initialized(&started);
    if (started != 0) MPI_Finalized(&ended);
    return started != 0 && ended == 0;
  }

  /// Ends all ranks, those that wait for this one too. Alone, it does nothing.
  void abort(int status) const {
    if (running()) MPI_Abort(MPI_COMM_WORLD, status);
  }
};

class MpiRanks {
 public:
  MpiRanks() {
    if (!MpiSession::running()) return;
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  }

  int size() const { return size_; }
  int rank() const { return rank_; }

  /// The place of this process among those of the same machine: the number of its GPU.
  int local_rank() const {
    if (size_ == 1) return 0;
    MPI_Comm machine;
    int local = 0;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &machine);
    MPI_Comm_rank(machine, &local);
    MPI_Comm_free(&machine);
    return local;
  }

  template <class B, class T>
  void all_reduce_sum(B& be, T* x, Index n) const {
    const RankParts parts = even_parts(n, size_);
    reduce_scatter(be, x, x, parts);
    all_gather(be, x, x, parts);
  }

  template <class B, class T>
  void reduce_scatter(B&, const T* x, T* to, const RankParts& parts) const {
    static_assert(std::same_as<typename B::Memory, CpuMemory>, "on a GPU use NcclRanks");
    if (size_ == 1) return;
    std::vector<T> all;
    for (const RankPart& part : parts) {
      for (Index at = 0; at < part.count; at += piece)
        add_piece(x + part.from + at, to + part.from + at, std::min(piece, part.count - at), part.owner, all);
    }
  }

  template <class B, class T>
  void all_gather(B&, const T* x, T* to, const RankParts& parts) const {
    static_assert(std::same_as<typename B::Memory, CpuMemory>, "on a GPU use NcclRanks");
    for (const RankPart& part : parts) {
      if (part.owner == rank_ && x != to) std::copy_n(x + part.from, part.count, to + part.from);
      broadcast(to + part.from, part.count * static_cast<Index>(sizeof(T)), part.owner);
    }
  }

  static constexpr Index mark() { return 0; }
  template <class B>
  void wait(B&, Index = 0) const {}  // nothing goes on beside a CPU's work

  double sum(double x) const {
    if (size_ == 1) return x;
    std::vector<double> all(static_cast<std::size_t>(size_));
    MPI_Allgather(&x, 1, MPI_DOUBLE, all.data(), 1, MPI_DOUBLE, MPI_COMM_WORLD);
    double total = 0;
    for (const double one : all) total += one;
    return total;
  }

  void gather(const std::byte* mine, std::byte* all, const RankParts& parts) const {
    for (const RankPart& part : parts) {
      for (Index at = 0; at < part.count; at += message) {
        const int n = static_cast<int>(std::min(message, part.count - at));
        std::byte* const to = rank_ == 0 ? all + part.from + at : nullptr;
        if (part.owner == 0) {
          if (rank_ == 0) std::memcpy(to, mine + at, static_cast<std::size_t>(n));
        } else if (rank_ == part.owner) {
          MPI_Send(mine + at, n, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
        } else if (rank_ == 0) {
          MPI_Recv(to, n, MPI_BYTE, part.owner, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        }
      }
    }
  }

  /// The bytes of rank `from` at all ranks.
  void broadcast(void* bytes, Index n, int from = 0) const {
    for (Index at = 0; size_ > 1 && at < n; at += message) {
      MPI_Bcast(static_cast<std::byte*>(bytes) + at, static_cast<int>(std::min(message, n - at)), MPI_BYTE,
                from, MPI_COMM_WORLD);
    }
  }

  void barrier() const {
    if (size_ > 1) MPI_Barrier(MPI_COMM_WORLD);
  }

 private:
  static constexpr Index piece = Index{1} << 18;    // elements that are added up at a time
  static constexpr Index message = Index{1} << 28;  // bytes: MPI counts in int

  /// The owner gets what all have and adds it up.
  template <class T>
  void add_piece(const T* x, T* to, Index n, int owner, std::vector<T>& all) const {
    const auto count = static_cast<std::size_t>(n);
    const int bytes = static_cast<int>(count * sizeof(T));
    if (rank_ == owner) all.resize(count * static_cast<std::size_t>(size_));
    MPI_Gather(x, bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, owner, MPI_COMM_WORLD);
    if (rank_ != owner) return;
    std::copy_n(all.begin(), count, to);
    for (std::size_t from = count; from < all.size(); from += count) {
      for (std::size_t i = 0; i < count; ++i) to[i] += all[from + i];
    }
  }

  int size_ = 1, rank_ = 0;
};

}  // namespace mttt
