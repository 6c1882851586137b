// The processes that train together: those that `mpirun` or `srun` started, if MPI was there when this was compiled.
// On a GPU their numbers meet by NCCL.
#pragma once

#include "backend.hpp"
#include "processes.hpp"
#if defined(MTTT_EXAMPLES_CUDA) && defined(MTTT_HAS_NCCL)
#include "mttt/backend/cuda/nccl.cuh"
#endif

#ifdef MTTT_EXAMPLES_CUDA
#ifdef MTTT_HAS_NCCL

using Ranks = mttt::NcclRanks;
/// The GPU of this process.
template <mttt::StorageType T>
Device<T> open_device() {
  return Device<T>(mttt::device_of(Processes()));
}
template <class B>
Ranks ranks_of(B& be) {
  return Ranks(be);
}

#else

using Ranks = mttt::OneRank;
template <mttt::StorageType T>
Device<T> open_device() {
  if (Processes().size() > 1)
    mttt::fail("this program", "no NCCL when it was compiled", "it, for several GPUs",
               "install NCCL or set NCCL_ROOT, and compile again");
  return Device<T>();
}
template <class B>
Ranks ranks_of(B&) {
  return {};
}

#endif
#else

using Ranks = Processes;
template <mttt::StorageType T>
Device<T> open_device() {
  return Device<T>();
}
template <class B>
Ranks ranks_of(B&) {
  return {};
}

#endif
