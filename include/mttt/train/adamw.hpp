// AdamW over the flat stores of a block's parameters.
//
// Formula: m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
//          p -= lr (wd p + (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)),  t = 1, 2, ...
// Shapes:  moments are of the parameters' own type; the step counter is part of the state.
// Units:   none.
// Errors:  groups of another model.
// Not supported: AMSGrad; moments in another type than the parameters.
// Source:  Loshchilov and Hutter, "Decoupled weight decay regularization", algorithm 2; torch.optim.AdamW.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "mttt/backend/backend.hpp"
#include "mttt/core/store.hpp"
#include "mttt/train/param_groups.hpp"

namespace mttt {

/// The defaults are those of moshi-finetune.
struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
};

namespace detail {

template <class T, class A>
struct AdamWStep {
  const T* grad;
  T *param, *m, *v;
  A scale, beta1, beta2, rate, correction2, eps, decay;  // rate = lr / (1 - b1^t), decay = 1 - lr wd
  MTTT_HD void operator()(Index i) const {
    const A g = scale * static_cast<A>(grad[i]);
    const A first = beta1 * static_cast<A>(m[i]) + (A(1) - beta1) * g;
    const A second = beta2 * static_cast<A>(v[i]) + (A(1) - beta2) * g * g;
    m[i] = static_cast<T>(first);
    v[i] = static_cast<T>(second);
    param[i] = static_cast<T>(decay * static_cast<A>(param[i]) -
                              rate * first / (std::sqrt(second / correction2) + eps));
  }
};

}  // namespace detail

template <class P, class B>
struct AdamW {
  Store<P, B> m, v;
  std::int64_t step = 0;

  explicit AdamW(B& be) : m(be), v(be) {}

  /// One step along grad_scale * grad, which clipping and accumulation use instead of a pass of their own.
  void update(B& be, P& params, const P& grad, const std::vector<ParamGroup>& groups,
              const AdamWOptions& options, double learning_rate, double grad_scale = 1) {
    using A = typename B::Accum;
    std::size_t tensors = 0, at = 0;
    for_each_tensor([&](std::string_view, const auto&) { ++tensors; }, params);
    if (groups.size() != tensors) {
      fail("AdamW", std::to_string(groups.size()) + " parameter groups", std::to_string(tensors),
           "call make_groups with the parameters of this model");
    }
    ++step;
    const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(step));
    const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(step));
    for_each_tensor(
        [&](std::string_view, auto& p, const auto& g, auto& first, auto& second) {
          using T = typename std::remove_cvref_t<decltype(p)>::value_type;
          const ParamGroup& group = groups[at++];
          if (group.frozen) return;
          const double lr = learning_rate * group.learning_rate;
          be.for_each(p.size(),
                      detail::AdamWStep<T, A>{g.data(), p.data(), first.data(), second.data(),
                                              static_cast<A>(grad_scale), static_cast<A>(options.beta1),
                                              static_cast<A>(options.beta2), static_cast<A>(lr / correction1),
                                              static_cast<A>(correction2), static_cast<A>(options.eps),
                                              static_cast<A>(1 - lr * group.weight_decay)});
        },
        params, grad, *m, *v);
  }
};

}  // namespace mttt
