// A small classifier for the tests of training: two Linear layers with SiLU between, cross-entropy, and data
// that is a function of the number of the micro-batch.
#pragma once

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/nn/linear.hpp"
#include "mttt/train/loss.hpp"
#include "mttt/train/trainer.hpp"

namespace mttt::test {

template <class B>
struct Classifier {
  using T = typename B::Scalar;
  static constexpr Index in = 6, hidden = 11, card = 5;
  using First = Linear<LinearConfig{.in = in, .out = hidden, .bias = true}, B>;
  using Second = Linear<LinearConfig{.in = hidden, .out = card, .bias = true}, B>;
  struct Params {
    typename First::Params first;
    typename Second::Params second;
    static void visit(auto&& f, auto&&... p) { f("first", p.first...), f("second", p.second...); }
    static void visit_units(auto&& f, auto& p) { f(p.first), f(p.second); }
  };
  static void init(Params& p, Rng& rng) { First::init(p.first, rng), Second::init(p.second, rng); }

  /// Adds the gradient of the loss over `rows` examples, starting at example `from` of an endless list. With
  /// several ranks these are one's own, and so is its share of the loss over the rows of all.
  template <class R = OneRank>
  static MicroBatch loss_and_gradient(B& be, const Params& p, Index from, Index rows, auto& grad,
                                      const R& ranks = {}, const UnitHooks& hooks = {}) {
    const auto scope = be.scope();
    auto x = be.template make<T, dyn, dyn, in>(1, rows), dx = be.template make<T, dyn, dyn, in>(1, rows);
    auto h = be.template make<T, dyn, dyn, hidden>(1, rows), a = h, da = h, dh = h;
    a = be.template make<T, dyn, dyn, hidden>(1, rows), da = be.template make<T, dyn, dyn, hidden>(1, rows);
    dh = be.template make<T, dyn, dyn, hidden>(1, rows);
    auto y = be.template make<T, dyn, dyn, card>(1, rows), dy = be.template make<T, dyn, dyn, card>(1, rows);
    auto targets = be.template make<std::int32_t, dyn>(rows);
    auto weights = be.template make<float, dyn>(rows);
    for (Index r = 0; r < rows; ++r) {
      Rng rng(77, static_cast<std::uint64_t>((from + r) * 64));
      for (Index i = 0; i < in; ++i) x(0, r, i) = static_cast<T>(rng.normal());
      targets(r) = x(0, r, 0) > 0 ? (x(0, r, 1) > 0 ? 0 : 1) : (x(0, r, 2) > 0 ? 2 : 3);
      weights(r) = 1;
    }
    typename First::Saved first;
    typename Second::Saved second;
    hooks.read(0);
    First::forward(be, p.first, x, h, first);
    be.map(h.size(), detail::Activate<Silu>{}, a.data(), h.data());
    hooks.read(1);
    Second::forward(be, p.second, a, y, second);
    const auto result = cross_entropy(be, y, targets, weights, dy, 1, {}, ranks);
    hooks.read_and_add(1);
    Second::backward(be, p.second, second, dy, da, grad.second);
    hooks.added(1);
    be.map(h.size(), detail::ActivateBackward<Silu>{}, dh.data(), h.data(), da.data());
    hooks.read_and_add(0);
    First::backward(be, p.first, first, dh, dx, grad.first);
    hooks.added(0);
    return {result.loss, rows};
  }
};

}  // namespace mttt::test
