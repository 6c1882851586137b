// The fused scans of TTT-MLP against the composed ones, evaluated in float64 on what bf16 holds.
//
// Errors are |found - expected| / |expected| in 2-norms over a whole tensor: a term that is missing shows
// even where its share of the largest element is small. The tolerance is 3 times what the composed scan moves
// by when every number that goes in is rounded once: the fused ones round about 9 times in a chain (W, K, X,
// G, P, Xbar, and dZbar, dA, dH, dZ, dW of the way back), and independent errors add as squares. So a sum
// that cancels, as dscale's last number does, is allowed what its condition asks for, and no other one is.
// Those last numbers, one a head, stand for themselves: in the norms of many numbers the errors average out,
// of one number nine roundings are 3 movements and its tail three times that, so they are allowed 9.
#pragma once

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/rng.hpp"
#include "mttt/cuda.cuh"
#include "mttt/laws_cuda.cuh"
#include "mttt/ttt/dual.hpp"

namespace mttt::testing {

struct MlpCase {
  Index batch, steps, heads, mini_batch;
  Index rows() const { return batch * steps * heads; }
};

inline const std::string last_scales = "dscale, last tokens";
using Results = std::vector<std::pair<std::string, std::vector<double>>>;

inline std::vector<float> normal(Index n, double deviation, double mean, Rng& rng) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& e : x) e = static_cast<float>(mean + deviation * rng.normal());
  return x;
}
inline std::vector<bf16> rounded(const std::vector<float>& x) {
  return std::vector<bf16>(x.begin(), x.end());
}

/// The gradients of the token scales, the last ones of mini-batches apart: these are in every update.
inline void add_scales(Results& r, const std::vector<double>& dscale, Index mini_batch) {
  std::vector<double> most, last;
  for (std::size_t i = 0; i < dscale.size(); ++i)
    (static_cast<Index>(i + 1) % mini_batch == 0 ? last : most).push_back(dscale[i]);
  r.emplace_back("dscale", most), r.emplace_back(last_scales, last);
}

template <class T>
std::vector<double> widened(const std::vector<T>& x) {
  return std::vector<double>(x.begin(), x.end());
}

/// Of 2-norms; NaN is no less than anything.
inline double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// Heads of F columns.
template <Index F>
struct FusedMlp {
  static constexpr Index hidden = 4 * F;
  static constexpr InnerModel model{F, hidden, 2};

  /// What goes into both scans. Storage T holds what bf16 can, so that all see the same numbers.
  template <class T>
  struct Inputs {
    std::vector<T> q, k, target, dout;
    std::vector<Wide<T>> lr, scale, gamma, beta, weights, dweights;

    template <class U>
    Inputs<U> as() const {
      const auto to = [](const auto& x) { return std::vector<U>(x.begin(), x.end()); };
      const auto wide_to = [](const auto& x) { return std::vector<Wide<U>>(x.begin(), x.end()); };
      return {to(q),          to(k),          to(target),    to(dout),         wide_to(lr),
              wide_to(scale), wide_to(gamma), wide_to(beta), wide_to(weights), wide_to(dweights)};
    }
  };

  /// Every term matters: pre-activations of order 1, steps that change the weights, gradients of weights that
  /// count.
  static Inputs<bf16> inputs_of(const MlpCase& c, std::uint64_t seed) {
    Rng rng(seed);
    Inputs<bf16> in;
    for (auto* x : {&in.q, &in.k, &in.target, &in.dout}) *x = rounded(normal(c.rows() * F, 1, 0, rng));
    in.lr = normal(c.rows(), 1, 0, rng);
    for (float& x : in.lr) x = 2 / static_cast<float>(F) / (1 + std::exp(-x));
    in.scale = normal(c.mini_batch, 0.2, 1, rng);
    for (Index t = 0; t < c.mini_batch; ++t) in.scale[t] *= 2 / std::sqrt(static_cast<float>(t + 1));
    in.scale[3] = in.scale[7] = 0;
    in.gamma = normal(c.heads * F, 0.2, 1, rng), in.beta = normal(c.heads * F, 0.2, 0, rng);
    for (Index i = 0; i < c.batch * c.heads; ++i) {
      for (auto* to : {&in.weights, &in.dweights}) {
        const double size = to == &in.weights ? 1 : 4;
        for (Index l = 0; l < 2; ++l) {
          const double deviation = size / std::sqrt(static_cast<double>(model.in(l)));
          for (const float x : normal(model.in(l)*model.out(l), deviation, 0, rng)) to->push_back(x);
          for (const float x : normal(model.out(l), 0.2 * size, 0, rng)) to->push_back(x);
        }
      }
    }
    return in;
  }

