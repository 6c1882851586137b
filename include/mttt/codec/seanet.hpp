// SEANet: the convolutional encoder (samples to latent) and decoder (latent to samples) of Mimi.
//
// Formula: encoder  conv; for every ratio, last first: residual blocks, ELU, conv of stride `ratio` that
//                   doubles the channels; ELU, conv.
//          decoder  the mirror image with transposed convolutions, ratios first to last.
//          residual block  x + conv_1(elu(conv_k(elu(x)))) with dilation_base^j in the j-th block of a stage.
// Shapes:  samples (B, T * hop, channels), latent (B, T, dimension), hop = product of the ratios.
//          Parameters are named "model.<index>...." with the indices of torch.nn.Sequential, ELUs counted.
// Units:   samples.
// Errors:  Error when the encoder is given a number of samples that is no multiple of hop.
// Not supported: other activations, norms, paddings than zeros, learned shortcuts, final activations.
// Source:  kyutai-labs/moshi modules/seanet.py `SEANetEncoder`, `SEANetDecoder`, `SEANetResnetBlock`.
#pragma once

#include "mttt/codec/conv_transpose1d.hpp"
#include "mttt/nn/activation.hpp"
#include "mttt/nn/named.hpp"
#include "mttt/nn/sequential.hpp"

namespace mttt {

struct SeanetConfig {
  Index channels = 1, dimension = 512, n_filters = 64, n_residual_layers = 1;
  Index kernel_size = 7, residual_kernel_size = 3, last_kernel_size = 3;
  std::array<Index, 6> ratios{8, 6, 5, 4};  // in the decoder's order; the first 0 ends the list
  Index dilation_base = 2, compress = 2;

  constexpr Index stages() const {
    Index n = 0;
    while (n < static_cast<Index>(ratios.size()) && ratios[static_cast<std::size_t>(n)] > 0) ++n;
    return n;
  }
  constexpr Index ratio(Index stage) const { return ratios[static_cast<std::size_t>(stage)]; }
  /// Samples a latent step.
  constexpr Index hop() const {
    Index product = 1;
    for (Index i = 0; i < stages(); ++i) product *= ratio(i);
    return product;
  }
  /// Channels after `doublings` of them.
  constexpr Index width(Index doublings) const { return n_filters << doublings; }
  constexpr Index dilation(Index residual_layer) const {
    Index d = 1;
    for (Index j = 0; j < residual_layer; ++j) d *= dilation_base;
    return d;
  }
  /// Entries of the list of layers, ELUs counted.
  constexpr Index layers() const { return 3 + stages() * (n_residual_layers + 2); }
};

/// x + block(x); the parameters are named "block.1.conv.conv.weight", "block.3.conv.conv.weight", ...
template <SeanetConfig C, Index dim, Index layer, class B>
using SeanetResidual =
    Named<"block",
          Residual<Sequential<Activation<Elu, dim, B>,
                              Conv1d<Conv1dConfig{.in = dim,
                                                  .out = dim / C.compress,
                                                  .kernel = C.residual_kernel_size,
                                                  .dilation = C.dilation(layer)},
                                     B>,
                              Activation<Elu, dim / C.compress, B>,
                              Conv1d<Conv1dConfig{.in = dim / C.compress, .out = dim, .kernel = 1}, B>>>>;

namespace detail {

template <class Block>
struct TypeOf {
  using type = Block;
};

/// The encoder's layer number i.
template <SeanetConfig C, class B, Index i>
consteval auto seanet_encoder_layer() {
  constexpr Index per_stage = C.n_residual_layers + 2, stage = (i - 1) / per_stage, k = (i - 1) % per_stage;
  if constexpr (i == 0) {
    return TypeOf<Conv1d<Conv1dConfig{.in = C.channels, .out = C.n_filters, .kernel = C.kernel_size}, B>>{};
  } else if constexpr (i == C.layers() - 1) {
    return TypeOf<Conv1d<
        Conv1dConfig{.in = C.width(C.stages()), .out = C.dimension, .kernel = C.last_kernel_size}, B>>{};
  } else if constexpr (i == C.layers() - 2 || k == C.n_residual_layers) {
    return TypeOf<Activation<Elu, C.width(stage), B>>{};
  } else if constexpr (k < C.n_residual_layers) {
    return TypeOf<SeanetResidual<C, C.width(stage), k, B>>{};
  } else {
    constexpr Index ratio = C.ratio(C.stages() - 1 - stage);
    return TypeOf<Conv1d<
        Conv1dConfig{.in = C.width(stage), .out = C.width(stage + 1), .kernel = 2 * ratio, .stride = ratio},
        B>>{};
  }
}

/// The decoder's layer number i.
template <SeanetConfig C, class B, Index i>
consteval auto seanet_decoder_layer() {
  constexpr Index per_stage = C.n_residual_layers + 2, stage = (i - 1) / per_stage, k = (i - 1) % per_stage;
  constexpr Index doublings = C.stages() - stage;  // before the stage's transposed convolution
  if constexpr (i == 0) {
    return TypeOf<
        Conv1d<Conv1dConfig{.in = C.dimension, .out = C.width(C.stages()), .kernel = C.kernel_size}, B>>{};
  } else if constexpr (i == C.layers() - 1) {
    return TypeOf<
        Conv1d<Conv1dConfig{.in = C.n_filters, .out = C.channels, .kernel = C.last_kernel_size}, B>>{};
  } else if constexpr (i == C.layers() - 2 || k == 0) {
    return TypeOf<Activation<Elu, C.width(doublings), B>>{};
  } else if constexpr (k == 1) {
    constexpr Index ratio = C.ratio(stage);
    return TypeOf<ConvTranspose1d<
        ConvTranspose1dConfig{
            .in = C.width(doublings), .out = C.width(doublings - 1), .kernel = 2 * ratio, .stride = ratio},
        B>>{};
  } else {
    return TypeOf<SeanetResidual<C, C.width(doublings - 1), k - 2, B>>{};
  }
}

template <SeanetConfig C, class B, std::size_t... I>
auto seanet_encoder(std::index_sequence<I...>)
    -> Sequential<typename decltype(seanet_encoder_layer<C, B, static_cast<Index>(I)>())::type...>;
template <SeanetConfig C, class B, std::size_t... I>
auto seanet_decoder(std::index_sequence<I...>)
    -> Sequential<typename decltype(seanet_decoder_layer<C, B, static_cast<Index>(I)>())::type...>;

}  // namespace detail

template <SeanetConfig C, class B>
using SeanetEncoder =
    Named<"model", decltype(detail::seanet_encoder<C, B>(std::make_index_sequence<C.layers()>{}))>;

template <SeanetConfig C, class B>
using SeanetDecoder =
    Named<"model", decltype(detail::seanet_decoder<C, B>(std::make_index_sequence<C.layers()>{}))>;

}  // namespace mttt
