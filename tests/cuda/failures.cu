// What goes wrong on a GPU machine, or on one that is none, is said in one sentence. Cases that need no GPU
// have the tag [no-gpu].
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <list>

#include "catch.hpp"
#include "mttt/core/store.hpp"
#include "mttt/cuda.cuh"

namespace {
using namespace mttt;
using Catch::Matchers::Equals;
using mttt::test::contains;

/// What a program prints, and its exit status.
struct Outcome {
  std::string text;
  int status;
};
Outcome run(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  Outcome outcome{};
  std::array<char, 512> piece{};
  while (std::fgets(piece.data(), static_cast<int>(piece.size()), pipe) != nullptr)
    outcome.text += piece.data();
  const int ended = pclose(pipe);
  outcome.status = WIFEXITED(ended) ? WEXITSTATUS(ended) : -1;
  return outcome;
}
/// The program `name`, which lies beside this one.
Outcome use_gpu(const std::string& environment, const std::string& name, const std::string& argument = "") {
  char self[4096];
  const auto length = readlink("/proc/self/exe", self, sizeof self - 1);
  REQUIRE(length > 0);
  const std::string path(self, static_cast<std::size_t>(length));
  const std::string folder = path.substr(0, path.rfind('/'));
  return run(environment + " '" + folder + "/" + name + "' " + argument);
}

bool has_driver() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version != 0;
}

struct HugeParams {
  Tensor<float, Index{1} << 42> weight;
  static void visit(auto&& f, auto&&... p) { f("weight", p.weight...); }
};
struct RowsOfSessions {
  Tensor<float, dyn, 1024> rows;
  static void visit(auto&& f, auto&&... p) { f("rows", p.rows...); }
};

/// The backend does what it should.
void require_works(Cuda<float>& gpu) {
  const auto x = gpu.make<float, dyn>(10);
  gpu.fill(x.data(), 10, 2.0f);
  float host[10]{};
  gpu.to_host(x.data(), host, 10);
  REQUIRE(host[9] == 2.0f);
}
}  // namespace

TEST_CASE("CUDA: a machine without a GPU or without a driver says so", "[no-gpu]") {
  const Outcome outcome = use_gpu("CUDA_VISIBLE_DEVICES=", "use_gpu");
  CHECK(outcome.status == 1);
  if (has_driver()) {
    CHECK(outcome.text ==
          "CUDA: opening a GPU: found no GPU; expected an NVIDIA GPU; check nvidia-smi and "
          "CUDA_VISIBLE_DEVICES, "
          "or use the CPU backend\n");
  } else {
    CHECK_THAT(outcome.text,
               Equals("CUDA: opening a GPU: found no NVIDIA driver; expected a driver for CUDA " +
                      detail::cuda_version(CUDART_VERSION) +
                      " or later; install an NVIDIA driver, or use the CPU backend\n"));
  }
}

TEST_CASE("CUDA: a driver that is too old is named with what is needed", "[no-gpu]") {
  CHECK_THROWS_WITH(detail::cuda_fail(cudaErrorInsufficientDriver, "opening a GPU", {12040, 13000}),
                    Equals("CUDA: opening a GPU: found an NVIDIA driver for CUDA 12.4; expected a driver for "
                           "CUDA 13.0 or later; "
                           "install a newer driver, or use the CPU backend"));
  CHECK_THROWS_WITH(
      detail::cuda_fail(cudaErrorUnsupportedPtxVersion, "opening a GPU", {13000, 13020}),
      contains("found an NVIDIA driver for CUDA 13.0; expected a driver for CUDA 13.2 or later"));
  CHECK_THROWS_WITH(detail::cuda_fail(cudaErrorInsufficientDriver, "opening a GPU", {0, 13000}),
                    contains("found no NVIDIA driver; expected a driver for CUDA 13.0 or later"));
}

TEST_CASE("CUDA: other errors are named as CUDA names them", "[no-gpu]") {
  CHECK_THROWS_WITH(
      detail::check(cudaErrorInvalidValue, "copying on the GPU"),
      contains("CUDA: copying on the GPU: found cudaErrorInvalidValue (invalid argument); expected"));
  CHECK_THROWS_WITH(
      detail::check(CUBLAS_STATUS_INVALID_VALUE, "a product"),
      contains("cuBLAS: a product: found CUBLAS_STATUS_INVALID_VALUE (") && contains("); expected success"));
  CHECK_THROWS_WITH(detail::check(cudaErrorDevicesUnavailable, "opening a GPU"),
                    contains("found a GPU that another program holds"));
  CHECK_NOTHROW(detail::check(cudaSuccess, "nothing"));
}

TEST_CASE("CUDA: the program beside this one works with a GPU") {
  const Outcome outcome = use_gpu("", "use_gpu");
  CHECK(outcome.text == "found 42\n");
  CHECK(outcome.status == 0);
}

TEST_CASE("CUDA: a program compiled for another GPU says so") {
  const Outcome outcome = use_gpu("", "use_gpu_elsewhere");
  CHECK_THAT(outcome.text,
             Equals("CUDA: opening a GPU: found " + detail::device_name() +
                    "; expected a GPU that this program was compiled for; compile again with this "
                    "GPU's number in CMAKE_CUDA_ARCHITECTURES\n"));
  CHECK(outcome.status == 1);
}

