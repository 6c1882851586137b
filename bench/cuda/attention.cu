// Attention on a GPU: both passes over whole sequences in bf16, and a step over ring caches.
//
// Counted for a pass: 4 head_dim FLOPs a (query, key) pair that the mask leaves; backward 2.5 times the
// forward, as the published flash algorithms count it (ours computes scores and dp twice, which is not
// counted). For a step: the bytes of the keys and values that a session has. Steps walk over several layers'
// rings in turn, more than the GPU's cache holds, in one recorded graph.
#include <cstdio>
#include <vector>

#include "mttt/cuda.cuh"
#include "mttt/nn/attention.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using bench::peak_flops;

/// Milliseconds of one call, at best.
template <class B, class F>
double milliseconds(B& be, int calls, F&& f) {
  return bench::times(be.stream(), 3, calls, f).front();
}

/// Numbers in [-1, 1) that differ: zeros would draw less power, and so clock higher.
template <class T>
struct Spread {
  T* to;
  MTTT_HD void operator()(Index i) const {
    const auto bits = static_cast<std::uint32_t>(i) * 2654435761u;
    to[i] = T(static_cast<float>(bits >> 8) * 0x1p-23f - 1);
  }
};
template <class B, class T>
T* numbers(B& be, Index n) {
  T* to = be.template make<T, dyn>(n).data();
  be.for_each(n, Spread<T>{to});
  return to;
}

void sequence(Index batch, Index steps, Index heads, Index dim, Index context, int calls = 30) {
  Cuda<bf16> be;
  const AttentionShape shape{heads, heads, dim, context};
  const Index width = heads * dim, rows = batch * steps;
  const Strides in{3 * steps * width, 3 * width}, to{steps * width, width};
  const bf16 *q = numbers<Cuda<bf16>, bf16>(be, 3 * rows * width),
             *up = numbers<Cuda<bf16>, bf16>(be, rows * width);
  bf16 *out = numbers<Cuda<bf16>, bf16>(be, rows * width),
       *dq = numbers<Cuda<bf16>, bf16>(be, 3 * rows * width);
  float* lse = numbers<Cuda<bf16>, float>(be, rows * heads);
  double pairs = 0;
  for (Index t = 0; t < steps; ++t) pairs += static_cast<double>(t - shape.first_key(t) + 1);
  const double flops = 4 * pairs * static_cast<double>(batch * width);
  const auto print = [&](const char* what, double ms, double of) {
    std::printf("%-8s B %ld, %ld x %ld, T %4ld, context %4ld: %8.4f ms %7.1f TFLOP/s, %4.1f %% of 790\n",
                what, long(batch), long(heads), long(dim), long(steps), long(context), ms, of / ms * 1e-9,
                100 * of / ms * 1e3 / peak_flops);
  };
  print("forward",
        milliseconds(be, calls,
                     [&] {
                       attend<Cuda<bf16>, bf16>(be, shape, batch, steps, q, q + width, q + 2 * width, in, out,
                                                to, lse);
                     }),
        flops);
  print("backward",
        milliseconds(be, calls,
                     [&] {
                       attend_backward<Cuda<bf16>, bf16>(be, shape, batch, steps, q, q + width, q + 2 * width,
                                                         in, out, up, to, lse, dq, dq + width,
                                                         dq + 2 * width);
                     }),
        2.5 * flops);
  be.synchronize();
}

template <class T>
void step(Index batch, Index heads, Index dim, Index context, Index filled) {
  Cuda<T> be;
  const AttentionShape shape{heads, heads, dim, context};
  const Index width = heads * dim, ring = batch * width * context;
  const double bytes = 2.0 * static_cast<double>(batch * width * filled) * sizeof(T);
  const Index layers = batch > 1 ? 4 : 8;
  std::vector<T*> keys, values;
  for (Index i = 0; i < layers; ++i) {
    keys.push_back(numbers<Cuda<T>, T>(be, ring));
    values.push_back(numbers<Cuda<T>, T>(be, ring));
  }
  const T* qkv = numbers<Cuda<T>, T>(be, batch * 3 * width);
  T* out = numbers<Cuda<T>, T>(be, batch * width);
  std::int64_t* positions = be.template make<std::int64_t, dyn>(batch).data();
  be.fill(positions, batch, static_cast<std::int64_t>(filled - 1));
  const auto all = [&] {
    for (Index i = 0; i < layers; ++i) {
      attend_step<Cuda<T>, T>(be, shape, batch, 1, qkv, qkv + width, qkv + 2 * width, {3 * width, 3 * width},
                              keys[i], values[i], positions, Mask{}, out, {width, width});
    }
  };
  auto graph = be.capture(all);
  const double ms = milliseconds(be, 10, [&] { graph.launch(); }) / static_cast<double>(layers);
  std::printf(
      "step     B %2ld, %ld x %ld, %zu bytes, %4ld of %ld keys: %8.2f us %8.2f MB %7.1f GB/s, %4.1f %% of "
      "4800\n",
      long(batch), long(heads), long(dim), sizeof(T), long(filled), long(context), 1e3 * ms, bytes / 1e6,
      bytes / ms * 1e-6, 100 * bytes / ms * 1e3 / bench::peak_bytes);
  be.synchronize();
}
}  // namespace

int main() {
  std::printf("%s\n", detail::device_name().c_str());
  sequence(1, 2048, 32, 128, 0);
  sequence(1, 2048, 32, 128, 250);
  sequence(1, 3750, 32, 128, 3000);
  sequence(4, 2048, 32, 128, 0, 10);
  sequence(1, 2048, 16, 64, 0);
  sequence(2048, 16, 16, 64, 0);
  for (const Index batch : {1, 16}) {
    for (const Index filled : {100, 750, 3000}) step<bf16>(batch, 32, 128, 3000, filled);
  }
  step<float>(1, 32, 128, 3000, 3000);
  step<bf16>(1, 16, 64, 3000, 3000);
}
