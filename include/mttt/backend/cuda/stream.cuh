// Stream: the queue of work of a backend. CudaGraph: a piece of such work, recorded once and run many times.
//
// A graph starts in one call what took a call for each kernel: a streaming step of hundreds of short kernels
// costs what the kernels take. It holds the addresses that the recorded calls used: inputs are written to the
// same memory before each launch, and results read from the same memory.
//
// Shapes:  none.   Units: none.
// Errors:  those of check.cuh; work that waits for the GPU cannot be recorded.
// Not supported: changing a graph; launching one on another stream than its own.
// Source:  CUDA C++ Programming Guide, CUDA Graphs (stream capture).
#pragma once

#include <memory>
#include <utility>

#include "mttt/backend/cuda/check.cuh"
#include "mttt/core/tensor.hpp"

namespace mttt {

namespace detail {

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }  // NOLINT: implicit on purpose

 private:
  cudaStream_t stream_ = nullptr;
};

/// Ends a recording that an exception interrupts, so that the stream works again.
class Recording {
 public:
  explicit Recording(cudaStream_t stream) : stream_(stream) {
    // Relaxed: the arena may grow meanwhile.
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "recording a graph");
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  ~Recording() {
    if (stream_ == nullptr) return;
    cudaGraph_t abandoned = nullptr;
    cudaStreamEndCapture(stream_, &abandoned);
    if (abandoned != nullptr) cudaGraphDestroy(abandoned);
    cudaGetLastError();
  }
  cudaGraph_t end() {
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(std::exchange(stream_, nullptr), &graph), "recording a graph");
    return graph;
  }

 private:
  cudaStream_t stream_;
};

}  // namespace detail

class CudaGraph {
 public:
  /// Records what `work` queues on `stream`; `owner` keeps alive what the stream belongs to.
  template <class F>
  CudaGraph(cudaStream_t stream, std::shared_ptr<void> owner, F& work)
      : stream_(stream), owner_(std::move(owner)) {
    detail::Recording recording(stream);
    work();
    const cudaGraph_t graph = recording.end();
    const cudaError_t counted = cudaGraphGetNodes(graph, nullptr, &nodes_);
    const cudaError_t made = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    detail::check(counted, "counting a graph's nodes");
    detail::check(made, "making a graph");
  }
  CudaGraph(CudaGraph&& other) noexcept
      : stream_(other.stream_),
        owner_(std::move(other.owner_)),
        graph_(std::exchange(other.graph_, nullptr)),
        nodes_(other.nodes_) {}
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  CudaGraph& operator=(CudaGraph&&) = delete;
  ~CudaGraph() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  /// Queues the recorded work behind what the stream holds.
  void launch() { detail::check(cudaGraphLaunch(graph_, stream_), "starting a graph"); }
  /// Kernels, copies and fills of one launch.
  Index nodes() const { return static_cast<Index>(nodes_); }

 private:
  cudaStream_t stream_;
  std::shared_ptr<void> owner_;
  cudaGraphExec_t graph_ = nullptr;
  std::size_t nodes_ = 0;
};

}  // namespace mttt
