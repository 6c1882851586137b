// The step of a TTT layer in one launch: against Prepare and TttStep as functors, on the GPU in float32 and
// on the CPU in float64; and its bits.
#include <cstring>
#include <vector>

#include "catch.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_backends.hpp"
#include "mttt/ttt/ttt.hpp"

namespace {
using namespace mttt;

struct Shape {
  InnerModel model;
  Index heads, mini_batch;
  bool rope;
};

/// What a stream brings and keeps, on the host.
template <class T>
struct Stream {
  Shape shape;
  Index batch;
  std::vector<T> rate_bias, base_lr, token_scale, gamma, beta,
      learned;  // the layer's; learned is one session's
  std::vector<float> weights, gradients;
  std::vector<std::int64_t> position;

  Stream(Shape s, std::vector<std::int64_t> start, Rng& rng)
      : shape(s), batch(static_cast<Index>(start.size())), position(std::move(start)) {
    const Index F = s.model.width, H = s.heads;
    rate_bias = normal(H, 0, 0.5, rng), base_lr = normal(1, 1, 0.1, rng);
    token_scale = normal(s.mini_batch, 0, 0.05, rng);
    gamma = normal(H * F, 1, 0.1, rng), beta = normal(H * F, 0, 0.1, rng);
    learned = normal(H * s.model.size(), 0, 0.1, rng);
    for (Index b = 0; b < batch; ++b)
      for (const T w : learned) weights.push_back(wide(w));
    gradients.assign(weights.size(), 0.0f);
  }
  static std::vector<T> normal(Index n, double mean, double deviation, Rng& rng) {
    std::vector<T> v(static_cast<std::size_t>(n));
    for (T& x : v) x = static_cast<T>(mean + deviation * rng.normal());
    return v;
  }
  Index session() const { return shape.heads * shape.model.size(); }
  void reset(Index b) {
    for (Index i = 0; i < session(); ++i) {
      weights[static_cast<std::size_t>(b * session() + i)] = wide(learned[static_cast<std::size_t>(i)]);
      gradients[static_cast<std::size_t>(b * session() + i)] = 0;
    }
    position[static_cast<std::size_t>(b)] = 0;
  }
};

/// What one call hears.
template <class T>
struct Heard {
  Index steps;
  std::vector<T> q, k, v, logit;
  std::vector<std::uint8_t> mask;
  Heard(const Stream<T>& s, Index n, Rng& rng) : steps(n) {
    const Index rows = s.batch * n * s.shape.heads;
    for (auto* x : {&q, &k, &v}) *x = Stream<T>::normal(rows * s.shape.model.width, 0, 1, rng);
    logit = Stream<T>::normal(rows, 0, 1, rng);
    for (Index b = 0; b < s.batch; ++b) mask.push_back(rng.uniform() < 0.7);
    mask[0] = 1;
  }
};

/// One session of a call, alone.
template <class T>
Heard<T> alone(const Heard<T>& all, Index b, Index batch) {
  Heard<T> one = all;
  for (auto* x : {&one.q, &one.k, &one.v, &one.logit}) {
    const auto n = static_cast<std::ptrdiff_t>(x->size()) / batch;
    *x = std::vector<T>(x->begin() + b * n, x->begin() + (b + 1) * n);
  }
  one.mask = {1};
  return one;
}

template <class T, class B>
T* send(B& be, const std::vector<T>& host) {
  T* data = be.template make<T, dyn>(static_cast<Index>(host.size())).data();
  be.to_device(host.data(), data, static_cast<Index>(host.size()));
  return data;
}

/// Preparation and step as the functors of ttt/ have them.
template <TttVariant V, class T, class A, class B>
void composed(B& be, InnerModel model, const TttStreamStep<V, T, A>& s) {
  const Index rows = s.batch * s.steps * s.heads, F = model.width, tokens = s.batch * s.steps;
  const auto plane = [&] { return be.template make<T, dyn>(rows * F).data(); };
  const auto accum = [&](Index n) { return be.template make<A, dyn>(n).data(); };
  T *q = plane(), *k = plane(), *target = plane();
  A *lr = accum(rows), *scale = accum(s.mini_batch), *gamma = accum(s.heads * F), *beta = accum(s.heads * F);
  A *cos = s.rope ? accum(s.mini_batch * F / 2) : nullptr,
    *sin = s.rope ? accum(s.mini_batch * F / 2) : nullptr;
  const mttt::detail::InnerTables<T, A> tables{V == TttVariant::video ? nullptr : s.token_scale,
                                               s.gamma,
                                               s.beta,
                                               scale,
                                               gamma,
                                               beta,
                                               cos,
                                               sin,
                                               nullptr,
                                               s.steps,
                                               s.mini_batch,
                                               s.heads * F,
                                               s.rope ? s.mini_batch : 0,
                                               F / 2,
                                               s.rope_theta};
  be.for_each(tables.count(), tables);
  const mttt::detail::Prepare<V, T, A> prepare{
      s.q, s.k,   s.v,  q,          k,      target,  s.logit, s.rate_bias, s.base_lr,    lr,   cos,
      sin, gamma, beta, s.position, tokens, s.steps, s.heads, F,           s.mini_batch, false};
  be.rows(prepare.count(), prepare, 0, prepare.cost());
  be.fill(s.out, rows * F, T(0));
  using Step = TttStep<T, A>;
  be.rows(s.batch * s.heads,
          Step{model, s.steps, s.heads, s.mini_batch, q, k, target, lr, scale, gamma, beta, s.weights,
               s.gradients, s.position, s.mask, s.out, s.eps},
          Step::scratch(model) * static_cast<Index>(sizeof(A)), s.steps * model.size() * 4);
}

template <class T, class A>
struct Result {
  std::vector<T> out;
  std::vector<A> weights, gradients;
};

/// run(be, step) with a call's numbers on a backend.
template <TttVariant V, class A, class T, class B, class F>
Result<T, A> call(B& be, const Stream<T>& s, const Heard<T>& heard, const F& run) {
  const auto scope = be.scope();
  const auto state = [&](const std::vector<float>& x) {
    return send(be, std::vector<A>(x.begin(), x.end()));
  };
  A *weights = state(s.weights), *gradients = state(s.gradients);
  Result<T, A> result{std::vector<T>(heard.q.size()), std::vector<A>(s.weights.size()),
                      std::vector<A>(s.weights.size())};
  T* out = send(be, std::vector<T>(heard.q.size(), static_cast<T>(NAN)));
  const TttStreamStep<V, T, A> step{s.batch,
                                    heard.steps,
                                    s.shape.heads,
                                    s.shape.mini_batch,
                                    send(be, heard.q),
                                    send(be, heard.k),
                                    send(be, heard.v),
                                    send(be, heard.logit),
                                    send(be, s.rate_bias),
                                    send(be, s.base_lr),
                                    send(be, s.token_scale),
                                    send(be, s.gamma),
                                    send(be, s.beta),
                                    weights,
                                    gradients,
                                    send(be, s.position),
                                    send(be, heard.mask),
                                    out,
                                    A(1e-6),
                                    s.shape.rope,
                                    10000};
  run(be, step);
  be.to_host(out, result.out.data(), static_cast<Index>(result.out.size()));
  be.to_host(weights, result.weights.data(), static_cast<Index>(result.weights.size()));
  be.to_host(gradients, result.gradients.data(), static_cast<Index>(result.gradients.size()));
  return result;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
template <class T>
bool same(const Result<T, float>& a, const Result<T, float>& b) {
  return same(a.out, b.out) && same(a.weights, b.weights) && same(a.gradients, b.gradients);
}
/// The part of session b.
template <class T>
std::vector<T> part(const std::vector<T>& all, Index b, Index batch) {
  const auto n = static_cast<std::ptrdiff_t>(all.size()) / batch;
  return {all.begin() + b * n, all.begin() + (b + 1) * n};
}

template <TttVariant V, class T, int F, int layers>
void hold(Index mini_batch, bool rope = true) {
  const Shape shape{{F, 4 * F, layers}, 2, mini_batch, rope};
  Cuda<T> gpu;
  Cpu<double> cpu;
  Rng rng{11};
  // Places in a mini-batch: the first, the last but one, and one of a session that has run for long.
  Stream<T> s(shape, {0, mini_batch - 2, 1000 * mini_batch + 1}, rng);
  const auto fused = [](auto& be, const auto& step) {
    if (!be.template ttt_step<F, layers>(step)) FAIL("this GPU has no clusters");
  };
  const auto functors = [&](auto& be, const auto& step) { composed<V>(be, shape.model, step); };

  // Sums of float32 in another order, stage after stage; rates are small, so that the state of one token is
  // close to that of the next and errors do not grow from call to call. The state also sees q, k and target
  // as T rounds them: where RoPE's or the norm's last bit decides, two programs round to neighbours.
  const double sums = laws::agreement<float>(static_cast<double>(shape.model.widest()), 2.0 * layers + 3);
  const bool exact = !rope && V == TttVariant::lm;
  const double flips = std::is_same_v<T, bf16> && !exact ? laws::rounding<T>(1) : 0;
  const double stored = std::is_same_v<T, bf16> ? laws::rounding<T>(1) : 0;
  double worst_state = 0, worst_out = 0, composed_state = 0;
  for (const Index steps : {1, 3, 1, 2, 9, 1, 5, 1, 1, 4}) {
    const Heard<T> heard(s, steps, rng);
    const auto got = call<V, float>(gpu, s, heard, fused), again = call<V, float>(gpu, s, heard, fused);
    CHECK(same(got, again));
    const auto reference = call<V, double>(cpu, s, heard, functors);
    const auto plain = call<V, float>(gpu, s, heard, functors);
    const auto size = [](const auto& v) { return static_cast<Index>(v.size()); };
    const auto off = [&](const auto& a, const auto& b) {
      return laws::largest_difference(a.data(), b.data(), size(b));
    };
    worst_out = std::max(worst_out, off(got.out, reference.out));
    worst_state =
        std::max({worst_state, off(got.weights, reference.weights), off(got.gradients, reference.gradients)});
    composed_state = std::max(
        {composed_state, off(plain.weights, reference.weights), off(plain.gradients, reference.gradients)});

    for (Index b = 0; b < s.batch; ++b) {
      const auto bits = [&](const auto& all) { return part(all, b, s.batch); };
      if (heard.mask[static_cast<std::size_t>(b)] == 0) {
        CHECK(same(bits(got.weights), bits(s.weights)));
        CHECK(same(bits(got.gradients), bits(s.gradients)));
        CHECK(same(bits(got.out), std::vector<T>(bits(got.out).size(), T(0))));
        continue;
      }
      // Alone, the same bits.
      Stream<T> single = s;
      single.batch = 1;
      single.position = {s.position[static_cast<std::size_t>(b)]};
      single.weights = bits(s.weights), single.gradients = bits(s.gradients);
      const auto one = call<V, float>(gpu, single, alone(heard, b, s.batch), fused);
      CHECK(same(one, Result<T, float>{bits(got.out), bits(got.weights), bits(got.gradients)}));
      // Token by token, the same bits.
      const Heard<T> tokens = alone(heard, b, s.batch);
      std::vector<T> answers;
      for (Index t = 0; t < steps && steps > 1; ++t) {
        Heard<T> token = tokens;
        token.steps = 1;
        for (auto* x : {&token.q, &token.k, &token.v, &token.logit}) *x = part(*x, t, steps);
        const auto step = call<V, float>(gpu, single, token, fused);
        single.weights = step.weights, single.gradients = step.gradients, ++single.position[0];
        answers.insert(answers.end(), step.out.begin(), step.out.end());
      }
      if (steps > 1) CHECK(same(one, Result<T, float>{answers, single.weights, single.gradients}));
    }
    s.weights = got.weights, s.gradients = got.gradients;
    for (Index b = 0; b < s.batch; ++b)
      if (heard.mask[static_cast<std::size_t>(b)] != 0) s.position[static_cast<std::size_t>(b)] += steps;
    if (steps == 9) s.reset(1);
  }
  std::printf("F %3d, %d layer(s), %s, %s%s: state %.1e (functors %.1e, tolerance %.1e), answers %.1e\n", F,
              layers, V == TttVariant::lm ? "lm" : "video", std::is_same_v<T, bf16> ? "bf16" : "float32",
              rope ? "" : ", no RoPE", worst_state, composed_state, sums + flips, worst_out);
  CHECK(worst_state <= sums + flips);
  CHECK(worst_out <= sums + flips + stored);
}

/// More heads than the GPU holds at once: each session's bits as if it were alone.
template <class T, int F, int layers>
void hold_many(Index sessions) {
  const Shape shape{{F, 4 * F, layers}, 2, 4, true};
  Cuda<T> gpu;
  Rng rng{5};
  std::vector<std::int64_t> places;
  for (Index b = 0; b < sessions; ++b) places.push_back(b % 9);
  const Stream<T> s(shape, places, rng);
  const Heard<T> heard(s, 2, rng);
  const auto fused = [](auto& be, const auto& step) {
    if (!be.template ttt_step<F, layers>(step)) FAIL("this GPU has no clusters");
  };
  constexpr auto V = TttVariant::lm;
  const auto got = call<V, float>(gpu, s, heard, fused);
  CHECK(same(got, call<V, float>(gpu, s, heard, fused)));
  Index wrong = 0;
  for (Index b = 0; b < s.batch; ++b) {
    const auto bits = [&](const auto& all) { return part(all, b, s.batch); };
    if (heard.mask[static_cast<std::size_t>(b)] == 0) {
      wrong += !same(bits(got.weights), bits(s.weights)) || !same(bits(got.gradients), bits(s.gradients)) ||
               !same(bits(got.out), std::vector<T>(bits(got.out).size(), T(0)));
      continue;
    }
    if (b % 10 != 3) continue;
    Stream<T> single = s;
    single.batch = 1;
    single.position = {s.position[static_cast<std::size_t>(b)]};
    single.weights = bits(s.weights), single.gradients = bits(s.gradients);
    const auto one = call<V, float>(gpu, single, alone(heard, b, s.batch), fused);
    wrong += !same(one, Result<T, float>{bits(got.out), bits(got.weights), bits(got.gradients)});
  }
  CHECK(wrong == 0);
}
}  // namespace

TEST_CASE("CUDA: a step of more TTT heads than the GPU holds") {
  hold_many<float, 64, 1>(700);
  hold_many<bf16, 128, 1>(200);
  hold_many<bf16, 64, 2>(60);
  hold_many<bf16, 128, 2>(20);
}
TEST_CASE("CUDA: a TTT step of few heads", "[small]") {  // short enough for compute-sanitizer
  hold_many<bf16, 64, 1>(4);
  hold_many<bf16, 128, 1>(4);
  hold_many<bf16, 64, 2>(4);
  hold_many<bf16, 128, 2>(4);
}
TEST_CASE("CUDA: a TTT-Linear step in one launch") {
  hold<TttVariant::lm, float, 64, 1>(4);
  hold<TttVariant::lm, bf16, 64, 1>(4, false);
  hold<TttVariant::lm, float, 128, 1>(16);
  hold<TttVariant::lm, bf16, 128, 1>(5);
  hold<TttVariant::video, float, 64, 1>(5);
  hold<TttVariant::video, bf16, 128, 1>(4);
}
TEST_CASE("CUDA: a TTT-MLP step in one launch") {
  hold<TttVariant::lm, float, 64, 2>(4);
  hold<TttVariant::lm, bf16, 64, 2>(5);
  hold<TttVariant::lm, float, 128, 2>(5);
  hold<TttVariant::lm, bf16, 128, 2>(4, false);
  hold<TttVariant::video, float, 64, 2>(4, false);
}
