// A whole TTT layer of 4096 channels, forward and backward, 2048 tokens, bf16 with float32 gradients; and
// what it is made of, so that the sum of the parts can be held against the whole.
#include "mttt/core/store.hpp"
#include "mttt/ttt/ttt.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using bench::Fill;
using bench::milliseconds;
using bench::report;
using B = Cuda<bf16>;
constexpr Index dim = 4096, steps = 2048;

/// The parts between the projections of a layer of `heads` heads, as ttt/ttt.hpp queues them.
template <Index heads, Index C, class Device>
void parts(Device& be, const bf16* x) {
  constexpr Index F = dim / heads;
  constexpr InnerModel model{F, 4 * F, 1};
  const double size = static_cast<double>(steps * dim) * 2;
  const auto plane = [&] { return be.template make<bf16, dyn>(steps * dim).data(); };
  const auto accum = [&](Index n) {
    float* to = be.template make<float, dyn>(n).data();
    be.fill(to, n, 0.0f);
    return to;
  };
  const auto random = [&](Index n, float scale) {
    bf16* to = be.template make<bf16, dyn>(n).data();
    be.for_each(n, Fill<bf16>{to, scale});
    return to;
  };
  bf16 *q = plane(), *k = plane(), *target = plane(), *out = plane(), *dq = plane(), *dk = plane(),
       *dtarget = plane(), *draw_q = plane(), *draw_k = plane(), *dv = plane();
  bf16 *logit = random(steps * heads, 1), *bias = random(heads, 1), *base_lr = random(1, 0.1f);
  float *lr = accum(steps * heads), *scale = accum(C), *gamma = accum(dim), *beta = accum(dim),
        *cos = accum(C * F / 2), *sin = accum(C * F / 2);
  const mttt::detail::InnerTables<bf16, float> tables{random(C, 0),
                                                      random(dim, 1),
                                                      random(dim, 0.1f),
                                                      scale,
                                                      gamma,
                                                      beta,
                                                      cos,
                                                      sin,
                                                      nullptr,
                                                      steps,
                                                      C,
                                                      dim,
                                                      C,
                                                      F / 2,
                                                      10000};
  report("  tables", milliseconds(be, [&] { be.for_each(tables.count(), tables); }), 0, 0);
  const mttt::detail::Prepare<TttVariant::lm, bf16, float> prepare{
      x,   x,     x,    q,       k,     target, logit, bias, base_lr, lr,   cos,
      sin, gamma, beta, nullptr, steps, steps,  heads, F,    C,       false};
  report("  prepare", milliseconds(be, [&] { be.rows(prepare.count(), prepare, 0, prepare.cost()); }), 0,
         6 * size);
  using Back = mttt::detail::PrepareBackward<TttVariant::lm, bf16, float>;
  const Back back{prepare, x, x, x, draw_q, draw_k, dv, nullptr, nullptr};
  report("  prepare, backward", milliseconds(be, [&] { be.rows(back.count(), back, 0, back.cost()); }), 0,
         6 * size);

  constexpr bool fused = requires { requires Device::template fuses_ttt<F, 4 * F, 1, C>; };
  constexpr Index group = fused ? 16 : 1, groups = (steps + group * C - 1) / (group * C);
  float *weights = accum(heads * model.size()), *checkpoints = accum(groups * heads * model.size());
  const TttScan<bf16, float> scan{model, 1,     steps, heads, C,           q,     k,    target,
                                  lr,    scale, gamma, beta,  checkpoints, 1e-6f, group};
  const TttForward<bf16, float> forward{scan, weights, nullptr, out};
  const TttBackward<bf16, float> backward{scan,
                                          x,
                                          dq,
                                          dk,
                                          dtarget,
                                          accum(steps * heads),
                                          accum(heads * C),
                                          accum(dim),
                                          accum(dim),
                                          accum(heads * model.size())};
  const auto run_forward = [&] {
    if constexpr (fused) {
      be.template ttt_forward<F, 4 * F, 1, C>(forward);
    } else {
      be.rows(heads, forward, forward.scratch(model, C) * 4, steps * model.size() * 4);
    }
  };
  const auto run_backward = [&] {
    if constexpr (fused) {
      be.template ttt_backward<F, 4 * F, 1, C>(backward);
    } else {
      be.rows(heads, backward, backward.scratch(model, C) * 4, steps * model.size() * 12);
    }
  };
  report(fused ? "  scan, forward" : "  scan, forward, composed", milliseconds(be, run_forward, 2, 3), 0, 0);
  report(fused ? "  scan, backward" : "  scan, backward, composed", milliseconds(be, run_backward, 2, 3), 0,
         0);
}

