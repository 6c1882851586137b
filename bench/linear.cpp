// Linear at batch 1 (a streaming step: reads its weights at memory speed), 8 and 256 (training: GEMM speed).
//
// Counted: forward 2 rows in out FLOPs, weights read once; backward twice the FLOPs (dx and dW), weights read
// once, their gradient read and written. At batch 1 the weights rotate through 256 MB of one Store, as they do
// in a model whose layers take turns.
#include "mttt/nn/linear.hpp"

#include "harness.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

std::string shape(Index out, Index in, Index rows) {
  return std::to_string(out) + "x" + std::to_string(in) + ", batch " + std::to_string(rows);
}

template <Index out, Index in>
struct Case {
  using Block = Linear<LinearConfig{.in = in, .out = out}, B>;
  using Params = Store<typename Block::Params, B>;
  template <std::size_t n>
  struct Layers {
    std::array<typename Block::Params, n> layer;
    static void visit(auto&& f, auto&&... l) {
      for (std::size_t i = 0; i < n; ++i) f("layer", l.layer[i]...);
    }
  };
  static constexpr double weights = static_cast<double>(out) * static_cast<double>(in);

  /// Streaming steps of few rows; `copies` sets of weights take turns.
  template <std::size_t copies = (std::size_t{1} << 26) / (out * in) + 1>
  static void step(bench::Suite& suite, Index rows) {
    B first;
    Store<Layers<copies>, B> layers(first);
    bench::fill_tensors(*layers, 0.02f);
    for (const int threads : suite.thread_counts()) {
      B be(threads);
      const auto x = be.make<float, dyn, dyn, in>(1, rows);
      const auto y = be.make<float, dyn, dyn, out>(1, rows);
      bench::fill_uniform(x.data(), x.size());
      std::size_t turn = 0;
      NoState none;
      suite.run("step " + shape(out, in, rows),
                {.threads = threads, .flops = 2 * weights * static_cast<double>(rows), .bytes = 4 * weights},
                [&] { Block::step(be, layers->layer[turn++ % copies], none, x, y, Mask{}); });
    }
  }

  static void train(bench::Suite& suite, Index rows) {
    B first;
    Params params(first), grad(first);
    bench::fill_tensors(*params, 0.02f);
    for (const int threads : suite.thread_counts()) {
      B be(threads);
      const auto x = be.make<float, dyn, dyn, in>(1, rows), dx = be.make<float, dyn, dyn, in>(1, rows);
      const auto y = be.make<float, dyn, dyn, out>(1, rows), dy = be.make<float, dyn, dyn, out>(1, rows);
      bench::fill_uniform(x.data(), x.size());
      bench::fill_uniform(dy.data(), dy.size());
      const double flops = 2 * weights * static_cast<double>(rows);
      typename Block::Saved saved;
      suite.run("forward " + shape(out, in, rows), {.threads = threads, .flops = flops, .bytes = 4 * weights},
                [&] { Block::forward(be, *params, x, y, saved); });
      suite.run("backward " + shape(out, in, rows),
                {.threads = threads, .flops = 2 * flops, .bytes = 12 * weights},
                [&] { Block::backward(be, *params, saved, dy, dx, *grad); });
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("linear", argc, argv);
  if (suite.quick()) {
    Case<128, 64>::step<1>(suite, 1);
    Case<128, 64>::train(suite, 8);
    return suite.finish();
  }
  Case<1024, 1024>::step(suite, 1);
  Case<4096, 4096>::step(suite, 1);
  Case<11264, 4096>::step(suite, 1);
  Case<4096, 4096>::step(suite, 8);
  for (const Index rows : {Index{8}, Index{256}}) {
    Case<1024, 1024>::train(suite, rows);
    Case<4096, 4096>::train(suite, rows);
  }
  return suite.finish();
}
