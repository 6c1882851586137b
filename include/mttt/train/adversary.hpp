// Adversary: a discriminator in training beside the codec that it judges.
//
// A pass adds its gradient to that of the codec's reply and keeps the discriminator's own; after the passes of
// a step, update() is one step of the discriminator's AdamW. What it judges of each pass, `samples` of every
// segment from a place that is drawn, depends on the seed and the pass alone: with trainer() saved and loaded
// by save_training and load_training, a training resumes with its bits.
//
// Formula: see train/discriminator.hpp and train/adamw.hpp; the learning rate follows the one-cycle schedule of
//          the steps that are left from `from_step` on. The discriminator learns in every `every`-th step.
//          With r the gradient of the codec's own losses by the reply, a that of the two here, both in what is judged:
//            dy = r + share / (1 - share) |r| / |a| a.
//          A discriminator that learns gets ever steeper; so balanced, it cannot drown the other losses.
// Shapes:  x, y, dy (B, S, 1).
// Units:   samples, steps.
// Errors:  those of SpectralDiscriminator and Trainer.
// Not supported: several processes.
// Source:  "High fidelity neural audio compression" (2022), section 4: Adam with betas 0.5 and 0.9, 3e-4; section
//          3.4 for the balance, there by averages over passes, here by each alone, which has no state to save.
#pragma once

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/nn/total.hpp"
#include "mttt/train/discriminator.hpp"
#include "mttt/train/trainer.hpp"

namespace mttt {

struct AdversaryOptions {
  double adversarial = 0, features = 0;  // weights in the codec's loss; 0 and 0: no adversary
  double share = 0.5;                    // of the gradient by the reply, below 1; 0: as the weights have it
  std::int64_t from_step = 0;
  int every = 1;
  double lr = 3e-4;
  AdamWOptions adam = {.beta1 = 0.5, .beta2 = 0.9, .weight_decay = 0};
  Index samples = 0;  // of each segment; 0: all
  std::int64_t max_steps = 1000;
  int num_microbatches = 1;
  std::uint64_t seed = 0;

  bool wanted() const { return adversarial > 0 || features > 0; }
};

/// Where none is.
struct NoAdversary {};

namespace detail {

/// Part p of the squares of two gradients, (2, count).
template <class A>
struct SquaresOfBoth {
  static constexpr Index part = 4096;
  const A *codec, *judged;
  double* parts;
  Index n, count;
  template <class Team>
  MTTT_HD void operator()(Team team, Index p) const {
    const Index first = p * part, length = part < n - first ? part : n - first;
    for (int which = 0; which < 2; ++which) {
      const A* x = (which == 0 ? codec : judged) + first;
      const double sum = team.template sum<double>(
          length, [=](Index i) { return static_cast<double>(x[i]) * static_cast<double>(x[i]); });
      if (team.leader()) parts[which * count + p] = sum;
    }
  }
};

/// codec += factor sqrt(squares[0] / squares[1]) judged
template <class A>
struct AddBalanced {
  A* codec;
  const A* judged;
  const double* squares;
  double factor;
  MTTT_HD void operator()(Index i) const {
    if (squares[1] > 0) codec[i] += static_cast<A>(factor * std::sqrt(squares[0] / squares[1])) * judged[i];
  }
};

/// dy (B, S) += share / (1 - share) |dy| / |judged| judged, where `judged` is 0 but in `part` of each segment.
template <class B, class A>
void add_balanced(B& be, Tensor<A, dyn, dyn> dy, const A* judged, double part, double share) {
  using Squares = SquaresOfBoth<A>;
  const Index n = dy.size(), count = (n + Squares::part - 1) / Squares::part;
  const auto parts = be.template make<double, 2, dyn>(count);
  auto* squares = be.template make<double, 2>().data();
  be.fill(squares, 2, 0.0);
  be.rows(count, Squares{dy.data(), judged, parts.data(), n, count}, 0, Squares::part);
  for (int which = 0; which < 2; ++which)
    add_total(be, parts.data() + which * count, count, which == 0 ? part : 1.0, squares + which);
  be.for_each(n, AddBalanced<A>{dy.data(), judged, squares, share / (1 - share)});
}

}  // namespace detail

/// `B`: what holds the discriminator's activations; its weights are in the type to compute in.
template <DiscriminatorConfig C, class B>
class Adversary {
 public:
  using A = typename B::Accum;
  using Full = decltype(std::declval<B&>().template as<A>());
  using Discriminator = SpectralDiscriminator<C, B>;
  using Params = typename Discriminator::Params;

