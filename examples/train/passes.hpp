// What a training asks of the model itself. Where that takes a minute to compile, in a file of its own: one that
// includes passes_define.hpp and instantiates Passes; else the file that has the training includes it too.
#pragma once

#include <vector>

#include "../ranks.hpp"
#include "mttt/lm/probes.hpp"
#include "mttt/train/moshi_loss.hpp"

/// T: what the model stores. In bf16 it reads rounded copies of weights that are trained in float32.
template <mttt::MoshiConfig C, mttt::StorageType T>
struct Passes {
  using B = Device<T>;
  using Model = mttt::Moshi<C, B>;
  using P = typename Model::Params;
  using M = typename mttt::Moshi<C, Device<mttt::Wide<T>>>::Params;
  using Codes = mttt::Streams<const std::int32_t>;

  /// moshi_loss.
  static mttt::MoshiLoss loss(B& be, const P& params, Codes codes, const mttt::LossConfig& weights, M& grad,
                              const mttt::MoshiSegment<Model>& segment, const Ranks& ranks,
                              std::vector<double>* by_stream);
  /// Of the first session.
  static std::vector<mttt::InnerLosses> inner_losses(B& be, const P& params, Codes codes,
                                                     const mttt::MoshiSegment<Model>& segment);
};
