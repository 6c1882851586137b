// What passes.hpp declares, for any configuration of the model.
#pragma once

#include "passes.hpp"

template <mttt::MoshiConfig C, mttt::StorageType T>
mttt::MoshiLoss Passes<C, T>::loss(B& be, const P& params, Codes codes, const mttt::LossConfig& weights,
                                   M& grad, const mttt::MoshiSegment<Model>& segment, const Ranks& ranks,
                                   std::vector<double>* by_stream) {
  return mttt::moshi_loss<Model>(be, params, codes, weights, &grad, segment, ranks, by_stream);
}

template <mttt::MoshiConfig C, mttt::StorageType T>
std::vector<mttt::InnerLosses> Passes<C, T>::inner_losses(B& be, const P& params, Codes codes,
                                                          const mttt::MoshiSegment<Model>& segment) {
  return mttt::inner_losses<Model>(be, params, codes, segment.carry, segment.before, 1, segment.hooks);
}
