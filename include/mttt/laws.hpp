// The laws that every block owes, as functions: hold your own blocks to them.
//
//   gradient        backward equals central differences of forward (use a float64 backend)
//   streaming       step, chunk by random chunk, equals forward
//   causality       changing the future leaves the past bit-identical
//   masking         step leaves the State of masked sessions bit-identical, and the others go on as if alone
//   reset           a reset session equals a fresh one, bit for bit, and touches no other
//   snapshot        a copied State continues with the same bits
//   storage         a block that stores in bf16 and computes in float32 gives the float32 block's numbers, but for
//                   the rounding; its gradients are float32
//   no_allocation   step allocates nothing once it has run (give a function that counts allocations)
//
// Each returns a Verdict: whether the law holds, and what was measured. A test writes
//   const auto v = laws::gradient<MyBlock<Cpu<double>>>(be);  INFO(v.says);  REQUIRE(v.holds);
//
// Shapes:  (B, T, C) = options.batch, options.steps, Block::in.
// Units:   errors relative to the largest absolute value of what is compared.
// Errors:  what the block throws.
// Not supported: blocks with several inputs; their tests use the same helpers (random_params,
//          largest_difference).
// Source:  streaming contract and golden tests of kyutai-labs/moshi; gradient checks as everywhere.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "mttt/core/bf16.hpp"
#include "mttt/core/concepts.hpp"
#include "mttt/core/store.hpp"

