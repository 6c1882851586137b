// The laws of blocks that hand their state from segment to segment (core/carry.hpp): hold your own to them.
//
//   segments           a recording cut into segments gives the outputs and gradients of the whole, for a
//                      block whose State is no more than what it carries
//   carried_gradient   backward equals central differences, for the state carried in as for input and
//                      parameters, of a loss on the state carried out as on the output (use a float64
//                      backend)
//   prefix             a stream that goes on where forward ended, at any place, gives what it gives alone
//
// Formula: gradients are those of the sum of all segments' losses.
// Shapes:  (B, T, C) = options.batch, several times Block::carry_multiple, Block::in.
// Units:   errors relative to the largest absolute value of what is compared.
// Errors:  what the block throws.
// Not supported: blocks with several inputs.
// Source:  none.
#pragma once

#include <array>

#include "mttt/core/carry.hpp"
#include "mttt/laws.hpp"

namespace mttt::laws {

namespace detail {

/// Calls f(tensor of the state, tensor of its gradient) for what has one.
template <class S, class G>
void for_each_carried(const S& state, const G& gradient, const auto& f) {
  for_each_tensor(
      [&](std::string_view name, const auto& g) {
        using A = typename std::remove_cvref_t<decltype(g)>::value_type;
        for_each_tensor(
            [&](std::string_view other, const auto& s) {
              if constexpr (std::is_same_v<A, typename std::remove_cvref_t<decltype(s)>::value_type>) {
                if (other == name) f(name, s, g);
              }
            },
            state);
      },
      gradient);
}

/// The worst error over all tensors of two aggregates; whole numbers must be equal.
template <class P>
double aggregate_difference(const P& a, const P& b) {
  double worst = 0;
  for_each_tensor(
      [&](std::string_view, const auto& x, const auto& y) {
        using U = std::remove_const_t<typename std::remove_cvref_t<decltype(x)>::value_type>;
        if constexpr (StorageType<U>) {
          worst = std::max(worst, largest_difference(x.data(), y.data(), y.size()));
        } else {
          worst = std::max(worst, same_bits(x.data(), y.data(), y.size()) ? 0.0 : INFINITY);
        }
      },
      a, b);
  return worst;
}

}  // namespace detail

/// Segments of 2, 1 and a bit more than 1 unit == the whole: y, dx and all gradients. The state, and its
/// gradient, are each one that every segment overwrites.
template <class Block, class B>
requires Trainable<Block, B> && Carries<Block> Verdict segments(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  const Index unit = Block::carry_multiple;
  const std::array<Index, 3> lengths{2 * unit, unit, unit + 1};
  detail::Trial<Block, B> trial(be, options, 4 * unit + 1);
  const auto whole = trial.output(), cut = trial.output(), dy = trial.output();
  const auto dx = be.template make<T, dyn, dyn, Block::in>(trial.batch, trial.steps);
  const auto cut_dx = be.template make<T, dyn, dyn, Block::in>(trial.batch, trial.steps);
  fill_normal(dy, 1, trial.rng);
  Store<typename Block::Params, B> grad(be), cut_grad(be);
  {
    const auto scope = be.scope();
    typename Block::Saved saved;
    Block::forward(be, *trial.params, trial.x, whole, saved);
    Block::backward(be, *trial.params, saved, dy, dx, *grad);
  }
  Store<typename Block::Carried, B> state(be, trial.batch);
  Store<typename Block::CarriedGradient, B> dstate(be, trial.batch);
  std::array<typename Block::Saved, 3> saved;
  Index at = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto x = detail::take_steps(be, trial.x, at, lengths[i]);
    const auto y = be.template make<T, dyn, dyn, Block::out>(trial.batch, lengths[i]);
    Block::forward(be, *trial.params, x, y, saved[i], {i == 0 ? nullptr : &*state, &*state});
    detail::put_steps(be, y, cut, at);
    at += lengths[i];
  }
  for (std::size_t i = 3; i-- > 0;) {
    at -= lengths[i];
    const auto part = detail::take_steps(be, dy, at, lengths[i]);
    const auto part_dx = be.template make<T, dyn, dyn, Block::in>(trial.batch, lengths[i]);
    Block::backward(be, *trial.params, saved[i], part, part_dx, *cut_grad,
                    {i == 2 ? nullptr : &*dstate, &*dstate});
    detail::put_steps(be, part_dx, cut_dx, at);
  }
  const double error = std::max({largest_difference(cut.data(), whole.data(), whole.size()),
                                 largest_difference(cut_dx.data(), dx.data(), dx.size()),
                                 detail::aggregate_difference(*cut_grad, *grad)});
  return detail::judge(error, options.tolerance, "segments against the whole");
}

