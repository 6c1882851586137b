// The training loop: accumulate, clip, AdamW, schedule, report, checkpoint, stop in good order.
//
// One step asks for `num_microbatches` losses and gradients, through
//   MicroBatch loss_and_gradient(std::int64_t index, M& grad)     // adds to grad
// where `index` counts the micro-batches of the whole training: data that depends on it alone resumes well.
//
// Mixed precision: on a backend that stores bf16 the model reads bf16 parameters P, while M, the same Params
// in float32, hold the gradient, the moments and the weights that are trained, whose rounded values P is
// given at every step. Elsewhere M is P and nothing exists twice.
//
// Parameters that do not train have neither gradient nor moments nor float32 originals, if the model's Params
// say that its backward pass leaves such gradients out (`static constexpr bool frozen_without_gradient`): then
// their data() is null in `grad`, in `adam` and, in mixed precision, in weights().
//
// Formula: gradient = mean over the micro-batches; then clip.hpp, schedule.hpp, adamw.hpp.
// Shapes:  those of the parameters.
// Units:   frames a second.
// Errors:  a loss or a gradient that is not finite stops the training before the parameters change.
// Not supported: loss scaling (bf16 has the exponents of float32); several machines.
// Source:  kyutai-labs/moshi-finetune, train.py.
#pragma once

#include <chrono>
#include <cmath>
#include <concepts>
#include <functional>
#include <string>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/train/adamw.hpp"
#include "mttt/train/clip.hpp"
#include "mttt/train/progress.hpp"
#include "mttt/train/schedule.hpp"

namespace mttt {

struct TrainOptions {
  std::int64_t max_steps = 1000;
  double lr = 1e-4;
  double pct_start = 0.05;
  AdamWOptions adam = {};
  double max_norm = 1;  // 0: no clipping
  int num_microbatches = 1;
  std::int64_t log_freq = 10;
  std::int64_t ckpt_freq = 0;  // 0: only at the end
  int num_ckpt_keep = 3;
  std::uint64_t seed = 0;
};

struct MicroBatch {
  double loss;
  Index frames;
};

/// What the loop calls and where it prints; all optional.
struct TrainHooks {
  /// At the first step, every log_freq steps, and at the last one.
  std::function<void(const StepReport&)> log = {};
  std::function<void()> checkpoint = {};  // every ckpt_freq steps and at the last one
  std::FILE* progress = stderr;           // null: silent
};

/// Everything that a checkpoint must hold for an exact resume: weights, adam, rng, micro_batches.
/// P: what the model reads; M: the same Params in the type to compute in.
template <class P, class B, class M = P>
class Trainer {
 public:
  Store<P, B>& params;
  std::vector<ParamGroup> groups;
  Store<M, B> grad;
  AdamW<M, B> adam;
  Rng rng;                         // for the program's own draws: data order, dropped words
  std::int64_t micro_batches = 0;  // done so far: the position in the data
  TrainOptions options;
  std::function<double(std::int64_t)> schedule;  // replace it at will

  Trainer(B& be, Store<P, B>& parameters, const TrainOptions& train_options,
          const std::vector<GroupRule>& rules = {})
      : params(parameters),
        groups(make_groups(*parameters, train_options.adam.weight_decay, rules)),
        grad(be, 1, held(groups)),
        adam(be, held(groups)),
        rng(train_options.seed),
        options(train_options),
        schedule(OneCycle({train_options.max_steps, train_options.lr, train_options.pct_start})),
        be_(be),
        master_(be, held(groups)),
        table_(be, parameters, grad) {
    if constexpr (mixed) table_.widen(be, params, weights());
    if (options.num_microbatches < 1 || options.log_freq < 1 || options.ckpt_freq < 0) {
      fail("training options", "num_microbatches or log_freq below 1, or a negative ckpt_freq",
           "at least one micro-batch and one step between two reports", "correct the training options");
    }
  }

  static constexpr bool mixed = !std::same_as<P, M>;

