// One frame of Moshi 7B in bf16, and the products of its layers alone.
//
//   bench_cuda_frame [products]      the products alone
#include "frame.cuh"

#include <cstring>

namespace {
using namespace mttt;
using bench::show;
using Base = Cuda<bf16>;
constexpr MoshiConfig config = presets::moshi_7b;

/// The four products of a layer, from layer to layer, alone and as a chain.
void products() {
  Base be;
  constexpr Index dim = config.temporal.dim, hidden = config.temporal.hidden, layers = 8;
  const auto make = [&](Index n) {
    const auto t = be.make<bf16, dyn>(n);
    be.for_each(n, bench::Fill<bf16>{t.data(), 0.02f});
    return t.data();
  };
  bf16 *in = make(layers * 3 * dim * dim), *out = make(layers * dim * dim),
       *up = make(layers * 2 * hidden * dim), *down = make(layers * dim * hidden), *norm = make(dim),
       *x = make(4 * dim), *qkv = make(4 * 3 * dim), *h = make(4 * dim), *g = make(4 * hidden);
  for (const Index rows : {1, 2, 4}) {
    const auto matrix = [&](bf16* data, Index n, Index depth) { return Matrix<bf16>{data, n, depth, depth}; };
    const NormRows<bf16> rms{norm, nullptr, 1e-8};
    const auto a = [&](Index l) {
      be.product_step<Identity>(matrix(x, rows, dim), rms, matrix(in + l * 3 * dim * dim, 3 * dim, dim),
                                matrix(qkv, rows, 3 * dim));
    };
    const auto b = [&](Index l) {
      be.product_step<Identity>(matrix(qkv, rows, dim), {}, matrix(out + l * dim * dim, dim, dim),
                                matrix(h, rows, dim), {.addend = x});
    };
    const auto c = [&](Index l) {
      be.gated_step<Silu>(matrix(h, rows, dim), rms, matrix(up + l * 2 * hidden * dim, 2 * hidden, dim),
                          matrix(g, rows, hidden));
    };
    const auto d = [&](Index l) {
      be.product_step<Identity>(matrix(g, rows, hidden), {}, matrix(down + l * dim * hidden, dim, hidden),
                                matrix(x, rows, dim), {.addend = h});
    };
    const auto all = [&](auto... product) {
      return [=] {
        for (Index l = 0; l < layers; ++l) (product(l), ...);
      };
    };
    std::printf("%td rows, %td layers\n", rows, layers);
    show(be, "  12288 x 4096, normed", 2.0 * layers * 3 * dim * dim, all(a));
    show(be, "  4096 x 4096, residual", 2.0 * layers * dim * dim, all(b));
    show(be, "  22528 x 4096, normed, gated", 2.0 * layers * 2 * hidden * dim, all(c));
    show(be, "  4096 x 11264, residual", 2.0 * layers * dim * hidden, all(d));
    show(be, "  a layer's four", 2.0 * layers * (4 * dim + 3 * hidden) * dim, all(a, b, c, d));
  }
}

}  // namespace

int main(int argc, char** argv) {
  return bench::guarded([&] {
    products();
    if (argc > 1 && std::strcmp(argv[1], "products") == 0) return;
    Base be;
    bench::frame(be, "bf16");
  });
}