  static Index groups_of(const MlpCase& c, Index group) {
    return (c.steps + group * c.mini_batch - 1) / (group * c.mini_batch);
  }

  template <class T>
  static TttScan<T, Wide<T>> scan_of(const MlpCase& c, const Inputs<T>& in, Wide<T>* checkpoints,
                                     Index group) {
    return {model,           c.batch,        c.steps,          c.heads,       c.mini_batch,
            in.q.data(),     in.k.data(),    in.target.data(), in.lr.data(),  in.scale.data(),
            in.gamma.data(), in.beta.data(), checkpoints,      Wide<T>(1e-6), group};
  }

  static Results composed(const MlpCase& c, const Inputs<double>& in, bool backward) {
    Cpu<double> be;
    const auto zeros = [](Index n) { return std::vector<double>(static_cast<std::size_t>(n)); };
    auto checkpoints = zeros(groups_of(c, 1) * c.batch * c.heads * model.size());
    const auto scan = scan_of(c, in, checkpoints.data(), 1);
    auto weights = in.weights, gradients = zeros(static_cast<Index>(weights.size())),
         out = zeros(c.rows() * F);
    be.rows(c.batch * c.heads, TttForward<double, double>{scan, weights.data(), gradients.data(), out.data()},
            TttForward<double, double>::scratch(model, c.mini_batch) * 8, c.steps * model.size());
    Results r{{"out", out}, {"weights", weights}, {"gradients", gradients}};
    if (!backward) return r;
    auto dq = out, dk = out, dtarget = out, dlr = zeros(c.rows()), dweights = in.dweights;
    auto dscale = zeros(c.batch * c.heads * c.mini_batch), dgamma = zeros(c.batch * c.heads * F),
         dbeta = dgamma;
    be.rows(
        c.batch * c.heads,
        TttBackward<double, double>{scan, in.dout.data(), dq.data(), dk.data(), dtarget.data(), dlr.data(),
                                    dscale.data(), dgamma.data(), dbeta.data(), dweights.data()},
        TttBackward<double, double>::scratch(model, c.mini_batch) * 8, c.steps * model.size());
    for (auto& [name, x] : {std::pair{"dq", dq},
                            {"dk", dk},
                            {"dtarget", dtarget},
                            {"dlr", dlr},
                            {"dgamma", dgamma},
                            {"dbeta", dbeta},
                            {"dweights", dweights}})
      r.emplace_back(name, x);
    add_scales(r, dscale, c.mini_batch);
    return r;
  }

  /// On the GPU; what the scans overwrite holds NaN before.
  template <Index C>
  static Results fused(Cuda<bf16>& be, const MlpCase& c, const Inputs<bf16>& in, bool backward) {
    const auto scope = be.scope();
    const auto sent = [&]<class T>(const std::vector<T>& x) {
      const auto to = be.make<T, dyn>(static_cast<Index>(x.size()));
      be.to_device(x.data(), to.data(), to.size());
      return to.data();
    };
    const auto filled = [&](auto value, Index n) {
      return sent(std::vector(static_cast<std::size_t>(n), value));
    };
    const auto fetched = [&]<class T>(const T* x, Index n) {
      std::vector<T> to(static_cast<std::size_t>(n));
      be.to_host(x, to.data(), n);
      return widened(to);
    };
    const Index n = c.rows() * F, heads = c.batch * c.heads, size = heads * model.size();
    TttScan<bf16, float> scan = scan_of(c, in, filled(NAN, groups_of(c, 16) * size), 16);
    scan.q = sent(in.q), scan.k = sent(in.k), scan.target = sent(in.target), scan.lr = sent(in.lr);
    scan.scale = sent(in.scale), scan.gamma = sent(in.gamma), scan.beta = sent(in.beta);
    float *weights = sent(in.weights), *gradients = filled(NAN, size);
    bf16* out = filled(bf16(NAN), n);
    be.ttt_forward<F, hidden, 2, C>(TttForward<bf16, float>{scan, weights, gradients, out});
    Results r{{"out", fetched(out, n)},
              {"weights", fetched(weights, size)},
              {"gradients", fetched(gradients, size)}};
    if (!backward) return r;
    bf16 *dq = filled(bf16(NAN), n), *dk = filled(bf16(NAN), n), *dtarget = filled(bf16(NAN), n);
    float *dlr = filled(NAN, c.rows()), *dscale = filled(0.f, heads * C), *dgamma = filled(0.f, heads * F),
          *dbeta = filled(0.f, heads * F), *dweights = sent(in.dweights);
    be.ttt_backward<F, hidden, 2, C>(
        TttBackward<bf16, float>{scan, sent(in.dout), dq, dk, dtarget, dlr, dscale, dgamma, dbeta, dweights});
    r.emplace_back("dq", fetched(dq, n)), r.emplace_back("dk", fetched(dk, n));
    r.emplace_back("dtarget", fetched(dtarget, n)), r.emplace_back("dlr", fetched(dlr, c.rows()));
    r.emplace_back("dgamma", fetched(dgamma, heads * F)), r.emplace_back("dbeta", fetched(dbeta, heads * F));
    r.emplace_back("dweights", fetched(dweights, size));
    add_scales(r, fetched(dscale, heads * C), C);
    return r;
  }

