// The fused kernels of attention against the composed form, evaluated in float64 on what bf16 holds.
//
// Tolerances are relative to the largest element of a tensor. With u = 2^-9, the error of one rounding:
//   out      the weights are rounded (u of what they multiply) and so is the result (u of itself); what they
//            multiply, |v|, is a little larger than the largest |out|, that of a row with one key: 4 u
//   lse      float32 alone: agreement<float>
//   dq, dk   ds is rounded, and so are out (in delta) and the result; sums of |ds| |k| exceed |dq|: 8 u
//   dv       p and the result are rounded; likewise: 8 u
//   step     the result alone, in the type it is stored in, and the float32 or float64 sums before it
#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_cuda.cuh"
#include "mttt/nn/attention.hpp"

namespace {
using namespace mttt;
using laws::largest_difference;

constexpr double u = 0x1p-9;

struct Case {
  Index batch, steps, heads, kv_heads, dim, context;
  AttentionShape shape() const { return {heads, kv_heads, dim, context}; }
  /// A row of the projection, with some numbers that are none of attention's.
  Index width() const { return (heads + 2 * kv_heads) * dim + 24; }
  Index in_size() const { return batch * steps * width(); }
  Index out_size() const { return batch * steps * heads * dim; }
  Strides in() const { return {steps * width(), width()}; }
  Strides to() const { return {steps * heads * dim, heads * dim}; }
};

template <class T>
std::vector<T> normal(Index n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& x : values) x = static_cast<T>(static_cast<float>(rng.normal()));
  return values;
}
template <class U, class T>
std::vector<U> widened(const std::vector<T>& values) {
  return std::vector<U>(values.begin(), values.end());
}

template <class T>
struct Results {
  std::vector<T> out, dqkv;
  std::vector<Wide<T>> lse;
};

/// Both passes on the host.
Results<double> composed(const Case& c, const std::vector<double>& qkv, const std::vector<double>& dout) {
  Cpu<double> be;
  Results<double> r{std::vector<double>(c.out_size()), std::vector<double>(c.in_size()),
                    std::vector<double>(c.batch * c.steps * c.heads)};
  const double *q = qkv.data(), *k = q + c.heads * c.dim, *v = k + c.kv_heads * c.dim;
  double *dq = r.dqkv.data(), *dk = dq + c.heads * c.dim, *dv = dk + c.kv_heads * c.dim;
  attend<Cpu<double>, double>(be, c.shape(), c.batch, c.steps, q, k, v, c.in(), r.out.data(), c.to(),
                              r.lse.data());
  attend_backward<Cpu<double>, double>(be, c.shape(), c.batch, c.steps, q, k, v, c.in(), r.out.data(),
                                       dout.data(), c.to(), r.lse.data(), dq, dk, dv);
  return r;
}

template <class T>
T* sent(Cuda<bf16>& be, const std::vector<T>& values) {
  const auto to = be.make<T, dyn>(static_cast<Index>(values.size()));
  be.to_device(values.data(), to.data(), to.size());
  return to.data();
}

/// Both passes on the GPU, which must take the fused kernels.
Results<bf16> fused(Cuda<bf16>& be, const Case& c, const std::vector<bf16>& qkv,
                    const std::vector<bf16>& dout) {
  const auto scope = be.scope();
  Results<bf16> r{std::vector<bf16>(c.out_size()), std::vector<bf16>(c.in_size()),
                  std::vector<float>(c.batch * c.steps * c.heads)};
  const bf16 *q = sent(be, qkv), *k = q + c.heads * c.dim, *v = k + c.kv_heads * c.dim, *up = sent(be, dout);
  bf16* out = sent(be, std::vector<bf16>(c.out_size(), bf16(NAN)));
  bf16 *dq = sent(be, std::vector<bf16>(c.in_size(), bf16(0))), *dk = dq + c.heads * c.dim,
       *dv = dk + c.kv_heads * c.dim;
  float* lse = sent(be, std::vector<float>(r.lse.size(), NAN));
  REQUIRE(be.attend(c.shape(), c.batch, c.steps, q, k, v, c.in(), out, c.to(), lse));
  REQUIRE(be.attend_backward(c.shape(), c.batch, c.steps, q, k, v, c.in(), out, up, c.to(), lse, dq, dk, dv));
  be.to_host(out, r.out.data(), c.out_size());
  be.to_host(lse, r.lse.data(), static_cast<Index>(r.lse.size()));
  be.to_host(dq, r.dqkv.data(), c.in_size());
  return r;
}

