// The scans of TTT-Linear alone, on a GPU: at the shapes of the published kernels (64 heads of 64), and at
// those of Moshi's temporal transformer (32 heads of 128).
#include "ttt.cuh"

int main() {
  using namespace mttt;
  std::printf("%s\n", detail::device_name().c_str());
  Cuda<bf16> be;
  bench::time_ttt<64, 256, 1, 16>(be, 1, 2048, 64, 0.42, 3.2);
  bench::time_ttt<64, 256, 1, 64>(be, 1, 2048, 64, 0.24, 2.7);
  bench::time_ttt<64, 256, 1, 16>(be, 8, 2048, 64, 1.05, 7.1);
  bench::time_ttt<64, 256, 1, 64>(be, 8, 2048, 64, 0.50, 7.9);
  bench::time_ttt<64, 256, 1, 64>(be, 1, 32768, 64, 2.2, 28.8);
  bench::time_ttt<64, 256, 1, 64>(be, 4, 32768, 64, 3.3, 59.4);
  for (const Index steps : {2048, 3750}) {
    bench::time_ttt<128, 512, 1, 16>(be, 1, steps, 32);
    bench::time_ttt<128, 512, 1, 64>(be, 1, steps, 32);
  }
  bench::time_composed_ttt<64, 256, 1, 16>(be, 1, 2048, 64);
}