  /// How far each result moves when the inputs move by a rounding's error: 2^-9 / sqrt(3) of each number. The
  /// largest of four trials, as some results are few numbers.
  static std::vector<double> movements(const MlpCase& c, const Inputs<double>& in, const Results& expected) {
    std::vector<double> most(expected.size());
    for (std::uint64_t seed = 100; seed < 104; ++seed) {
      Rng rng(seed);
      Inputs<double> moved = in;
      for (auto* x : {&moved.q, &moved.k, &moved.target, &moved.dout, &moved.weights, &moved.dweights}) {
        for (double& e : *x) e *= 1 + 0x1p-9 / std::sqrt(3.0) * rng.normal();
      }
      const Results there = composed(c, moved, true);
      for (std::size_t i = 0; i < most.size(); ++i)
        most[i] = std::max(most[i], distance(there[i].second, expected[i].second));
    }
    return most;
  }

  template <Index C>
  static void hold(MlpCase c) {
    c.mini_batch = C;
    CAPTURE(c.batch, c.steps, c.heads, C);
    Cuda<bf16> be;
    const Inputs<bf16> in = inputs_of(c, 1);
    const Results expected = composed(c, in.template as<double>(), true), found = fused<C>(be, c, in, true);
    const std::vector<double> movement = movements(c, in.template as<double>(), expected);
    for (std::size_t i = 0; i < found.size(); ++i) {
      CAPTURE(found[i].first);
      const double times = found[i].first == last_scales ? 9 : 3;
      CHECK(distance(found[i].second, expected[i].second) <= times * movement[i]);
    }
    CHECK(fused<C>(be, c, in, true) == found);  // the same bits
  }

  /// What comes after step `at` changes; what lies before keeps its bits, and the rest does not.
  template <Index C>
  static void hold_to_causality(MlpCase c, Index at) {
    c.mini_batch = C;
    CAPTURE(c.steps, C, at);
    Cuda<bf16> be;
    Inputs<bf16> in = inputs_of(c, 1);
    const Inputs<bf16> other = inputs_of(c, 2);
    const auto before = fused<C>(be, c, in, false)[0].second;
    const Index row = c.heads * F;
    for (Index i = 0; i < c.rows() * F; ++i) {
      if (i / row % c.steps >= at) in.q[i] = other.q[i], in.k[i] = other.k[i], in.target[i] = other.target[i];
    }
    for (Index i = 0; i < c.rows(); ++i) {
      if (i / c.heads % c.steps >= at) in.lr[i] = other.lr[i];
    }
    const auto after = fused<C>(be, c, in, false)[0].second;
    bool past = true, future = true;
    for (Index t = 0; t < c.batch * c.steps; ++t) {
      const bool equal = std::equal(&before[t * row], &before[t * row] + row, &after[t * row]);
      (t % c.steps < at ? past : future) &= t % c.steps < at ? equal : !equal;
    }
    CHECK(past);
    CHECK(future);
  }

  /// A session's numbers do not depend on what else is in the batch.
  template <Index C>
  static void hold_to_batches(MlpCase c) {
    c.mini_batch = C;
    CAPTURE(c.batch, c.steps, c.heads, C);
    Cuda<bf16> be;
    MlpCase one = c;
    one.batch = 1;
    const Inputs<bf16> in = inputs_of(c, 1);
    Inputs<bf16> first = in;
    for (auto* x : {&first.q, &first.k, &first.target, &first.dout}) x->resize(one.rows() * F);
    first.lr.resize(one.rows());
    for (auto* x : {&first.weights, &first.dweights}) x->resize(one.heads * model.size());
    const Results all = fused<C>(be, c, in, true), alone = fused<C>(be, one, first, true);
    for (std::size_t i = 0; i < all.size(); ++i) {
      CAPTURE(all[i].first);
      const auto& a = alone[i].second;
      CHECK(all[i].second.size() == 3 * a.size());
      CHECK(std::equal(a.begin(), a.end(), all[i].second.begin()));
    }
  }
};

}  // namespace mttt::testing