template <Index heads, Index C>
void layer() {
  constexpr TttConfig config{.dim = dim, .num_heads = heads, .mini_batch_size = C};
  using Layer = Ttt<config, B>;
  using Gradient = typename Ttt<config, Cuda<float>>::Params;
  std::printf("%lld heads of %lld, C = %lld\n", static_cast<long long>(heads),
              static_cast<long long>(dim / heads), static_cast<long long>(C));
  B be;
  Store<typename Layer::Params, B> params(be);
  Store<Gradient, B> grad(be);
  for_each_tensor(
      [&](std::string_view, const auto& t) {
        if (t.size() > 0) be.for_each(t.size(), Fill<bf16>{t.data(), 0.02f});
      },
      *params);
  const auto scope = be.scope();
  const auto make = [&] { return be.make<bf16, dyn, dyn, dim>(1, steps); };
  const auto x = make(), y = make(), dy = make(), dx = make();
  be.for_each(x.size(), Fill<bf16>{x.data(), 1});
  be.for_each(dy.size(), Fill<bf16>{dy.data(), 1});
  const double product = 2.0 * steps * dim * dim;
  const double whole = milliseconds(
      be,
      [&] {
        const auto inner = be.scope();
        typename Layer::Saved saved;
        Layer::forward(be, *params, x, y, saved);
        Layer::backward(be, *params, saved, dy, dx, *grad);
      },
      2, 3);
  const double forward = milliseconds(
      be,
      [&] {
        const auto inner = be.scope();
        typename Layer::Saved saved;
        Layer::forward(be, *params, x, y, saved);
      },
      2, 3);
  report("layer, forward", forward, 4 * product, 0);
  report("layer, forward + backward", whole, 12 * product, 0);

  parts<heads, C>(be, x.data());
  const double once =
      milliseconds(be, [&] { be.matmul(x.matrix(), params->q.weight.matrix().t(), y.matrix()); });
  const double twice = milliseconds(be, [&] {
    be.matmul(dy.matrix(), params->q.weight.matrix(), dx.matrix());
    be.matmul(dy.matrix().t(), x.matrix(), grad->q.weight.matrix(), 1, 1);
  });
  report("  projections, forward (4)", 4 * once, 4 * product, 0);
  report("  projections, backward (4)", 4 * twice, 8 * product, 0);
  using Norm = typename Layer::PostNorm;
  typename Norm::Saved saved;
  Norm::forward(be, params->post_norm, x, y, saved);
  const double size = static_cast<double>(x.size()) * 2;
  report("  post norm, forward",
         milliseconds(be,
                      [&] {
                        const auto inner = be.scope();
                        typename Norm::Saved s;
                        Norm::forward(be, params->post_norm, x, y, s);
                      }),
         0, 2 * size);
  report("  post norm, backward",
         milliseconds(be, [&] { Norm::backward(be, params->post_norm, saved, dy, dx, grad->post_norm); }), 0,
         5 * size);
  report("  two sums of dx", 2 * milliseconds(be, [&] { add_to<B, bf16>(be, x.data(), y.data(), x.size()); }),
         0, 6 * size);
}
}  // namespace

int main() {
  std::printf("%s\n", mttt::detail::device_name().c_str());
  layer<32, 16>();
  layer<64, 16>();
  return 0;
}
