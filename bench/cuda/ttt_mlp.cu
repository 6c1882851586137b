// The scans of TTT-MLP alone, on a GPU: at the shapes of the published kernels (64 heads of 64, 256 hidden), and
// at those of Moshi's temporal transformer (32 heads of 128, 512 hidden).
#include "ttt.cuh"

int main() {
  using namespace mttt;
  std::printf("%s\n", detail::device_name().c_str());
  Cuda<bf16> be;
  bench::time_ttt<64, 256, 2, 64>(be, 1, 2048, 64, 1.42, 16.0);
  bench::time_ttt<64, 256, 2, 64>(be, 8, 2048, 64, 8.3, 98);
  bench::time_ttt<64, 256, 2, 64>(be, 1, 32768, 64, 16.5, 217);
  bench::time_ttt<64, 256, 2, 64>(be, 4, 32768, 64, 65.5, 695);
  bench::time_ttt<64, 256, 2, 16>(be, 1, 2048, 64);
  bench::time_ttt<64, 256, 2, 32>(be, 1, 2048, 64);
  for (const Index steps : {2048, 3750}) {
    bench::time_ttt<128, 512, 2, 16>(be, 1, steps, 32);
    bench::time_ttt<128, 512, 2, 64>(be, 1, steps, 32);
  }
  bench::time_ttt<128, 512, 2, 32>(be, 1, 2048, 32);
  bench::time_ttt<128, 512, 2, 64>(be, 8, 2048, 32);
  bench::time_composed_ttt<128, 512, 2, 64>(be, 1, 2048, 32);
}
