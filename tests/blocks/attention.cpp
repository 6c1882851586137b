// The attention core against softmax written out in float64, for both orders of time and batch, and its step
// over the ring against itself for every chunking.
#include "mttt/nn/attention.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/laws.hpp"

namespace {
using namespace mttt;
constexpr Index batch = 2, steps = 17, head_dim = 5;

struct Case {
  AttentionShape shape;
  Index q_width() const { return shape.heads * head_dim; }
  Index kv_width() const { return shape.kv_heads * head_dim; }
  Index row() const { return q_width() + 2 * kv_width(); }
  Strides in(bool outer) const {
    return outer ? Strides{row(), batch * row()} : Strides{steps * row(), row()};
  }
  Strides to(bool outer) const {
    return outer ? Strides{q_width(), batch * q_width()} : Strides{steps * q_width(), q_width()};
  }
  /// q | k | v rows; the scale makes some softmax rows sharp.
  std::vector<double> example(bool outer) const {
    std::vector<double> x(batch * steps * row());
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < steps; ++t) {
        for (Index c = 0; c < row(); ++c) {
          x[b * in(outer).batch + t * in(outer).step + c] =
              2 * std::sin(0.37 * double(c + 31 * t + 517 * b) + double(c * t));
        }
      }
    }
    return x;
  }
};

/// out (B, T, heads * head_dim) in the order of `outer`.
std::vector<double> naive(const Case& c, bool outer) {
  const auto x = c.example(outer);
  const Strides in = c.in(outer), to = c.to(outer);
  std::vector<double> out(batch * steps * c.q_width());
  for (Index b = 0; b < batch; ++b) {
    for (Index t = 0; t < steps; ++t) {
      for (Index h = 0; h < c.shape.heads; ++h) {
        const Index kv = h * c.shape.kv_heads / c.shape.heads;
        double total = 0;
        std::vector<double> mixed(head_dim);
        for (Index s = 0; s <= t; ++s) {
          if (c.shape.context > 0 && t - s >= c.shape.context) continue;
          const double* q = &x[b * in.batch + t * in.step + h * head_dim];
          const double* k = &x[b * in.batch + s * in.step + c.q_width() + kv * head_dim];
          double score = 0;
          for (Index d = 0; d < head_dim; ++d) score += q[d] * k[d] / std::sqrt(double(head_dim));
          total += std::exp(score);
          for (Index d = 0; d < head_dim; ++d) mixed[d] += std::exp(score) * k[c.kv_width() + d];
        }
        for (Index d = 0; d < head_dim; ++d) {
          out[b * to.batch + t * to.step + h * head_dim + d] = mixed[d] / total;
        }
      }
    }
  }
  return out;
}

template <class T>
struct Result {
  std::vector<T> out, lse, gradient;
};

template <class T>
Result<T> run(const Case& c, bool outer) {
  Cpu<T> be;
  const auto values = c.example(outer);
  std::vector<T> x(values.begin(), values.end()), up(batch * steps * c.q_width());
  Result<T> r{std::vector<T>(up.size()), std::vector<T>(batch * steps * c.shape.heads),
              std::vector<T>(x.size(), T(NAN))};
  const T *q = x.data(), *k = q + c.q_width(), *v = k + c.kv_width();
  attend(be, c.shape, batch, steps, q, k, v, c.in(outer), r.out.data(), c.to(outer), r.lse.data());
  for (Index b = 0; b < batch; ++b) {
    for (Index t = 0; t < steps; ++t) {
      for (Index i = 0; i < c.q_width(); ++i) {
        up[b * c.to(outer).batch + t * c.to(outer).step + i] =
            static_cast<T>(std::cos(0.9 * double(i + 7 * t + 90 * b)));
      }
    }
  }
  T *dq = r.gradient.data(), *dk = dq + c.q_width(), *dv = dk + c.kv_width();
  attend_backward(be, c.shape, batch, steps, q, k, v, c.in(outer), r.out.data(), up.data(), c.to(outer),
                  r.lse.data(), dq, dk, dv);
  return r;
}

const Case cases[] = {{{4, 4, head_dim, 6}}, {{6, 2, head_dim, 5}},  {{3, 1, head_dim, 1}},
                      {{2, 2, head_dim, 0}}, {{2, 1, head_dim, 17}}, {{2, 1, head_dim, 100}}};

