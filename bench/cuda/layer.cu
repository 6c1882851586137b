// One layer of the 7B temporal transformer, forward and backward, 2048 tokens, bf16 with float32 gradients;
// and what it is made of, so that the sum of the parts can be held against the whole.
#include "mttt/core/store.hpp"
#include "mttt/lm/temporal.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using bench::Fill;
using bench::milliseconds;
using bench::report;

constexpr Index dim = 4096, hidden = 11264, steps = 2048, heads = 32;
constexpr TemporalConfig config{
    .dim = dim, .num_heads = heads, .num_layers = 1, .hidden = hidden, .context = 3000};
using B = Cuda<bf16>;
using Layer = TemporalLayer<config, false, B>;
using Gradient = TemporalLayer<config, false, Cuda<float>>::Params;

}  // namespace

int main() {
  B be;
  std::printf("%s\n", mttt::detail::device_name().c_str());
  Store<Layer::Params, B> params(be);
  Store<Gradient, B> grad(be);
  for_each_tensor(
      [&](std::string_view, const auto& t) {
        be.for_each(t.size(), Fill<bf16>{t.data(), 0.02f});
      },
      *params);
  const auto scope = be.scope();
  const auto make = [&] { return be.make<bf16, dyn, dyn, dim>(1, steps); };
  const auto x = make(), y = make(), dy = make(), dx = make();
  be.for_each(x.size(), Fill<bf16>{x.data(), 1});
  be.for_each(dy.size(), Fill<bf16>{dy.data(), 1});

  const double weights = static_cast<double>(count_elements(*params));
  const double attention = 4.0 * dim * steps * steps / 2;  // causal: half of the square
  const double forward_flops = 2 * weights * steps + attention,
               flops = 3 * 2 * weights * steps + 3.5 * attention;

  const double whole = milliseconds(be, [&] {
    const auto inner = be.scope();
    Layer::Saved saved;
    Layer::forward(be, *params, x, y, saved);
    Layer::backward(be, *params, saved, dy, dx, *grad);
  });
  const double forward = milliseconds(be, [&] {
    const auto inner = be.scope();
    Layer::Saved saved;
    Layer::forward(be, *params, x, y, saved);
  });
  report("layer, forward + backward, 2048 tokens", whole, flops, 0);
  report("layer, forward", forward, forward_flops, 0);

  // The parts.
  const auto activations = [&] { return be.make<bf16, dyn, dyn, 2 * hidden>(1, steps); };
  const auto wide = activations(), half = activations(), other = activations();
  const auto part = [&](const char* name, Index in, Index out, Matrix<bf16> weight, Matrix<float> gradient) {
    const Matrix<bf16> a{wide.data(), steps, in, in}, b{half.data(), steps, out, out};
    const double product = 2.0 * steps * static_cast<double>(in * out);
    char text[64];
    std::snprintf(text, sizeof text, "  %s: y = x W^T", name);
    const double one = milliseconds(be, [&] { be.matmul(a, weight.t(), b); });
    report(text, one, product, 0);
    std::snprintf(text, sizeof text, "  %s: dx = dy W", name);
    const double two = milliseconds(be, [&] { be.matmul(b, weight, a); });
    report(text, two, product, 0);
    std::snprintf(text, sizeof text, "  %s: dW += dy^T x, in float32", name);
    const double three = milliseconds(be, [&] { be.matmul(b.t(), a, gradient, 1, 1); });
    report(text, three, product, 0);
    return one + two + three;
  };
  be.for_each(wide.size(), Fill<bf16>{wide.data(), 1});
  be.for_each(half.size(), Fill<bf16>{half.data(), 1});
  double products = 0;
  products += part("in_proj", dim, 3 * dim, params->self_attn.in_proj.weight.matrix(),
                   grad->self_attn.in_proj.weight.matrix());
  products += part("out_proj", dim, dim, params->self_attn.out_proj.weight.matrix(),
                   grad->self_attn.out_proj.weight.matrix());
  products += part("linear_in", dim, 2 * hidden, params->gating.linear_in.weight.matrix(),
                   grad->gating.linear_in.weight.matrix());
  products += part("linear_out", hidden, dim, params->gating.linear_out.weight.matrix(),
                   grad->gating.linear_out.weight.matrix());
  report("  all products", products, 6 * weights * steps, 0);

  const auto qkv = be.make<bf16, dyn, dyn, 3 * dim>(1, steps),
             dqkv = be.make<bf16, dyn, dyn, 3 * dim>(1, steps);
  const auto lse = be.make<float, dyn, dyn, heads>(1, steps);
  be.for_each(qkv.size(), Fill<bf16>{qkv.data(), 1});
  const AttentionShape shape{heads, heads, dim / heads, 3000};
  const Strides in{steps * 3 * dim, 3 * dim}, out{steps * dim, dim};
  const bf16* q = qkv.data();
  const double attend_ms = milliseconds(
      be,
      [&] { attend<B, bf16>(be, shape, 1, steps, q, q + dim, q + 2 * dim, in, y.data(), out, lse.data()); },
      2, 3);
  report("  attention, forward", attend_ms, attention, 0);
  const double back_ms = milliseconds(
      be,
      [&] {
        bf16* d = dqkv.data();
        attend_backward<B, bf16>(be, shape, 1, steps, q, q + dim, q + 2 * dim, in, y.data(), dy.data(), out,
                                 lse.data(), d, d + dim, d + 2 * dim);
      },
      2, 3);
  report("  attention, backward", back_ms, 2.5 * attention, 0);

  using Norm = Layer::Norm;
  Norm::Saved norm_saved;
  Norm::forward(be, params->norm1, x, y, norm_saved);
  const double size = static_cast<double>(x.size()) * 2;
  report("  norm, forward",
         milliseconds(be,
                      [&] {
                        const auto inner = be.scope();
                        Norm::Saved s;
                        Norm::forward(be, params->norm1, x, y, s);
                      }),
         0, 2 * size);
  report("  norm, backward",
         milliseconds(be, [&] { Norm::backward(be, params->norm1, norm_saved, dy, dx, grad->norm1); }), 0,
         5 * size);
  report("  rope",
         milliseconds(be,
                      [&] {
                        rope(be, qkv.data(), 1, steps, in, 2 * heads, dim / heads, nullptr, 0, 10000,
                             Rotation::forward);
                      }),
         0, 4 * size);
  report("  y += x", milliseconds(be, [&] { add_to<B, bf16>(be, x.data(), y.data(), x.size()); }), 0,
         3 * size);
  const double gate = static_cast<double>(steps) * hidden * 2;
  report("  gate, forward",
         milliseconds(be,
                      [&] {
                        be.rows(steps, mttt::detail::GateRow<Silu, bf16>{wide.data(), half.data(), hidden}, 0,
                                20 * hidden);
                      }),
         0, 3 * gate);
  report("  gate, backward",
         milliseconds(be,
                      [&] {
                        be.rows(steps,
                                mttt::detail::GateRowBackward<Silu, bf16>{wide.data(), half.data(),
                                                                          other.data(), hidden},
                                0, 40 * hidden);
                      }),
         0, 6 * gate);
  return 0;
}
