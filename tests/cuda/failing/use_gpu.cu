// use_gpu [fault]: uses the GPU as any program does, and prints what cannot be done in one line. Run by
// tests/cuda/failures.cu, each time as a process of its own: without a GPU, compiled for another GPU, and with a
// kernel that writes where nothing is.
#include <cstdio>
#include <cstring>

#include "mttt/cuda.cuh"

namespace {
struct Write {
  int* to;
  MTTT_HD void operator()(mttt::Index i) const { to[i] = 42; }
};
}  // namespace

int main(int argc, char** argv) try {
  mttt::Cuda<float> gpu;
  const auto x = gpu.make<int, mttt::dyn>(1000);
  const bool fault = argc > 1 && std::strcmp(argv[1], "fault") == 0;
  gpu.for_each(1000, Write{fault ? reinterpret_cast<int*>(64) : x.data()});
  gpu.synchronize();
  int last = 0;
  gpu.to_host(&x(999), &last, 1);
  std::printf("found %d\n", last);
  return last == 42 ? 0 : 3;
} catch (const mttt::Error& error) {
  std::printf("%s\n", error.what());
  return 1;
}