/// Columns [first, first + n) of all rows.
template <class T>
std::vector<double> columns(const Case& c, const std::vector<T>& rows, Index first, Index n) {
  std::vector<double> part;
  for (Index r = 0; r < c.batch * c.steps; ++r)
    for (Index i = first; i < first + n; ++i) part.push_back(static_cast<double>(rows[r * c.width() + i]));
  return part;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && laws::detail::same_bits(a.data(), b.data(), static_cast<Index>(a.size()));
}

void hold(const Case& c) {
  CAPTURE(c.batch, c.steps, c.heads, c.kv_heads, c.dim, c.context);
  Cuda<bf16> be;
  const auto qkv = normal<bf16>(c.in_size(), 1), dout = normal<bf16>(c.out_size(), 2);
  const auto expected = composed(c, widened<double>(qkv), widened<double>(dout));
  const auto found = fused(be, c, qkv, dout);
  CHECK(largest_difference(found.out.data(), expected.out.data(), c.out_size()) < 4 * u);
  CHECK(largest_difference(found.lse.data(), expected.lse.data(), static_cast<Index>(found.lse.size())) <
        laws::agreement<float>(static_cast<double>(c.steps), 2));
  const Index parts[] = {c.heads * c.dim, c.kv_heads * c.dim, c.kv_heads * c.dim};
  Index first = 0;
  for (const Index n : parts) {
    CAPTURE(first);
    const auto a = columns(c, found.dqkv, first, n), b = columns(c, expected.dqkv, first, n);
    CHECK(largest_difference(a.data(), b.data(), static_cast<Index>(a.size())) < 8 * u);
    first += n;
  }
  const auto between = columns(c, found.dqkv, first, c.width() - first);
  CHECK(std::all_of(between.begin(), between.end(), [](double x) { return x == 0; }));  // not ours to write

  const auto again = fused(be, c, qkv, dout);
  CHECK(same(again.out, found.out));
  CHECK(same(again.lse, found.lse));
  CHECK(same(again.dqkv, found.dqkv));
}

/// Everything from step `at` on changes; what lies before keeps its bits.
void hold_to_causality(const Case& c, Index at) {
  CAPTURE(c.steps, c.dim, c.context, at);
  Cuda<bf16> be;
  auto qkv = normal<bf16>(c.in_size(), 1), dout = normal<bf16>(c.out_size(), 2);
  const auto before = fused(be, c, qkv, dout);
  const auto noise = normal<bf16>(c.in_size(), 3), up_noise = normal<bf16>(c.out_size(), 4);
  const Index width = c.heads * c.dim;
  for (Index r = 0; r < c.batch * c.steps; ++r) {
    if (r % c.steps < at) continue;
    std::copy_n(&noise[r * c.width()], c.width(), &qkv[r * c.width()]);
    std::copy_n(&up_noise[r * width], width, &dout[r * width]);
  }
  const auto after = fused(be, c, qkv, dout);
  bool past = true, future = true;
  for (Index r = 0; r < c.batch * c.steps; ++r) {
    const bool equal =
        laws::detail::same_bits(&before.out[r * width], &after.out[r * width], width) &&
        laws::detail::same_bits(&before.lse[r * c.heads], &after.lse[r * c.heads], c.heads) &&
        laws::detail::same_bits(&before.dqkv[r * c.width()], &after.dqkv[r * c.width()], width);  // dq alone
    (r % c.steps < at ? past : future) &= equal;
  }
  CHECK(past);
  CHECK_FALSE(future);
}

/// A session alone has the bits that it has among others.
void hold_to_batches(const Case& c) {
  Cuda<bf16> be;
  const auto qkv = normal<bf16>(c.in_size(), 1), dout = normal<bf16>(c.out_size(), 2);
  const auto all = fused(be, c, qkv, dout);
  Case one = c;
  one.batch = 1;
  const Index b = c.batch - 1, in = b * one.in_size(), to = b * one.out_size();
  const auto alone =
      fused(be, one, {qkv.begin() + in, qkv.begin() + in + one.in_size()}, {dout.begin() + to, dout.end()});
  CHECK(laws::detail::same_bits(alone.out.data(), &all.out[to], one.out_size()));
  CHECK(laws::detail::same_bits(alone.dqkv.data(), &all.dqkv[in], one.in_size()));
}

/// Steps of a ring on one backend, from what it has been given; session b takes part where mask says so.
template <class B, class T>
struct Ring {
  B& be;
  AttentionShape shape;
  Index batch;
  Tensor<T, dyn> k = be.template make<T, dyn>(batch * ring_size()),
                 v = be.template make<T, dyn>(batch * ring_size());
  Tensor<std::int64_t, dyn> position = be.template make<std::int64_t, dyn>(batch),
                            contexts = be.template make<std::int64_t, dyn>(batch);
  Tensor<std::uint8_t, dyn> mask = be.template make<std::uint8_t, dyn>(batch);
  Tensor<T, dyn> qkv = be.template make<T, dyn>(batch * in_width()),
                 out = be.template make<T, dyn>(batch * shape.heads * shape.head_dim);

