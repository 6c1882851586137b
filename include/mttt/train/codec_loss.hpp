// CodecTraining: the training loss of Mimi, with its gradient in one call, and the learning of its codebooks.
//
// Formula: y = decode(quantise(encode(x))); total = spectral * SpectralLoss(x, y) + waveform * mean |y - x|
//          + commitment * (rvq_training.hpp). SNR = 10 log10(sum x^2 / sum (y - x)^2).
//          What is drawn depends on the seed and the pass alone, so that a training resumes with its bits:
//          the number of codebooks, evenly from semantic_q to n_q (`dropout`, else all), and which sessions
//          are not quantised (each with probability `unquantised`). An adversary (train/adversary.hpp) adds
//          its two losses by its weights.
// Shapes:  pcm (B, S, 1), S a multiple of frame_size.
// Units:   samples within [-1, 1]; dB.
// Errors:  those of Mimi and SpectralLoss. A loss that is not finite leaves the codebooks as they were.
// Not supported: stereo codecs; storage in bf16; distillation of the semantic codebook.
// Source:  Defossez et al., "Moshi" (2024), section 3.3 (50% of the sequences are not quantised, quantiser
//          dropout); see the parts.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "mttt/codec/mimi.hpp"
#include "mttt/codec/rvq_training.hpp"
#include "mttt/train/adversary.hpp"
#include "mttt/train/spectral_loss.hpp"

namespace mttt {

struct CodecLossConfig {
  double spectral = 1, waveform = 1, commitment = 0.25;
  SpectralConfig spectra = {};
  bool dropout = true;
  double unquantised = 0.5;
  CodebookLearning codebooks = {};
  std::uint64_t seed = 0;
};

/// Each term without its weight; `codebooks` took part.
struct CodecLoss {
  double total, spectral, waveform, commitment, snr;
  Index codebooks;
  AdversaryLoss adversary = {};
};

namespace detail {

/// Parts of sum |y - x|, sum (y - x)^2 and sum x^2; dy += step * sign(y - x).
template <class T>
struct CompareSamples {
  const T *x, *y;
  T* dy;          // or null
  double* parts;  // (3, count)
  Index n, count;
  T step;
  static constexpr Index part = 1 << 12;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const Index first = p * part, length = part < n - first ? part : n - first;
    const T *from = x + first, *to = y + first;
    T* grad = dy == nullptr ? nullptr : dy + first;
    const T h = step;
    const double away = team.template sum<double>(length, [=](Index i) {
      const T d = to[i] - from[i];
      if (grad != nullptr) grad[i] += h * static_cast<T>((d > 0) - (d < 0));
      return static_cast<double>(std::abs(d));
    });
    const double error = team.template sum<double>(length, [=](Index i) {
      const double d = static_cast<double>(to[i]) - static_cast<double>(from[i]);
      return d * d;
    });
    const double signal = team.template sum<double>(
        length, [=](Index i) { return static_cast<double>(from[i]) * static_cast<double>(from[i]); });
    if (team.leader()) parts[p] = away, parts[count + p] = error, parts[2 * count + p] = signal;
  }
};

/// What the host fetches after a loss, all in one go.
struct CodecSums {
  double spectral, waveform, commitment, error, signal;
};

}  // namespace detail

/// `Codec` is a Mimi<C, B>. Holds what a training needs beside the parameters; it refers to the backend.
template <class Codec, class B>
class CodecTraining {
 public:
  using T = typename B::Scalar;
  using Params = typename Codec::Params;
  using Quantizer = RvqTraining<Codec::config.quantizer, B>;
  static_assert(Codec::channels == 1, "mttt: CodecTraining compares sounds of one channel");

  CodecTraining(B& be, CodecLossConfig config)
      : be_(be),
        config_(std::move(config)),
        spectra_(be, static_cast<double>(Codec::config.sample_rate), config_.spectra),
        books_(be),
        survey_(be) {}

