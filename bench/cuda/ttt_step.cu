// The step of a TTT layer in one launch, from the raw projections to the answers, in bf16 with float32 state;
// beside it the functors: a table, Prepare, a fill and TttStep. Bytes: W and G read, G written, 12 a fast
// weight.
#include "mttt/core/store.hpp"
#include "mttt/ttt/ttt.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using B = Cuda<bf16>;
using Step = TttStreamStep<TttVariant::lm, bf16, float>;

template <class T>
T* random(B& be, Index n, float scale, float mean = 0) {
  T* to = be.make<T, dyn>(n).data();
  be.for_each(n, bench::Fill<T>{to, scale, mean});
  return to;
}

void composed(B& be, InnerModel model, const Step& s) {
  const auto scope = be.scope();
  const Index tokens = s.batch * s.steps, rows = tokens * s.heads, F = model.width;
  const auto plane = [&] { return be.make<bf16, dyn>(rows * F).data(); };
  const auto accum = [&](Index n) { return be.make<float, dyn>(n).data(); };
  bf16 *q = plane(), *k = plane(), *target = plane();
  float *lr = accum(rows), *scale = accum(s.mini_batch), *gamma = accum(s.heads * F),
        *beta = accum(s.heads * F), *cos = accum(s.mini_batch * F / 2), *sin = accum(s.mini_batch * F / 2);
  const mttt::detail::InnerTables<bf16, float> tables{
      s.token_scale, s.gamma, s.beta,       scale,       gamma,        beta,  cos,         sin,
      nullptr,       s.steps, s.mini_batch, s.heads * F, s.mini_batch, F / 2, s.rope_theta};
  be.for_each(tables.count(), tables);
  const mttt::detail::Prepare<TttVariant::lm, bf16, float> prepare{
      s.q, s.k,   s.v,  q,          k,      target,  s.logit, s.rate_bias, s.base_lr,    lr,   cos,
      sin, gamma, beta, s.position, tokens, s.steps, s.heads, F,           s.mini_batch, false};
  be.rows(prepare.count(), prepare, 0, prepare.cost());
  be.fill(s.out, rows * F, bf16(0));
  using Functor = TttStep<bf16, float>;
  be.rows(s.batch * s.heads,
          Functor{model, s.steps, s.heads, s.mini_batch, q, k, target, lr, scale, gamma, beta, s.weights,
                  s.gradients, s.position, s.mask, s.out, s.eps},
          Functor::scratch(model) * 4, s.steps * model.size() * 4);
}

template <int F, int layers>
void measure(Index heads, Index mini_batch, Index batch, Index steps, bool beside) {
  B be;
  const InnerModel model{F, 4 * F, layers};
  const Index rows = batch * steps * heads;
  const auto state = [&] { return random<float>(be, batch * heads * model.size(), 0.05f); };
  const auto position = be.make<std::int64_t, dyn>(batch);
  be.fill(position.data(), batch, std::int64_t{3});
  float *weights = state(), *gradients = be.make<float, dyn>(batch * heads * model.size()).data();
  be.fill(gradients, batch * heads * model.size(), 0.0f);
  Step s{batch,
         steps,
         heads,
         mini_batch,
         random<bf16>(be, rows * F, 1),
         random<bf16>(be, rows * F, 1),
         random<bf16>(be, rows * F, 1),
         random<bf16>(be, rows, 1),
         random<bf16>(be, heads, 1),
         random<bf16>(be, 1, 0, 0.1f),
         random<bf16>(be, mini_batch, 0),
         random<bf16>(be, heads * F, 0.1f, 1),
         random<bf16>(be, heads * F, 0.1f),
         weights,
         gradients,
         position.data(),
         nullptr,
         random<bf16>(be, rows * F, 0),
         1e-6f,
         true,
         10000};
  char name[80];
  std::snprintf(name, sizeof name, "%s %lld x %lld x %d, %lld token(s)", layers == 1 ? "linear" : "MLP",
                static_cast<long long>(batch), static_cast<long long>(heads), F,
                static_cast<long long>(steps));
  const double bytes = 12.0 * static_cast<double>(batch * heads * model.size());
  bench::report(name,
                bench::milliseconds(
                    be, [&] { be.ttt_step<F, layers>(s); }, 20),
                0, bytes);
  if (beside)
    bench::report("  by functors",
                  bench::milliseconds(
                      be, [&] { composed(be, model, s); }, 3, 3),
                  0, bytes);
  // What a mini-batch's end costs: W written as well.
  if (steps == 1) {
    be.fill(position.data(), batch, std::int64_t{mini_batch - 1});
    bench::report("  at a mini-batch's end",
                  bench::milliseconds(
                      be, [&] { be.ttt_step<F, layers>(s); }, 20),
                  0, bytes / 12 * 16);
  }
}

/// A graph of a layer's whole step: its nodes and time.
template <Index F, Index layers>
void layer(Index batch) {
  constexpr TttConfig config{.dim = 4096, .num_heads = 4096 / F, .layers = layers};
  using Layer = Ttt<config, B>;
  B be;
  Store<typename Layer::Params, B> params(be);
  for_each_tensor(
      [&](std::string_view, const auto& t) {
        be.for_each(t.size(), bench::Fill<bf16>{t.data(), 0.02f});
      },
      *params);
  Store<typename Layer::State, B> state(be, batch);
  Layer::reset(be, *params, *state, Mask{});
  const auto x = be.make<bf16, dyn, dyn, 4096>(batch, 1), y = be.make<bf16, dyn, dyn, 4096>(batch, 1);
  be.for_each(x.size(), bench::Fill<bf16>{x.data(), 1});
  const auto step = [&] { Layer::step(be, *params, *state, x, y, Mask{}); };
  char name[80];
  std::snprintf(name, sizeof name, "layer of 4096, heads of %lld, %lld layer(s), B = %lld",
                static_cast<long long>(F), static_cast<long long>(layers), static_cast<long long>(batch));
  const double bytes = 2.0 * static_cast<double>(count_elements(*params) - 4096 / F * Layer::size) +
                       12.0 * static_cast<double>(batch * 4096 / F * Layer::size);
  bench::report(name, bench::milliseconds(be, step), 0, bytes);
}
}  // namespace

int main() {
  std::printf("%s\n", mttt::detail::device_name().c_str());
  for (const Index batch : {1, 16, 64}) measure<128, 1>(32, 16, batch, 1, true);
  for (const Index batch : {1, 16, 64}) measure<64, 1>(64, 16, batch, 1, batch < 64);
  for (const Index batch : {1, 16}) measure<64, 2>(32, 16, batch, 1, batch < 16);
  for (const Index batch : {1, 16}) measure<128, 2>(32, 16, batch, 1, false);
  measure<128, 1>(32, 16, 1, 16, true);
  measure<64, 2>(32, 16, 1, 16, false);
  for (const Index batch : {1, 16}) layer<128, 1>(batch);
  layer<64, 2>(1);
  return 0;
}
