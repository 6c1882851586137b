// Launch constants: element-wise functions and rows at several numbers of threads and blocks. The fastest are
// those of backend/cuda/tuning.cuh.
#include "mttt/nn/norm.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;

/// y = a + b of n elements.
void maps(Cuda<bf16>& be, Index n, int processors) {
  const auto scope = be.scope();
  const auto a = be.make<bf16, dyn>(n), b = be.make<bf16, dyn>(n), y = be.make<bf16, dyn>(n);
  be.fill(a.data(), n, bf16(1));
  be.fill(b.data(), n, bf16(2));
  using Arrays = mttt::detail::MapArrays<mttt::detail::Sum, bf16, bf16, bf16>;
  for (const int threads : {128, 256, 512}) {
    for (const int blocks : {4, 8, 16, 32}) {
      const Index wanted = (n / 8 + threads - 1) / threads;
      const auto grid = static_cast<unsigned>(std::min<Index>(wanted, Index{processors} * blocks));
      char name[80];
      std::snprintf(name, sizeof name, "y = a + b of %td, %d threads, <= %d blocks", n, threads, blocks);
      bench::report(name,
                    bench::milliseconds(be,
                                        [&] {
                                          mttt::detail::map_arrays_kernel<<<grid, threads, 0, be.stream()>>>(
                                              n, Arrays{{}, y.data(), {a.data(), b.data()}});
                                        }),
                    0, 6.0 * static_cast<double>(n));
    }
  }
}

/// RmsNorm of rows x dim.
void norms(Cuda<bf16>& be, Index rows, Index dim, int processors) {
  const auto scope = be.scope();
  const auto x = be.make<bf16, dyn>(rows * dim), y = be.make<bf16, dyn>(rows * dim),
             w = be.make<bf16, dyn>(dim);
  be.fill(x.data(), x.size(), bf16(1));
  be.fill(w.data(), dim, bf16(1));
  for (const int threads : {32, 64, 128, 256, 512}) {
    for (const int blocks : {8, 16, 32}) {
      const auto grid = static_cast<unsigned>(std::min<Index>(rows, Index{processors} * blocks));
      char name[80];
      std::snprintf(name, sizeof name, "norm %td x %td, %d threads, <= %d blocks", rows, dim, threads,
                    blocks);
      bench::report(
          name,
          bench::milliseconds(be,
                              [&] {
                                mttt::detail::rows_kernel<<<grid, threads, 0, be.stream()>>>(
                                    rows,
                                    mttt::detail::Normalise<bf16, float, false>{
                                        x.data(), w.data(), nullptr, y.data(), nullptr, nullptr, dim, 1e-8f},
                                    nullptr, 0);
                              }),
          0, 4.0 * static_cast<double>(rows * dim));
    }
  }
}
}  // namespace

int main() {
  Cuda<bf16> be;
  std::printf("%s\n", mttt::detail::device_name().c_str());
  const int processors = mttt::detail::device_attribute(0, cudaDevAttrMultiProcessorCount);
  for (const Index n : {Index{1} << 14, Index{1} << 20, Index{1} << 23, Index{1} << 27})
    maps(be, n, processors);
  norms(be, 1, 4096, processors);
  norms(be, 2048, 4096, processors);
  norms(be, 8192, 512, processors);
  norms(be, 65536, 64, processors);
  return 0;
}
