// Attention: one step over a ring cache filled to several lengths, and a training window.
//
// Counted for a step, n keys in the ring: 4 heads head_dim n FLOPs (scores and mix), 2 heads head_dim n
// values read. For a window: the same over its (t, s) pairs; backward 2.5 times the forward: scores and dp
// again for dk and dv, as the published flash algorithms count it (ours computes scores twice, which is not
// counted).
#include "mttt/nn/attention.hpp"

#include "harness.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

std::string name(std::string_view what, Index heads, Index dim) {
  return std::string(what) + " " + std::to_string(heads) + "x" + std::to_string(dim);
}

/// The core of a step: no projections, position kept where it is.
void step(bench::Suite& suite, Index heads, Index dim, Index context, std::initializer_list<Index> fills) {
  const AttentionShape shape{heads, heads, dim, context};
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    const auto k = be.make<float, dyn>(heads * context * dim), v = be.make<float, dyn>(heads * context * dim);
    const auto qkv = be.make<float, dyn>(3 * heads * dim), out = be.make<float, dyn>(heads * dim);
    const auto position = be.make<std::int64_t, dyn>(1);
    for (const auto& t : {k, v, qkv}) bench::fill_uniform(t.data(), t.size());
    double first = 0;
    for (const Index filled : fills) {
      position(0) = filled - 1;
      const double values = 2 * static_cast<double>(heads * dim * filled);
      const Strides in{3 * heads * dim, 3 * heads * dim}, to{heads * dim, heads * dim};
      suite.run(name("step", heads, dim) + ", " + std::to_string(filled) + " of " + std::to_string(context),
                {.threads = threads, .flops = 2 * values, .bytes = 4 * values}, [&] {
                  attend_step<B, float>(be, shape, 1, 1, qkv.data(), qkv.data() + heads * dim,
                                        qkv.data() + 2 * heads * dim, in, k.data(), v.data(), position.data(),
                                        Mask{}, out.data(), to);
                });
      if (first == 0) first = suite.last().seconds;
      if (filled == context) {
        char text[120];
        std::snprintf(text, sizeof text, "%s, %d thread(s): full ring costs %.0f times one key",
                      name("step", heads, dim).c_str(), threads, suite.last().seconds / first);
        suite.note(text);
      }
    }
  }
}

/// Forward and backward of a whole sequence, core only.
void window(bench::Suite& suite, Index heads, Index dim, Index steps, Index context) {
  const AttentionShape shape{heads, heads, dim, context};
  double pairs = 0;
  for (Index t = 0; t < steps; ++t) pairs += static_cast<double>(t - shape.first_key(t) + 1);
  const double flops = 4 * pairs * static_cast<double>(heads * dim);
  const std::string of =
      name("", heads, dim) + ", T = " + std::to_string(steps) + ", context " + std::to_string(context);
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    const Index width = heads * dim;
    const auto qkv = be.make<float, dyn>(3 * steps * width), dqkv = be.make<float, dyn>(3 * steps * width);
    const auto out = be.make<float, dyn>(steps * width), dout = be.make<float, dyn>(steps * width);
    const auto lse = be.make<float, dyn>(steps * heads);
    bench::fill_uniform(qkv.data(), qkv.size());
    bench::fill_uniform(dout.data(), dout.size());
    const Strides in{3 * steps * width, 3 * width}, to{steps * width, width};
    const float* q = qkv.data();
    suite.run("forward" + of, {.threads = threads, .flops = flops}, [&] {
      attend<B, float>(be, shape, 1, steps, q, q + width, q + 2 * width, in, out.data(), to, lse.data());
    });
    suite.run("backward" + of, {.threads = threads, .flops = 2.5 * flops}, [&] {
      attend_backward<B, float>(be, shape, 1, steps, q, q + width, q + 2 * width, in, out.data(), dout.data(),
                                to, lse.data(), dqkv.data(), dqkv.data() + width, dqkv.data() + 2 * width);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("attention", argc, argv);
  if (suite.quick()) {
    step(suite, 2, 32, 16, {1, 16});
    window(suite, 2, 32, 32, 10);
    return suite.finish();
  }
  step(suite, 32, 128, 3000, {1, 100, 750, 3000});
  step(suite, 4, 32, 250, {1, 250});
  window(suite, 32, 128, 512, 250);
  window(suite, 4, 32, 512, 250);
  return suite.finish();
}