  template <class Any>
  Adversary(Any& be, const AdversaryOptions& options)
      : be_(be.template as<typename B::Scalar>()),
        full_(be.template as<A>()),
        options_(options),
        params_(full_),
        grad_(full_),
        bases_(be_),
        trainer_(full_, params_, train_options(options)) {
    Cpu<A> host;
    Store<typename SpectralDiscriminator<C, Cpu<A>>::Params, Cpu<A>> start(host);
    Rng rng(options.seed ^ draws);
    SpectralDiscriminator<C, Cpu<A>>::init(*start, rng);
    upload(full_, start, params_);
  }

  const AdversaryOptions& options() const { return options_; }
  Full& full() { return full_; }  // of its trainer
  auto& trainer() { return trainer_; }
  const auto& trainer() const { return trainer_; }

  /// Adds the weighted gradient of the codec's losses to dy, and the discriminator's to its own.
  AdversaryLoss operator()(Tensor<const A, dyn, dyn> x, Tensor<const A, dyn, dyn> y, Tensor<A, dyn, dyn> dy,
                           std::int64_t pass) {
    const auto scope = be_.scope();
    const Index samples = x.extent(1),
                judged = options_.samples > 0 ? std::min(options_.samples, samples) : samples;
    Rng rng(options_.seed ^ draws, static_cast<std::uint64_t>(pass));
    const auto first = static_cast<Index>(rng.below(static_cast<std::uint64_t>(samples - judged + 1)));
    Tensor<A, dyn, dyn> judgement = dy;  // where the gradient goes
    if (options_.share > 0) {
      judgement = be_.template make<A, dyn, dyn>(x.extent(0), samples);
      be_.fill(judgement.data(), judgement.size(), A(0));
    }
    auto* sums = be_.template make<typename Discriminator::Sums, 1>().data();
    be_.fill(sums, 1, typename Discriminator::Sums{});
    Discriminator::queue(be_, *params_, bases_, {x.data() + first, x.extent(0), judged, samples},
                         {y.data() + first, x.extent(0), judged, samples},
                         {1.0 / options_.num_microbatches, options_.adversarial, options_.features}, sums,
                         learns(pass) ? &*grad_ : nullptr, judgement.data() + first);
    if (options_.share > 0)
      detail::add_balanced(be_, dy, static_cast<const A*>(judgement.data()),
                           static_cast<double>(judged) / static_cast<double>(samples), options_.share);
    typename Discriminator::Sums host;
    be_.to_host(sums, &host, Index{1});
    const AdversaryLoss loss = Discriminator::losses(host, Discriminator::scales_of(judged));
    if (learns(pass)) loss_ += loss.discriminator / options_.num_microbatches;
    return loss;
  }

  /// Whether it learns in the step of this pass.
  bool learns(std::int64_t pass) const { return pass / options_.num_microbatches % options_.every == 0; }
  /// After the passes of a step in which it learns.
  StepReport update() {
    const double loss = std::exchange(loss_, 0.0);
    return trainer_.step([&](std::int64_t, Params&) {
      full_.copy(grad_.data(), trainer_.grad.data(), grad_.bytes());
      full_.fill(grad_.data(), grad_.bytes(), std::byte{0});
      return MicroBatch{loss, 0};
    });
  }

 private:
  static TrainOptions train_options(const AdversaryOptions& o) {
    return {.max_steps = std::max<std::int64_t>(1, (o.max_steps - o.from_step) / o.every),
            .lr = o.lr,
            .adam = o.adam,
            .max_norm = 10,  // of no use but where something goes wrong
            .seed = o.seed};
  }
  static constexpr std::uint64_t draws = 0x61647665;  // apart from others of the same seed

  B be_;
  Full full_;
  AdversaryOptions options_;
  Store<Params, Full> params_, grad_;
  typename Discriminator::Bases bases_;
  Trainer<Params, Full> trainer_;
  double loss_ = 0;
};

}  // namespace mttt
