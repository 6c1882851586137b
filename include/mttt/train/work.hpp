// What a training step multiplies, by count, and how fast products are here: the share of the peak.
//
// Formula: for F frames and a weight that frames are multiplied with (all but embeddings): forward 2 F; backward
//          to the inputs 2 F where something trains in this layer of the transformer or one before it, or behind
//          the transformer; gradient of the weight 2 F where it trains. Attention: 4 x keys x width x F a layer forward, 8
//          backward, keys being half the frames of a segment that the window holds, else the window. Layers that
//          are recomputed run forward a second time: counted apart, as work and not as use.
// Shapes:  none.
// Units:   FLOPs; FLOPs a second.
// Errors:  none.
// Not supported: the inner loops of TTT layers: they are not counted.
// Source:  none.
#pragma once

#include <algorithm>
#include <chrono>
#include <string_view>
#include <vector>

#include "mttt/lm/gates.hpp"
#include "mttt/lm/moshi.hpp"
#include "mttt/train/param_groups.hpp"

namespace mttt {

/// What a step is for, and what recomputing adds.
struct TrainWork {
  double use = 0, again = 0;
};

template <MoshiConfig C, class P>
TrainWork train_work(const P& params, const std::vector<ParamGroup>& groups, Index batch, Index frames) {
  const double n = static_cast<double>(batch * frames);
  Index first = C.temporal.num_layers;  // the first layer of the transformer in which something trains
  std::size_t number = 0;
  for_each_tensor(
      [&](std::string_view name, const auto&) {
        if (groups[number++].frozen) return;
        first = std::min(first, name.starts_with("transformer.") ? detail::layer_in(name)
                                : name.find("emb") != name.npos  ? Index{0}
                                                                 : first);
      },
      params);
  TrainWork work;
  number = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        const bool trains = !groups[number++].frozen;
        if (t.rank < 2 || name.find("emb") != name.npos) return;
        const double product = 2 * n * static_cast<double>(t.size());
        const bool in_reach = !name.starts_with("transformer.") || detail::layer_in(name) >= first;
        const bool recomputed = (C.temporal.recompute && name.starts_with("transformer.")) ||
                                (C.depformer.recompute && name.starts_with("depformer.layers."));
        work.use += product * (1 + in_reach + trains);
        if (in_reach && recomputed) work.again += product;
      },
      params);
  const double keys = C.temporal.context < frames ? static_cast<double>(C.temporal.context)
                                                  : 0.5 * static_cast<double>(frames + 1);
  const auto attention = [&](double count, Index width, Index layers) {
    return 4 * n * count * static_cast<double>(width * layers);
  };
  const double whole = attention(keys, C.temporal.dim, C.temporal.num_layers),
               reached = attention(keys, C.temporal.dim, C.temporal.num_layers - first),
               depth = attention(0.5 * static_cast<double>((C.dep_q + 1) * C.dep_q), C.depformer.dim,
                                 C.depformer.num_layers);
  work.use += whole + 2 * reached + 3 * depth;
  if (C.temporal.recompute) work.again += reached;
  if (C.depformer.recompute) work.again += depth;
  return work;
}

/// What one product of `size` x `size` numbers of the backend reaches, the best of three.
template <class B>
double product_peak(B& be, Index size) {
  using T = typename B::Scalar;
  const auto scope = be.scope();
  const auto make = [&] { return be.template make<T, dyn, dyn>(size, size); };
  const auto a = make(), b = make(), c = make();
  for (const auto& factor : {a, b}) be.fill(factor.data(), factor.size(), static_cast<T>(0.5));
  const auto finish = [&] {
    if constexpr (requires { be.synchronize(); }) be.synchronize();
  };
  double best = 0;
  for (int i = 0; i < 4; ++i) {  // the first one warms up
    finish();
    const auto start = std::chrono::steady_clock::now();
    be.matmul(Matrix<const T>(a.matrix()), Matrix<const T>(b.matrix()).t(), c.matrix());
    finish();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const double n = static_cast<double>(size);
    if (i > 0) best = std::max(best, 2 * n * n * n / took.count());
  }
  return best;
}

}  // namespace mttt