  /// The loss of a pass; with `grad` its gradient is added there, and the codebooks of `params` learn. Then an
  /// Adversary, if one is given, takes part.
  template <class Adversary = NoAdversary>
  CodecLoss operator()(Params& params, Sequence<const T, 1> pcm, std::int64_t pass, Params* grad,
                       Adversary* adversary = nullptr) {
    const auto scope = be_.scope();
    const bool learns = grad != nullptr;
    const Index sessions = pcm.extent(0), frames = pcm.extent(1) / Codec::frame_size;
    const Index codebooks = learns ? draw_codebooks(pass) : Codec::n_q;
    const auto latent = make<Codec::dimension>(sessions, frames),
               decoded = make<Codec::dimension>(sessions, frames);
    const auto y = make<1>(sessions, pcm.extent(1));
    const auto codes = be_.template make<std::int32_t, dyn, dyn, dyn>(sessions, codebooks, frames);
    auto* sums = be_.template make<detail::CodecSums, 1>().data();
    be_.fill(sums, 1, detail::CodecSums{});

    Codec::derive(be_, params, *books_);
    typename Codec::ToLatent::Saved heard;
    typename Codec::FromLatent::Saved spoken;
    typename Quantizer::Saved quantised;
    Codec::ToLatent::forward(be_, params.to_latent, pcm, latent, heard);
    Quantizer::forward(be_, params.quantizer, *books_, latent,
                       learns ? draw_unquantised(sessions, pass) : Mask{}, codes, decoded, quantised,
                       &sums->commitment);
    Codec::FromLatent::forward(be_, params.from_latent, decoded, y, spoken);

    const auto dy = learns ? make<1>(sessions, pcm.extent(1)) : decltype(y){};
    if (learns) be_.fill(dy.data(), dy.size(), T(0));
    compare(pcm, y, dy, sums);
    AdversaryLoss judged;
    if constexpr (!std::same_as<Adversary, NoAdversary>) {
      if (learns && adversary != nullptr)
        judged = (*adversary)(flat(pcm), flat(Sequence<const T, 1>(y)), flat(dy), pass);
    }
    if (learns) {
      const auto ddecoded = make<Codec::dimension>(sessions, frames),
                 dlatent = make<Codec::dimension>(sessions, frames);
      const Sequence<T, 1> dpcm(nullptr, {sessions, pcm.extent(1), 1});  // nobody asks for it
      Codec::FromLatent::backward(be_, params.from_latent, spoken, dy, ddecoded, grad->from_latent);
      Quantizer::backward(be_, params.quantizer, quantised, ddecoded, dlatent, grad->quantizer,
                          config_.commitment);
      Codec::ToLatent::backward(be_, params.to_latent, heard, dlatent, dpcm, grad->to_latent);
    }
    CodecLoss loss = fetch(sums, codebooks);
    if constexpr (!std::same_as<Adversary, NoAdversary>) {
      if (learns && adversary != nullptr) {
        loss.adversary = judged;
        loss.total += adversary->options().adversarial * judged.adversarial +
                      adversary->options().features * judged.features;
      }
    }
    if (learns && std::isfinite(loss.total)) {
      Quantizer::learn(be_, params.quantizer, quantised, config_.codebooks, config_.seed,
                       static_cast<std::uint64_t>(pass), *survey_);
    }
    return loss;
  }

  /// Of every level, as the last pass that it took part in left it; counts of restarts begin anew.
  std::vector<CodebookUse> codebook_use() {
    std::vector<CodebookUse> use(static_cast<std::size_t>(Codec::n_q)), next;
    be_.to_host(survey_->use.data(), use.data(), Codec::n_q);
    next = use;
    for (CodebookUse& level : next) level.restarts = 0;
    be_.to_device(next.data(), survey_->use.data(), Codec::n_q);
    return use;
  }

 private:
  template <Index C>
  Sequence<T, C> make(Index sessions, Index steps) {
    return be_.template make<T, dyn, dyn, C>(sessions, steps);
  }
  template <class U>
  static Tensor<U, dyn, dyn> flat(Sequence<U, 1> sound) {
    return {sound.data(), {sound.extent(0), sound.extent(1)}};
  }
  static constexpr std::uint64_t draws = 0x636f646563;  // apart from those of restarted codes

  Index draw_codebooks(std::int64_t pass) const {
    constexpr Index least = Codec::config.quantizer.semantic_q;
    if (!config_.dropout) return Codec::n_q;
    Rng rng(config_.seed ^ draws, static_cast<std::uint64_t>(pass));
    return least + static_cast<Index>(rng.below(static_cast<std::uint64_t>(Codec::n_q - least + 1)));
  }
  Mask draw_unquantised(Index sessions, std::int64_t pass) {
    if (config_.unquantised <= 0) return {};
    std::vector<std::uint8_t> chosen(static_cast<std::size_t>(sessions));
    for (std::size_t b = 0; b < chosen.size(); ++b) {
      const PhiloxBlock random = philox(config_.seed ^ draws, static_cast<std::uint64_t>(pass), 1 + b);
      chosen[b] = uniform_from(random.word[0]) < config_.unquantised;
    }
    const auto mask = be_.template make<std::uint8_t, dyn>(sessions);
    be_.to_device(chosen.data(), mask.data(), sessions);
    return mask;
  }

  void compare(Sequence<const T, 1> x, Sequence<T, 1> y, Sequence<T, 1> dy, detail::CodecSums* sums) {
    using Compare = detail::CompareSamples<T>;
    const auto scope = be_.scope();
    const Index n = x.size(), count = (n + Compare::part - 1) / Compare::part;
    const auto parts = be_.template make<double, 3, dyn>(count);
    const double mean = 1 / static_cast<double>(n);
    be_.rows(count,
             Compare{x.data(), y.data(), dy.data(), parts.data(), n, count,
                     static_cast<T>(config_.waveform * mean)},
             0, 8 * Compare::part);
    add_total(be_, parts[0].data(), count, mean, &sums->waveform);
    add_total(be_, parts[1].data(), count, 1, &sums->error);
    add_total(be_, parts[2].data(), count, 1, &sums->signal);
    if (config_.spectral > 0)
      spectra_.queue(flat(x), flat(Sequence<const T, 1>(y)), config_.spectral, &sums->spectral, flat(dy));
  }

  CodecLoss fetch(const detail::CodecSums* sums, Index codebooks) {
    detail::CodecSums s;
    be_.to_host(sums, &s, Index{1});
    return {s.spectral + config_.waveform * s.waveform + config_.commitment * s.commitment,
            config_.spectral > 0 ? s.spectral / config_.spectral : s.spectral,
            s.waveform,
            s.commitment,
            10 * std::log10(s.signal / s.error),
            codebooks};
  }

  B& be_;
  CodecLossConfig config_;
  SpectralLoss<B> spectra_;
  Store<typename Codec::Codebooks, B> books_;
  Store<typename Quantizer::Survey, B> survey_;
};

}  // namespace mttt