  Index ring_size() const { return shape.kv_heads * shape.context * shape.head_dim; }
  Index in_width() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }

  Ring(B& backend, AttentionShape s, const std::vector<std::int64_t>& own)
      : be(backend), shape(s), batch(static_cast<Index>(own.size())) {
    be.fill(k.data(), k.size(), T(0)), be.fill(v.data(), v.size(), T(0));
    be.fill(position.data(), batch, std::int64_t{0});
    be.to_device(own.data(), contexts.data(), batch);
  }
  void queue() {
    const Index width = shape.heads * shape.head_dim;
    attend_step<B, T>(be, shape, batch, 1, qkv.data(), qkv.data() + width,
                      qkv.data() + width + shape.kv_heads * shape.head_dim, {in_width(), in_width()},
                      k.data(), v.data(), position.data(), mask, out.data(), {width, width}, contexts.data());
    advance(be, position.data(), batch, 1, mask);
  }
  void give(const std::vector<T>& x, const std::vector<std::uint8_t>& who) {
    be.to_device(x.data(), qkv.data(), qkv.size());
    be.to_device(who.data(), mask.data(), batch);
    be.fill(out.data(), out.size(), static_cast<T>(NAN));
  }
  template <class V>
  std::vector<V> host(Tensor<V, dyn> t) {
    std::vector<V> copy(static_cast<std::size_t>(t.size()));
    be.to_host(t.data(), copy.data(), t.size());
    return copy;
  }
};

template <class T>
double step_tolerance(const AttentionShape& s) {
  const auto sums = laws::agreement<Wide<T>>(static_cast<double>(s.context + s.head_dim), 2);
  return (std::is_same_v<T, bf16> ? 2 * u : 0) + sums;
}

/// Sessions with masks and windows of their own, on both backends; the ring wraps.
template <class T>
void hold_steps(AttentionShape shape, Index steps, bool graph = false) {
  CAPTURE(shape.heads, shape.kv_heads, shape.head_dim, shape.context, steps, graph);
  Cpu<double> cpu;
  Cuda<T> gpu;
  const std::vector<std::int64_t> own{0, shape.context / 2, 1, 0};
  Ring<Cpu<double>, double> expected(cpu, shape, own);
  Ring<Cuda<T>, T> found(gpu, shape, own), alone(gpu, shape, {own[1]});
  Rng rng(7);
  found.give(std::vector<T>(static_cast<std::size_t>(found.qkv.size()), T(0)), {0, 0, 0, 0});
  REQUIRE(gpu.attend_step(shape, 4, 1, found.qkv.data(), found.qkv.data(), found.qkv.data(),
                          Strides{found.in_width(), 0}, found.k.data(), found.v.data(), found.position.data(),
                          found.mask.data(), found.out.data(), Strides{shape.heads * shape.head_dim, 0},
                          found.contexts.data()));  // taken, for nobody
  found.queue();
  auto recorded = gpu.capture([&] { found.queue(); });
  double worst = 0;
  bool equal_alone = true, zero = true;
  for (Index t = 0; t < steps; ++t) {
    const auto x = normal<T>(found.qkv.size(), static_cast<std::uint64_t>(100 + t));
    std::vector<std::uint8_t> who(4);
    for (auto& w : who) w = rng.uniform() < 0.8;
    found.give(x, who);
    expected.give(widened<double>(x), who);
    graph ? recorded.launch() : found.queue();
    expected.queue();
    const auto a = found.host(found.out);
    const auto b = expected.host(expected.out);
    worst = std::max(worst, largest_difference(a.data(), b.data(), found.out.size()));
    const Index width = shape.heads * shape.head_dim;
    for (Index s = 0; s < 4; ++s)
      for (Index i = 0; i < width && who[s] == 0; ++i)
        zero = zero && static_cast<double>(a[s * width + i]) == 0;
    // Session 1 by itself, in the same steps.
    alone.give({x.begin() + found.in_width(), x.begin() + 2 * found.in_width()}, {who[1]});
    alone.queue();
    equal_alone = equal_alone && laws::detail::same_bits(alone.host(alone.out).data(), &a[width], width);
  }
  CHECK(worst < step_tolerance<T>(shape));
  CHECK(zero);
  CHECK(equal_alone);
  CHECK(same(widened<double>(found.host(found.k)), expected.host(expected.k)));
  CHECK(same(widened<double>(found.host(found.v)), expected.host(expected.v)));
  CHECK(same(found.host(found.position), expected.host(expected.position)));
}