  /// The weights that are trained: params themselves, or in mixed precision their float32 originals. Whoever
  /// changes these calls weights_changed() then, so that the model reads them.
  Store<M, B>& weights() {
    if constexpr (mixed) {
      return master_.store;
    } else {
      return params;
    }
  }
  const Store<M, B>& weights() const { return const_cast<Trainer*>(this)->weights(); }
  void weights_changed() {
    if constexpr (mixed) table_.round(be_, weights(), params);
  }

  /// One step of the optimiser; params change last, after everything was checked.
  template <class F>
  requires std::is_invocable_r_v<MicroBatch, F&, std::int64_t, M&> StepReport step(F&& loss_and_gradient) {
    be_.fill(grad.data(), grad.bytes(),
             std::byte{0});  // AdamW could write the zeros, but they are as many bytes
    const double share = 1.0 / options.num_microbatches;
    StepReport report{};
    for (int i = 0; i < options.num_microbatches; ++i) {
      const MicroBatch done = loss_and_gradient(micro_batches + i, *grad);
      if (!std::isfinite(done.loss)) diverged(std::isnan(done.loss) ? "a loss of NaN" : "an infinite loss");
      report.loss += share * done.loss;
      frames_ += done.frames;
    }
    report.gradient_norm = gradient_norm(be_, table_, grad, groups, share);
    report.learning_rate = schedule(adam.step);
    adam.update(be_, table_, weights(), params, grad, groups, options.adam, report.learning_rate,
                share * clip_factor(report.gradient_norm, options.max_norm));
    micro_batches += options.num_microbatches;
    report.step = adam.step;
    report.max_steps = options.max_steps;
    return report;
  }

  /// Steps until max_steps or until a signal asks to stop; whether max_steps was reached.
  template <class F>
  bool run(F&& loss_and_gradient, const TrainHooks& hooks = {}) {
    const StopSignals stop;
    ProgressLine line(hooks.progress);
    const auto start = std::chrono::steady_clock::now();
    const std::int64_t first = adam.step;
    frames_ = 0;
    while (adam.step < options.max_steps) {
      StepReport report = step(loss_and_gradient);
      report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      report.frames_per_second = static_cast<double>(frames_) / std::max(report.seconds, 1e-9);
      report.seconds_left = report.seconds / static_cast<double>(adam.step - first) *
                            static_cast<double>(options.max_steps - adam.step);
      const bool last = adam.step >= options.max_steps || stop.requested();
      const bool logged = last || adam.step == 1 || adam.step % options.log_freq == 0;
      line.show(report, logged);
      if (logged && hooks.log) hooks.log(report);
      if (hooks.checkpoint && (last || (options.ckpt_freq > 0 && adam.step % options.ckpt_freq == 0)))
        hooks.checkpoint();
      if (last) break;
    }
    return adam.step >= options.max_steps;
  }

 private:
  /// The float32 originals, where there are any.
  struct Master {
    Store<M, B> store;
    Master(B& be, std::vector<bool> held) : store(be, 1, std::move(held)) {}
  };
  struct NoMaster {
    NoMaster(B&, const std::vector<bool>&) {}
  };
  static std::vector<bool> held(const std::vector<ParamGroup>& groups) {
    std::vector<bool> held;
    if constexpr (requires { requires M::frozen_without_gradient; }) {
      for (const auto& group : groups) held.push_back(!group.frozen);
    }
    return held;
  }

  [[noreturn]] void diverged(const char* found) const {
    fail("training step " + std::to_string(adam.step + 1), found, "a finite loss",
         "the parameters are still those of step " + std::to_string(adam.step) +
             "; resume from an earlier checkpoint with a lower learning rate");
  }

  B& be_;
  [[no_unique_address]] std::conditional_t<mixed, Master, NoMaster> master_;
  ChunkTable<P, B, M> table_;
  Index frames_ = 0;
};

}  // namespace mttt