/// All steps through the ring, in chunks of `chunk`.
std::vector<float> streamed(const Case& c, Index chunk) {
  Cpu<float> be(1);
  const auto values = c.example(false);
  const std::vector<float> x(values.begin(), values.end());
  std::vector<float> out(batch * steps * c.q_width(), NAN);
  const Index ring = batch * c.shape.kv_heads * c.shape.context * head_dim;
  std::vector<float> keys(ring, NAN), rows(ring, NAN);  // NaN: what was never written must never be read
  std::vector<std::int64_t> positions(batch, 0);
  for (Index t = 0; t < steps; t += chunk) {
    const Index n = std::min(chunk, steps - t);
    const float* q = x.data() + t * c.row();
    attend_step(be, c.shape, batch, n, q, q + c.q_width(), q + c.q_width() + c.kv_width(), c.in(false),
                keys.data(), rows.data(), positions.data(), Mask{}, out.data() + t * c.q_width(),
                c.to(false));
    advance(be, positions.data(), batch, n, Mask{});
  }
  CHECK(positions == std::vector<std::int64_t>(batch, steps));
  return out;
}
}  // namespace

TEST_CASE("Attention is softmax over the window") {
  for (const Case& c : cases) {
    for (const bool outer : {false, true}) {
      CAPTURE(c.shape.heads, c.shape.kv_heads, c.shape.context, outer);
      const auto expected = naive(c, outer);
      const Index n = static_cast<Index>(expected.size());
      CHECK(laws::largest_difference(run<double>(c, outer).out.data(), expected.data(), n) < 1e-13);
      CHECK(laws::largest_difference(run<float>(c, outer).out.data(), expected.data(), n) < 2e-6);
    }
  }
}

TEST_CASE("Attention with time outermost computes the same bits, forward and backward") {
  for (const Case& c : cases) {
    CAPTURE(c.shape.heads, c.shape.kv_heads, c.shape.context);
    const auto inner = run<float>(c, false), outer = run<float>(c, true);
    CHECK(inner.lse == outer.lse);
    bool same = true;
    for (Index b = 0; b < batch; ++b) {
      for (Index t = 0; t < steps; ++t) {
        for (Index i = 0; i < c.q_width(); ++i) {
          same = same &&
                 inner.out[(b * steps + t) * c.q_width() + i] == outer.out[(t * batch + b) * c.q_width() + i];
        }
        for (Index i = 0; i < c.row(); ++i) {
          same = same && inner.gradient[(b * steps + t) * c.row() + i] ==
                             outer.gradient[(t * batch + b) * c.row() + i];
        }
      }
    }
    CHECK(same);
  }
}

TEST_CASE("The ring cache is exact for every chunk size, also where it wraps within a chunk") {
  for (const Case& c : cases) {
    if (c.shape.context == 0) continue;
    CAPTURE(c.shape.heads, c.shape.kv_heads, c.shape.context);
    const auto expected = naive(c, false);
    const auto one_by_one = streamed(c, 1);
    CHECK(laws::largest_difference(one_by_one.data(), expected.data(), static_cast<Index>(expected.size())) <
          2e-6);
    for (const Index chunk : {2, 3, 7, 16, 17}) {
      CAPTURE(chunk);
      CHECK(streamed(c, chunk) == one_by_one);
    }
  }
}

TEST_CASE("Attention survives scores that overflow exp") {
  Cpu<float> be;
  const float q[2] = {300, 300}, k[2] = {300, 1}, v[2] = {2, -1};  // one head of one channel, two steps
  float out[2], lse[2];
  attend(be, {1, 1, 1, 2}, 1, 2, q, k, v, {2, 1}, out, {2, 1}, lse);
  CHECK(out[0] == 2);
  CHECK(out[1] == 2);
  CHECK(lse[1] == 90000);
}

TEST_CASE("Attention's parameters carry the published names and shapes") {
  using Block =
      Attention<AttentionConfig{.dim = 24, .num_heads = 6, .kv_repeat = 3, .context = 2}, Cpu<float>>;
  Cpu<float> be;
  Store<Block::Params, Cpu<float>> params(be);
  std::string names;
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        names +=
            std::string(name) + " " + std::to_string(t.extent(0)) + " " + std::to_string(t.extent(1)) + ";";
      },
      *params);
  CHECK(names == "in_projs.0.weight 40 24;out_projs.0.weight 24 24;");
}