TEST_CASE("CUDA: the fault of a kernel is an Error of synchronize()") {
  const Outcome outcome = use_gpu("", "use_gpu", "fault");
  CHECK_THAT(outcome.text,
             Equals("CUDA: waiting for the GPU: found cudaErrorIllegalAddress (an illegal memory "
                    "access was encountered); expected kernels without a fault; end the program, "
                    "whose GPU context is lost; compute-sanitizer finds the kernel\n"));
  CHECK(outcome.status == 1);
}

TEST_CASE("CUDA: a GPU that is not there") {
  int count = 0;
  REQUIRE(cudaGetDeviceCount(&count) == cudaSuccess);
  const std::string found =
      count == 1 ? "found 1 GPU; expected number 0;" : " GPUs; expected a number from 0 to ";
  CHECK_THROWS_WITH(Cuda<float>(1000), contains("CUDA: opening GPU 1000: ") && contains(found));
  CHECK_THROWS_WITH(Cuda<float>(-1), contains("CUDA: opening GPU -1: ") && contains(found));
  CHECK_THROWS_WITH(Cuda<float>(count), contains("CUDA: opening GPU " + std::to_string(count) + ": "));
}

TEST_CASE("CUDA: memory that cannot be had: for what, how much, and what to lower") {
  Cuda<float> gpu;
  const auto activations = [&] { gpu.make<float, dyn>(Index{1} << 44); };
  CHECK_THROWS_WITH(activations(), contains("GPU memory for activations: found ") &&
                                       contains(" GiB free of ") &&
                                       contains("expected 65536.0 GiB more; lower batch or steps"));
  using Huge = Store<HugeParams, Cuda<float>>;
  CHECK_THROWS_WITH(Huge(gpu), contains("GPU memory for parameters, gradients or moments: found ") &&
                                   contains("expected 16384.0 GiB more; choose a smaller model"));
  using Sessions = Store<RowsOfSessions, Cuda<float>>;
  CHECK_THROWS_WITH(Sessions(gpu, Index{1} << 32),
                    contains("GPU memory for the state of sessions: found ") &&
                        contains("expected 16384.0 GiB more; lower the number of sessions"));
  CHECK_THROWS_WITH(CudaMemory(-1), contains("GPU memory for other data"));
  require_works(gpu);
}

TEST_CASE("CUDA: a GPU that is full") {
  Cuda<float> gpu;
  struct Piece {
    void* data = nullptr;
    ~Piece() { cudaFree(data); }
  };
  {
    std::list<Piece> pieces;  // not CudaMemory, whose zeros would take time
    const auto take_all = [&](std::size_t largest, std::size_t smallest) {
      for (std::size_t size = largest; size >= smallest; size /= 2) {
        pieces.emplace_back();
        while (cudaMalloc(&pieces.back().data, size) == cudaSuccess) pieces.emplace_back();
      }
      cudaGetLastError();
    };
    take_all(std::size_t{1} << 37, 1 << 24);  // room for a stream is left, for a workspace not
    CHECK_THROWS_WITH(Cuda<float>(), contains("GPU memory for products (the cuBLAS workspace): found ") &&
                                         contains(" more; end other programs"));
    const auto activations = [&] { gpu.make<float, dyn>(1 << 24); };
    CHECK_THROWS_WITH(activations(), contains("GPU memory for activations: found ") &&
                                         contains("expected 64.0 MiB more; lower batch or steps"));
    take_all(1 << 23, 1 << 20);  // not even for a stream
    CHECK_THROWS_WITH(Cuda<float>(), contains("; expected ") && contains("; end other programs"));
  }
  require_works(gpu);
  Cuda<float> another;
  require_works(another);
}

TEST_CASE("CUDA: a graph cannot wait for the GPU") {
  Cuda<float> gpu;
  const auto x = gpu.make<float, dyn>(100);
  std::vector<float> host(100);
  const auto advice = contains(
      "found a graph that is being recorded; expected work that does not wait for the "
      "GPU; move to_host, to_device and synchronize out of what capture() runs");
  const auto fetch = [&] {
    gpu.fill(x.data(), 100, 3.0f);
    gpu.to_host(x.data(), host.data(), 100);
  };
  const auto send = [&] { gpu.to_device(host.data(), x.data(), 100); };
  const auto wait = [&] { gpu.synchronize(); };
  CHECK_THROWS_WITH(gpu.capture(fetch), advice);
  require_works(gpu);
  CHECK_THROWS_WITH(gpu.capture(send), advice);
  require_works(gpu);
  CHECK_THROWS_WITH(gpu.capture(wait), contains("CUDA: waiting for the GPU: ") && advice);
  require_works(gpu);
  CudaGraph graph = gpu.capture([&] { gpu.fill(x.data(), 100, 5.0f); });
  graph.launch();
  gpu.to_host(x.data(), host.data(), 100);
  CHECK(std::count(host.begin(), host.end(), 5.0f) == 100);
}

TEST_CASE("CUDA: an exception of what is recorded passes through, and the backend goes on") {
  Cuda<float> gpu;
  const auto x = gpu.make<float, dyn>(100);
  const auto stops = [&] {
    gpu.fill(x.data(), 100, 3.0f);
    fail("a block", "a mistake", "none");
  };
  CHECK_THROWS_WITH(gpu.capture(stops), contains("a block: found a mistake"));
  require_works(gpu);
}