/// backward == central differences, through the state at both ends; session 0 starts anew, the others
/// continue.
template <class Block, class B>
requires Trainable<Block, B> && Carries<Block> Verdict carried_gradient(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  detail::Trial<Block, B> trial(be, options, 2 * Block::carry_multiple, 3);
  const auto x = trial.x;
  const auto y = trial.output(), dy = trial.output();
  const auto dx = be.template make<T, dyn, dyn, Block::in>(trial.batch, trial.steps);
  const auto continuing = be.template make<std::uint8_t, dyn>(trial.batch);
  for (Index b = 0; b < trial.batch; ++b) continuing(b) = b > 0;
  Store<typename Block::Carried, B> from(be, trial.batch), to(be, trial.batch);
  Store<typename Block::CarriedGradient, B> dfrom(be, trial.batch), dto(be, trial.batch);
  Store<typename Block::Params, B> grad(be);
  {
    const auto scope = be.scope();
    typename Block::Saved saved;
    Block::forward(be, *trial.params, x, y, saved, {nullptr, &*from});  // a state that training meets
  }
  trial.draw();
  fill_normal(dy, 1, trial.rng);
  for_each_tensor([&](std::string_view, const auto& t) { fill_normal(t, 1, trial.rng); }, *dto);
  for_each_tensor([&](std::string_view, const auto& t) { fill_normal(t, NAN, trial.rng); }, *dfrom);

  const auto loss = [&] {
    const auto scope = be.scope();
    typename Block::Saved saved;
    Block::forward(be, *trial.params, x, y, saved, {&*from, &*to, continuing});
    double sum = 0;
    const auto add = [&](std::string_view, const auto& value, const auto& gradient) {
      for (Index i = 0; i < value.size(); ++i)
        sum += static_cast<double>(value.data()[i]) * static_cast<double>(gradient.data()[i]);
    };
    add("y", y, dy);
    detail::for_each_carried(*to, *dto, add);
    return sum;
  };
  {
    const auto scope = be.scope();
    typename Block::Saved saved;
    Block::forward(be, *trial.params, x, y, saved, {&*from, &*to, continuing});
    Block::backward(be, *trial.params, saved, dy, dx, *grad, {&*dto, &*dfrom});
  }
  detail::Differences differences(options, trial.rng);
  differences.check("the input", x.data(), dx.data(), x.size(), loss);
  for_each_tensor([&](std::string_view name, auto& p,
                      auto& g) { differences.check(name, p.data(), g.data(), p.size(), loss); },
                  *trial.params, *grad);
  detail::for_each_carried(*from, *dfrom, [&](std::string_view name, const auto& s, const auto& g) {
    const Index width = s.size() / trial.batch;
    for (Index b = 0; b < trial.batch; ++b)
      differences.check("carried " + std::string(name), s.data() + b * width, g.data() + b * width, width,
                        loss);
  });
  return differences.verdict();
}

/// forward over a prefix of any length, cut into two segments where it is long enough, then step over the
/// rest == step over all: replies and State.
template <class Block, class B>
requires Trainable<Block, B> && Streamable<Block, B> && Carries<Block> Verdict
prefix(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  const Index unit = Block::carry_multiple;
  detail::Trial<Block, B> trial(be, options, 3 * unit + 2);
  const auto alone = trial.output();
  auto all = trial.fresh_state();
  Block::step(be, *trial.params, *all, trial.x, alone, Mask{});
  double worst = 0;
  for (Index n = 1; n < trial.steps; ++n) {
    const auto scope = be.scope();
    const auto y = trial.output();
    Store<typename Block::State, B> state(be, trial.batch);
    const auto carried = carried_of<Block>(*state);
    const auto forward = [&](Index at, Index length, bool first) {
      typename Block::Saved saved;
      const auto part = be.template make<T, dyn, dyn, Block::out>(trial.batch, length);
      Block::forward(be, *trial.params, detail::take_steps(be, trial.x, at, length), part, saved,
                     {first ? nullptr : &carried, &carried});
      detail::put_steps(be, part, y, at);
    };
    const Index cut = n > unit ? unit : 0;
    if (cut > 0) forward(0, cut, true);
    forward(cut, n - cut, cut == 0);
    const auto rest = be.template make<T, dyn, dyn, Block::out>(trial.batch, trial.steps - n);
    Block::step(be, *trial.params, *state, detail::take_steps(be, trial.x, n, trial.steps - n), rest, Mask{});
    detail::put_steps(be, rest, y, n);
    worst = std::max({worst, largest_difference(y.data(), alone.data(), alone.size()),
                      detail::aggregate_difference(*state, *all)});
  }
  return detail::judge(worst, options.tolerance, "a stream from where forward ended");
}

}  // namespace mttt::laws