namespace mttt {

namespace laws {

struct Options {
  Index batch = 2;
  Index steps = 13;  // in units of time_multiple
  std::uint64_t seed = 1;
  double tolerance = 1e-6;  // gradient: central differences in float64; streaming: see there
  double input_scale = 1;
  double perturbation = 0.1;    // added to the initial parameters, so that no weight is 0 or 1 by chance
  Index checked_elements = 24;  // of each parameter tensor, drawn at random
  double difference = 1e-5;     // of two values of an element, half of it; its square is in the error
};

struct Verdict {
  bool holds;
  std::string says;
};

/// Initial parameters plus noise.
template <class Block, class B>
Store<typename Block::Params, B> random_params(B& be, const Options& options, Rng& rng) {
  Store<typename Block::Params, B> params(be);
  Block::init(*params, rng);
  for_each_parameter(
      [&](std::string_view, auto& t) {
        if constexpr (!is_quantised<std::remove_cvref_t<decltype(t)>>) {  // those are random already
          for (Index i = 0; i < t.size(); ++i) {
            t.data()[i] += static_cast<typename B::Scalar>(options.perturbation * rng.normal());
          }
        }
      },
      *params);
  return params;
}

template <class T, Index... E>
void fill_normal(Tensor<T, E...> t, double scale, Rng& rng) {
  for (Index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(scale * rng.normal());
}

/// Largest |a - b| over the largest |b| (1 if b is all zero); infinite when either is not finite.
template <class T, class U>
double largest_difference(const T* a, const U* b, Index n) {
  double difference = 0, scale = 0;
  for (Index i = 0; i < n; ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    if (!std::isfinite(x) || !std::isfinite(y)) return INFINITY;
    difference = std::max(difference, std::abs(x - y));
    scale = std::max(scale, std::abs(y));
  }
  return difference / (scale > 0 ? scale : 1);
}

/// Relative error that storing in T adds to a chain of `stages`: each rounds by up to epsilon / 2, the errors
/// are independent, and what is compared is the largest of many: 4 deviations.
template <StorageType T>
double rounding(double stages) {
  return 2 * epsilon<T>() * std::sqrt(stages);
}

namespace detail {

inline Verdict judge(double error, double tolerance, const char* what) {
  char text[200];
  std::snprintf(text, sizeof text, "%s: relative error %.3g, tolerance %.3g", what, error, tolerance);
  return {error <= tolerance, text};
}

inline Verdict judge_bits(bool equal, const char* what) {
  return {equal, std::string(what) + (equal ? ": bit-identical" : ": bits differ")};
}

template <class T>
bool same_bits(const T* a, const T* b, Index n) {
  return std::memcmp(a, b, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}

/// Whether session `row` of two states of equal batch holds the same bits.
template <class S>
bool same_session(const S& a, const S& b, Index row) {
  bool same = true;
  for_each_tensor(
      [&](std::string_view, const auto& x, const auto& y) {
        const Index width = x.size() / x.extent(0);
        same = same && same_bits(x.data() + row * width, y.data() + row * width, width);
      },
      a, b);
  return same;
}

/// Copies steps [from, from + n) of x (B, T, C) into a new chunk (B, n, C), or back.
template <class B, class T, Index C>
Sequence<T, C> take_steps(B& be, Sequence<T, C> x, Index from, Index n) {
  auto chunk = be.template make<T, dyn, dyn, C>(x.extent(0), n);
  for (Index b = 0; b < x.extent(0); ++b) be.copy(&x(b, from, 0), &chunk(b, 0, 0), n * C);
  return chunk;
}
template <class B, class T, Index C>
void put_steps(B& be, Sequence<T, C> chunk, Sequence<T, C> y, Index from) {
  for (Index b = 0; b < y.extent(0); ++b) be.copy(&chunk(b, 0, 0), &y(b, from, 0), chunk.extent(1) * C);
}

/// Streams x through `state` in random chunks.
template <class Block, class B>
void stream(B& be, const typename Block::Params& params, typename Block::State& state,
            Sequence<typename B::Scalar, Block::in> x, Sequence<typename B::Scalar, Block::out> y,
            Index largest_chunk, Rng& rng) {
  const Index unit = time_multiple<Block>();
  Index at = 0, out_at = 0;
  while (at < x.extent(1)) {
    const auto scope = be.scope();
    const Index left = (x.extent(1) - at) / unit;
    const Index n =
        unit * std::min(left, 1 + static_cast<Index>(rng.below(static_cast<std::uint64_t>(largest_chunk))));
    const auto chunk = take_steps(be, x, at, n);
    const auto reply =
        be.template make<typename B::Scalar, dyn, dyn, Block::out>(x.extent(0), out_time<Block>(n));
    Block::step(be, params, state, chunk, reply, Mask{});
    put_steps(be, reply, y, out_at);
    at += n;
    out_at += reply.extent(1);
  }
}

/// A state of `batch` sessions, all reset.
template <class Block, class B>
Store<typename Block::State, B> fresh_state(B& be, const typename Block::Params& params, Index batch) {
  Store<typename Block::State, B> state(be, batch);
  Block::reset(be, params, *state, Mask{});
  return state;
}

/// What a law starts from: parameters and an input drawn from the seed, and room for outputs.
template <class Block, class B>
struct Trial {
  using T = typename B::Scalar;

  B& be;
  const Options& options;
  Rng rng;
  decltype(std::declval<B&>().scope()) scope;
  Store<typename Block::Params, B> params;
  Index batch, steps;
  Sequence<T, Block::in> x;

  /// `units` of time_multiple steps, and at least so many sessions.
  Trial(B& backend, const Options& law_options, Index units, Index least_batch = 1)
      : be(backend),
        options(law_options),
        rng(options.seed),
        scope(be.scope()),
        params(random_params<Block>(be, options, rng)),
        batch(std::max(least_batch, options.batch)),
        steps(units * time_multiple<Block>()),
        x(be.template make<T, dyn, dyn, Block::in>(batch, steps)) {
    draw();
  }
  void draw() { fill_normal(x, options.input_scale, rng); }
  Sequence<T, Block::out> output() const {
    return be.template make<T, dyn, dyn, Block::out>(batch, out_time<Block>(steps));
  }
  // Named by neither of the next two, State may be missing: some blocks have a gradient only.
  auto fresh_state() const { return detail::fresh_state<Block>(be, *params, batch); }
  template <class State>
  void stream(State& state, Sequence<T, Block::out> y, Index largest_chunk, Rng& chunks) const {
    detail::stream<Block>(be, *params, state, x, y, largest_chunk, chunks);
  }
};

}  // namespace detail

namespace detail {

/// y, dx and gradients of one forward and backward pass, under their names, widened.
using Results = std::vector<std::pair<std::string, std::vector<double>>>;

template <class Block, class Gradient, class B, class T>
Results pass_results(B& be, const typename Block::Params& params, Sequence<const T, Block::in> x,
                     Sequence<const T, Block::out> dy) {
  const auto scope = be.scope();
  const auto y = be.template make<T, dyn, dyn, Block::out>(dy.extent(0), dy.extent(1));
  const auto dx = be.template make<T, dyn, dyn, Block::in>(x.extent(0), x.extent(1));
  Store<Gradient, B> grad(be);
  typename Block::Saved saved;
  Block::forward(be, params, x, y, saved);
  Block::backward(be, params, saved, dy, dx, *grad);
  Results results;
  const auto keep = [&](std::string_view name, const auto& t) {
    results.emplace_back(name, std::vector<double>(t.data(), t.data() + t.size()));
  };
  keep("y", y);
  keep("dx", dx);
  for_each_tensor(keep, *grad);
  return results;
}

}  // namespace detail

/// forward and backward of `Narrow`, the block on a backend of bf16, against `Full`, the same in float32. Its
/// gradients go to the Params of `Full`. Where a block amplifies what comes in (a norm over few channels), it
/// amplifies roundings as well: beside `rounding`, twice is allowed what Full itself moves by when a rounding
/// is put on its input and parameters.
template <class Narrow, class Full, class B>
Verdict storage(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  using A = Wide<T>;
  using FullParams = typename Full::Params;
  auto full_be = be.template as<A>();
  detail::Trial<Narrow, B> trial(be, options, options.steps);
  const auto dy = trial.output();
  fill_normal(dy, 1, trial.rng);
  const auto narrow = detail::pass_results<Narrow, FullParams, B, T>(be, *trial.params, trial.x,
                                                                     Sequence<const T, Narrow::out>(dy));

  // Full, on the same numbers, or each moved by up to half an epsilon.
  Store<FullParams, B> params(be);
  const auto full_x = be.template make<A, dyn, dyn, Full::in>(trial.batch, trial.steps);
  const auto full_dy = be.template make<A, dyn, dyn, Full::out>(dy.extent(0), dy.extent(1));
  const auto full = [&](double moved) {
    const auto widen = [&](const auto& from, const auto& to) {
      for (Index i = 0; i < to.size(); ++i)
        to.data()[i] = wide(from.data()[i]) * static_cast<A>(1 + moved * (2 * trial.rng.uniform() - 1));
    };
    widen(trial.x, full_x);
    widen(dy, full_dy);
    for_each_tensor([&](std::string_view, const auto& to, const auto& from) { widen(from, to); }, *params,
                    *trial.params);
    return detail::pass_results<Full, FullParams, decltype(full_be), A>(full_be, *params, full_x, full_dy);
  };
  const auto exact = full(0);
  std::vector<double> sensitivity(exact.size(), 0.0);
  for (int draw = 0; draw < 4; ++draw) {
    const auto moved = full(epsilon<T>() / 2);
    for (std::size_t i = 0; i < exact.size(); ++i)
      sensitivity[i] =
          std::max(sensitivity[i], largest_difference(moved[i].second.data(), exact[i].second.data(),
                                                      static_cast<Index>(exact[i].second.size())));
  }

  const double base = rounding<T>(static_cast<double>(exact.size()));
  double worst = 0;
  std::string where = "nothing";
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double error = largest_difference(narrow[i].second.data(), exact[i].second.data(),
                                            static_cast<Index>(exact[i].second.size()));
    const double share = error / (base + 2 * sensitivity[i]);
    if (!(share <= worst)) worst = share, where = exact[i].first;
  }
  return detail::judge(worst, 1, ("bf16 storage, share of the allowed error, " + where).c_str());
}

namespace detail {

/// Central differences of a loss against gradients, of many tensors; remembers the worst.
class Differences {
 public:
  Differences(const Options& options, Rng& rng) : options_(options), rng_(rng) {}

  /// `loss` reads `values`.
  template <class T, class Loss>
  void check(std::string_view name, T* values, const T* gradients, Index n, const Loss& loss) {
    double scale = 0, error = 0;
    for (Index i = 0; i < n; ++i) scale = std::max(scale, std::abs(static_cast<double>(gradients[i])));
    for (Index k = 0; k < std::min(n, options_.checked_elements); ++k) {
      const Index i =
          n <= options_.checked_elements ? k : static_cast<Index>(rng_.below(static_cast<std::uint64_t>(n)));
      const T kept = values[i];
      const double h = options_.difference * std::max(1.0, std::abs(static_cast<double>(kept)));
      values[i] = static_cast<T>(static_cast<double>(kept) + h);
      const double above = loss();
      values[i] = static_cast<T>(static_cast<double>(kept) - h);
      const double below = loss();
      values[i] = kept;
      const double numeric = (above - below) / (2 * h);
      scale = std::max(scale, std::abs(numeric));
      const double difference = std::abs(numeric - static_cast<double>(gradients[i]));
      error = std::isfinite(difference) ? std::max(error, difference) : INFINITY;
    }
    const double relative = n == 0 ? 0 : error / std::max(scale, 1e-3);
    if (!(relative <= worst_)) {
      worst_ = relative;
      says_ = std::string("gradient of ") + std::string(name);
    }
  }
  Verdict verdict() const {
    return judge(worst_, options_.tolerance, says_.empty() ? "gradient" : says_.c_str());
  }

 private:
  const Options& options_;
  Rng& rng_;
  double worst_ = 0;
  std::string says_;
};

}  // namespace detail

/// backward == central differences, for the input and every parameter.
template <class Block, class B>
requires Trainable<Block, B> Verdict gradient(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  detail::Trial<Block, B> trial(be, options, options.steps);
  auto& params = trial.params;
  auto& rng = trial.rng;
  const auto x = trial.x;
  Store<typename Block::Params, B> grad(be);
  const auto dx = be.template make<T, dyn, dyn, Block::in>(trial.batch, trial.steps);
  const auto y = trial.output(), dy = trial.output();
  fill_normal(dy, 1, rng);
  be.fill(dx.data(), dx.size(), static_cast<T>(NAN));  // `dx` must be overwritten everywhere

  const auto loss = [&] {
    const auto inner = be.scope();
    typename Block::Saved saved;
    Block::forward(be, *params, x, y, saved);
    double sum = 0;
    for (Index i = 0; i < y.size(); ++i)
      sum += static_cast<double>(y.data()[i]) * static_cast<double>(dy.data()[i]);
    return sum;
  };
  {
    const auto inner = be.scope();
    typename Block::Saved saved;
    Block::forward(be, *params, x, y, saved);
    const T before = static_cast<T>(0.5);  // `grad` must be added to
    for_each_tensor([&](std::string_view, auto& g) { be.fill(g.data(), g.size(), before); }, *grad);
    Block::backward(be, *params, saved, dy, dx, *grad);
    for_each_tensor(
        [&](std::string_view, auto& g) {
          for (Index i = 0; i < g.size(); ++i) g.data()[i] -= before;
        },
        *grad);
  }

  detail::Differences differences(options, rng);
  differences.check("the input", x.data(), dx.data(), x.size(), loss);
  for_each_tensor([&](std::string_view name, auto& p,
                      auto& g) { differences.check(name, p.data(), g.data(), p.size(), loss); },
                  *params, *grad);
  return differences.verdict();
}

/// step over random chunks == forward.
template <class Block, class B>
requires Trainable<Block, B> && Streamable<Block, B> Verdict streaming(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  detail::Trial<Block, B> trial(be, options, options.steps);
  const auto offline = trial.output(), streamed = trial.output();
  typename Block::Saved saved;
  Block::forward(be, *trial.params, trial.x, offline, saved);
  double worst = 0;
  for (const Index largest_chunk : {Index{1}, Index{2}, Index{5}, options.steps}) {
    auto state = trial.fresh_state();
    be.fill(streamed.data(), streamed.size(), static_cast<T>(NAN));
    trial.stream(*state, streamed, largest_chunk, trial.rng);
    worst = std::max(worst, largest_difference(streamed.data(), offline.data(), offline.size()));
  }
  return detail::judge(worst, options.tolerance, "streaming against offline");
}

/// Changing inputs from a step on leaves all earlier outputs bit-identical.
template <class Block, class B>
requires Trainable<Block, B> Verdict causality(B& be, const Options& options = {}) {
  detail::Trial<Block, B> trial(be, options, options.steps);
  const Index unit = time_multiple<Block>(), steps = trial.steps;
  const auto x = trial.x;
  const auto before = trial.output(), after = trial.output();
  typename Block::Saved saved;
  Block::forward(be, *trial.params, x, before, saved);
  bool past_same = true, present_differs = true;
  for (Index cut = options.steps - 1; cut > 0; --cut) {  // each pass changes one earlier frame as well
    for (Index b = 0; b < options.batch; ++b) {
      for (Index i = 0; i < unit * Block::in; ++i) x.data()[(b * steps + cut * unit) * Block::in + i] += 1;
    }
    const auto inner = be.scope();
    typename Block::Saved again;
    Block::forward(be, *trial.params, x, after, again);
    const Index past = out_time<Block>(cut * unit);
    bool same = true;
    for (Index b = 0; b < options.batch; ++b) {
      const Index row = b * out_time<Block>(steps) * Block::out;
      past_same = past_same && detail::same_bits(before.data() + row, after.data() + row, past * Block::out);
      same = same &&
             detail::same_bits(before.data() + row, after.data() + row, out_time<Block>(steps) * Block::out);
    }
    present_differs = present_differs && !same;  // else the law would hold for a block that ignores its input
  }
  if (!present_differs) return {false, "causality: the output does not depend on the input"};
  return detail::judge_bits(past_same, "the past under a changed future");
}

/// Masked sessions keep their State to the bit; the others compute what they compute in an unmasked step.
template <class Block, class B>
requires Streamable<Block, B> Verdict masking(B& be, const Options& options = {}) {
  using T = typename B::Scalar;
  Rng rng(options.seed);
  const auto scope = be.scope();
  auto params = random_params<Block>(be, options, rng);
  const Index batch = std::max<Index>(2, options.batch);
  auto state = detail::fresh_state<Block>(be, *params, batch);
  auto mask = be.template make<std::uint8_t, dyn>(batch);
  for (Index i = 0; i < options.steps; ++i) {
    const auto inner = be.scope();
    const Index steps = (1 + i % 3) * time_multiple<Block>();  // chunks of several lengths
    auto x = be.template make<T, dyn, dyn, Block::in>(batch, steps);
    auto y = be.template make<T, dyn, dyn, Block::out>(batch, out_time<Block>(steps));
    auto expected = be.template make<T, dyn, dyn, Block::out>(batch, out_time<Block>(steps));
    fill_normal(x, options.input_scale, rng);
    for (Index b = 0; b < batch; ++b) mask(b) = rng.uniform() < 0.5;
    Store<typename Block::State, B> before(be, state), unmasked(be, state);
    Block::step(be, *params, *unmasked, x, expected, Mask{});
    Block::step(be, *params, *state, x, y, mask);
    for (Index b = 0; b < batch; ++b) {
      if (mask(b) == 0) {
        if (!detail::same_session(*state, *before, b))
          return {false, "masking: a masked session's State changed"};
        continue;
      }
      const Index width = y.extent(1) * Block::out;
      if (!detail::same_session(*state, *unmasked, b) ||
          !detail::same_bits(y.data() + b * width, expected.data() + b * width, width)) {
        return {false, "masking: an active session was changed by its neighbour's mask"};
      }
    }
  }
  return {true, "masked sessions: bit-identical"};
}

/// reset(mask) makes those sessions fresh, and leaves the others alone.
template <class Block, class B>
requires Streamable<Block, B> Verdict reset(B& be, const Options& options = {}) {
  detail::Trial<Block, B> trial(be, options, options.steps, 2);
  const auto first = trial.output(), second = trial.output();
  auto state = trial.fresh_state();
  const auto replay = [&](auto y) {
    Rng same_chunks(options.seed + 1);
    trial.stream(*state, y, 3, same_chunks);
  };
  replay(first);
  Store<typename Block::State, B> before(be, state);
  auto mask = be.template make<std::uint8_t, dyn>(trial.batch);
  for (Index b = 0; b < trial.batch; ++b) mask(b) = b % 2 == 0;
  Block::reset(be, *trial.params, *state, mask);
  for (Index b = 1; b < trial.batch; b += 2) {
    if (!detail::same_session(*state, *before, b)) return {false, "reset: another session's State changed"};
  }
  Block::reset(be, *trial.params, *state, Mask{});
  replay(second);
  return detail::judge_bits(detail::same_bits(first.data(), second.data(), first.size()), "after reset");
}

/// A copy of the State, taken mid-stream, continues with the same bits.
template <class Block, class B>
requires Streamable<Block, B> Verdict snapshot(B& be, const Options& options = {}) {
  detail::Trial<Block, B> trial(be, options, options.steps);
  const auto first = trial.output(), second = trial.output();
  auto state = trial.fresh_state();
  trial.stream(*state, first, 3, trial.rng);
  Store<typename Block::State, B> copy(be, state);
  trial.draw();
  Rng chunks(options.seed + 1), same_chunks(options.seed + 1);
  trial.stream(*state, first, 3, chunks);
  trial.stream(*copy, second, 3, same_chunks);
  return detail::judge_bits(detail::same_bits(first.data(), second.data(), first.size()), "from a snapshot");
}

/// A warm step allocates nothing; `allocations()` returns the number of allocations of the process so far.
template <class Block, class B>
requires Streamable<Block, B> Verdict no_allocation(B& be, const std::function<std::size_t()>& allocations,
                                                    const Options& options = {}) {
  detail::Trial<Block, B> trial(be, options, 1);
  const auto y = trial.output();
  auto state = trial.fresh_state();
  const auto step = [&] {
    const auto inner = be.scope();
    Block::step(be, *trial.params, *state, trial.x, y, Mask{});
  };
  step();
  const std::size_t before = allocations();
  for (Index i = 0; i < options.steps; ++i) step();
  const std::size_t count = allocations() - before;
  return {count == 0,
          std::to_string(count) + " allocations in " + std::to_string(options.steps) + " warm steps"};
}

}  // namespace laws
}  // namespace mttt
