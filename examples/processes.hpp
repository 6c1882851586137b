// A program that runs in several processes, where `mpirun` or `srun` started them and MPI was there when it was compiled.
#pragma once

#include <cstdio>
#include <optional>
#include <string>

#include "mttt/train/ranks.hpp"
#include "program.hpp"
#ifdef MTTT_HAS_MPI
#include "mttt/io/mpi.hpp"
#endif

/// run_program in every process. The first one alone prints to stdout; one that fails says which it is and ends all.
template <class F>
int run_processes(const char* name, F work) {
#ifdef MTTT_HAS_MPI
  std::optional<mttt::MpiSession> session;
  if (const int status = run_program(name, [&] { return session.emplace(), 0; }); status != 0) return status;
  const mttt::MpiRanks ranks;
  if (ranks.size() == 1) return run_program(name, work);
  const std::string who =
      std::string(name) + ", rank " + std::to_string(ranks.rank()) + " of " + std::to_string(ranks.size());
  if (ranks.rank() > 0 && std::freopen("/dev/null", "w", stdout) == nullptr) session->abort(1);
  const int status = run_program(who.c_str(), work);
  if (status != 0) session->abort(status);
  return status;
#else
  return run_program(name, work);
#endif
}

/// This process among those that train together.
#ifdef MTTT_HAS_MPI
using Processes = mttt::MpiRanks;
#else
using Processes = mttt::OneRank;
#endif