/// One session's steps are the rows of the whole sequence.
void hold_steps_to_offline(AttentionShape shape, Index steps) {
  CAPTURE(shape.context, steps);
  const Case c{1, steps, shape.heads, shape.kv_heads, shape.head_dim, shape.context};
  const auto qkv = normal<bf16>(c.in_size(), 1);
  Cuda<bf16> be;
  const auto offline = fused(be, c, qkv, normal<bf16>(c.out_size(), 2));
  Ring<Cuda<bf16>, bf16> ring(be, shape, {0});
  std::vector<bf16> streamed;
  for (Index t = 0; t < steps; ++t) {
    const bf16* row = &qkv[t * c.width()];
    ring.give({row, row + ring.in_width()}, {1});
    ring.queue();
    for (const bf16 x : ring.host(ring.out)) streamed.push_back(x);
  }
  CHECK(largest_difference(streamed.data(), offline.out.data(), c.out_size()) < 6 * u);  // both round
}
}  // namespace

TEST_CASE("CUDA: fused attention, small", "[small]") {
  hold({2, 70, 2, 1, 64, 40});
  hold({1, 150, 2, 2, 128, 70});
  hold({3, 12, 2, 1, 64, 9});
}
TEST_CASE("CUDA: fused attention, lengths beside those of tiles") {
  for (const Index dim : {64, 128}) {
    for (const Index steps : {1, 7, 16, 17, 64, 65, 127, 128, 129, 300}) hold({1, steps, 2, 2, dim, 0});
  }
}
TEST_CASE("CUDA: fused attention, windows below and above tiles") {
  for (const Index dim : {64, 128}) {
    for (const Index context : {1, 2, 31, 33, 64, 100, 128, 129, 200, 500})
      hold({1, 333, 2, 2, dim, context});
  }
}
TEST_CASE("CUDA: fused attention, groups and batches") {
  hold({2, 140, 4, 1, 128, 0});
  hold({3, 200, 6, 3, 64, 90});
  hold({5, 13, 4, 2, 64, 0});
  hold({4, 16, 2, 1, 128, 5});
  hold_to_batches({3, 200, 6, 3, 64, 90});
  hold_to_batches({2, 140, 4, 1, 128, 0});
}
TEST_CASE("CUDA: fused attention, a long sequence") { hold({1, 1100, 1, 1, 128, 750}); }
TEST_CASE("CUDA: fused attention is causal") {
  for (const Index at : {1, 63, 64, 100, 128, 250}) {
    hold_to_causality({2, 300, 2, 1, 128, 0}, at);
    hold_to_causality({1, 300, 2, 2, 64, 70}, at);
  }
}
TEST_CASE("CUDA: fused attention declines what it cannot do") {
  Cuda<bf16> be;
  const auto x = be.make<bf16, dyn>(4096);
  const auto lse = be.make<float, dyn>(64);
  const auto takes = [&](Index dim, Index step, Index shift) {
    return be.attend(AttentionShape{1, 1, dim, 0}, 1, 2, x.data() + shift, x.data(), x.data(),
                     Strides{2 * step, step}, x.data() + 2048, Strides{2 * dim, dim}, lse.data());
  };
  CHECK(takes(64, 64, 0));
  CHECK_FALSE(takes(32, 64, 0));
  CHECK_FALSE(takes(64, 68, 0));
  CHECK_FALSE(takes(64, 64, 4));
}
TEST_CASE("CUDA: fused steps, small", "[small]") {
  hold_steps<bf16>({2, 1, 64, 9}, 20);
  hold_steps<bf16>({2, 1, 64, 140}, 145);
}
TEST_CASE("CUDA: fused steps") {
  hold_steps<bf16>({2, 2, 128, 50}, 80);
  hold_steps<bf16>({4, 2, 64, 33}, 60, true);
  hold_steps<bf16>({2, 1, 128, 700}, 1000, true);
  hold_steps<bf16>({160, 160, 64, 300}, 310);  // many sessions: one block a head, against a cluster for one
  hold_steps<float>({2, 2, 128, 30}, 50);
  hold_steps<float>({4, 1, 32, 150}, 200, true);
  hold_steps<float>({2, 2, 64, 20}, 40);
  hold_steps<double>({2, 1, 128, 20}, 40);
  hold_steps<double>({2, 1, 16, 40}, 60, true);
}
TEST_CASE("CUDA: fused steps are the fused sequence") {
  hold_steps_to_offline({2, 1, 128, 60}, 150);
  hold_steps_to_offline({2, 2, 64, 200}, 150);
}
