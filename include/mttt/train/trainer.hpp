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
// Several ranks (train/ranks.hpp) train one model. Of every micro-batch each computes its own rows: the loss that
// it gives is its share, and the shares of all add up to the loss, as do the gradients. Moments and float32
// originals are shared out: a rank has those of whole chunks, of about as many elements as any other (ZeRO
// stage 1), changes these weights alone, and all get them. A backward pass that calls complete_from lets sums
// over the ranks go on beside it.
//
// Formula: gradient = mean over the micro-batches; then clip.hpp, schedule.hpp, adamw.hpp.
// Shapes:  those of the parameters.
// Units:   frames a second.
// Errors:  a loss or a gradient that is not finite stops the training before the parameters change.
//          A rank whose loss is not finite is the only one to know: the program then ends all.
// Not supported: loss scaling (bf16 has the exponents of float32); gradients and what the model reads shared out
//          over the ranks (ZeRO stages 2 and 3): every rank holds these whole.
// Source:  kyutai-labs/moshi-finetune, train.py; Rajbhandari et al. 2020 (arXiv 1910.02054).
#pragma once

#include <chrono>
#include <cmath>
#include <concepts>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/train/adamw.hpp"
#include "mttt/train/clip.hpp"
#include "mttt/train/progress.hpp"
#include "mttt/train/ranks.hpp"
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
  bool shard_optimizer = true;  // over several ranks; false: each has all moments and all float32 weights
  Index bucket = 1 << 23;       // elements of the gradient that several ranks sum at a time in backward
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
/// P: what the model reads; M: the same Params in the type to compute in; R: who trains it.
template <class P, class B, class M = P, class R = OneRank>
requires RanksOf<R, B>
class Trainer {
 public:
  Store<P, B>& params;
  std::vector<ParamGroup> groups;
  Store<M, B> grad;

 private:
  using A = typename B::Accum;
  [[no_unique_address]] R ranks_;
  const bool sharded_;
  ChunkTable<P, B, M> table_;

 public:
  AdamW<M, B> adam;
  Rng rng;                         // for the program's own draws: data order, dropped words
  std::int64_t micro_batches = 0;  // done so far: the position in the data
  TrainOptions options;
  std::function<double(std::int64_t)> schedule;  // replace it at will

  Trainer(B& be, Store<P, B>& parameters, const TrainOptions& train_options,
          const std::vector<GroupRule>& rules = {}, R ranks = {})
      : params(parameters),
        groups(make_groups(*parameters, train_options.adam.weight_decay, rules)),
        grad(be, 1, held(groups)),
        ranks_(ranks),
        sharded_(ranks.size() > 1 && train_options.shard_optimizer),
        table_(be, parameters, grad, sharded_ ? ranks.size() : 1),
        adam(be, held(groups), window().first, window().second),
        rng(train_options.seed),
        options(train_options),
        schedule(OneCycle({train_options.max_steps, train_options.lr, train_options.pct_start})),
        be_(be),
        master_(be, held(groups), window()) {
    if constexpr (mixed) table_.widen(be, params, weights(), own_chunks());
    for (const RankPart& part : table_.shares().chunks) {
      if (sharded_ && part.count == 0)
        fail("training with " + std::to_string(ranks.size()) + " ranks", "one that nothing is left for",
             "as many pieces of 16384 weights that train",
             "start fewer processes, or set shard_optimizer to false");
    }
    if (options.num_microbatches < 1 || options.log_freq < 1 || options.ckpt_freq < 0) {
      fail("training options", "num_microbatches or log_freq below 1, or a negative ckpt_freq",
           "at least one micro-batch and one step between two reports", "correct the training options");
    }
  }

  static constexpr bool mixed = !std::same_as<P, M>;

  const R& ranks() const { return ranks_; }
  /// What each rank has of the moments and, in mixed precision, of weights(): elements.
  const RankParts& shares() const { return table_.shares().trained; }

  /// The weights that are trained: params themselves, or in mixed precision their float32 originals, of which one
  /// of several ranks has but a window. Whoever changes these calls weights_changed() then, so that the model
  /// reads them.
  Store<M, B>& weights() {
    if constexpr (mixed) {
      return master_.store;
    } else {
      return params;
    }
  }
  const Store<M, B>& weights() const { return const_cast<Trainer*>(this)->weights(); }
  void weights_changed() {
    if constexpr (mixed) {
      table_.round(be_, weights(), params, own_chunks());
      send_params();
    }
  }

  /// f(store) with all of the weights, and what f leaves there is trained on from. All ranks call it, with an f
  /// that does the same. Between two steps; the gradient's memory may serve for it.
  template <class F>
  void edit_weights(F&& f) {
    auto& all = collected(weights());
    f(all);
    take(all, weights());
    if constexpr (mixed) table_.round(be_, all, params);
  }
  /// f(store) with all of the weights, to read. All ranks call it, between two steps.
  template <class F>
  decltype(auto) read_weights(F&& f) {
    return f(std::as_const(collected(weights())));
  }
  /// A store for all of weights() or of a moment, and what of it this rank keeps: to load a checkpoint.
  Store<M, B>& room_for(Store<M, B>& own) { return own.whole() ? own : grad; }
  void take(const Store<M, B>& all, Store<M, B>& own) {
    if (&all != &own) own.assign(be_, all);
  }

  /// For a backward pass, which goes through the parameters from the last to the first: the gradients of `first`
  /// and of all parameters behind it are complete.
  void complete_from(const void* first) {
    if (ranks_.size() == 1 || !last_micro_batch_ || first == nullptr) return;
    const Index from = static_cast<const A*>(first) - grad.template flat<A>().data();
    if (incomplete_ - from >= options.bucket) sum_gradient_from(from);
  }

  /// One step of the optimiser; params change last, after everything was checked.
  template <class F>
  requires std::is_invocable_r_v<MicroBatch, F&, std::int64_t, M&> StepReport step(F&& loss_and_gradient) {
    be_.fill(grad.data(), grad.bytes(),
             std::byte{0});  // AdamW could write the zeros, but they are as many bytes
    const double share = 1.0 / options.num_microbatches;
    incomplete_ = grad.bytes() / static_cast<Index>(sizeof(A));
    StepReport report{};
    Index frames = 0;
    for (int i = 0; i < options.num_microbatches; ++i) {
      last_micro_batch_ = i + 1 == options.num_microbatches;
      const MicroBatch done = loss_and_gradient(micro_batches + i, *grad);
      if (!std::isfinite(done.loss)) diverged(std::isnan(done.loss) ? "a loss of NaN" : "an infinite loss");
      report.loss += share * done.loss;
      frames += done.frames;
    }
    if (ranks_.size() > 1) {
      report.loss = ranks_.sum(report.loss);
      sum_gradient_from(0);
      ranks_.wait(be_);
    }
    frames_ += ranks_.sum(static_cast<double>(frames));
    report.gradient_norm = gradient_norm(be_, table_, grad, groups, share, ranks_,
                                         sharded_ ? table_.shares().chunks : RankParts{});
    report.learning_rate = schedule(adam.step);
    adam.update(be_, table_, weights(), params, grad, groups, options.adam, report.learning_rate,
                share * clip_factor(report.gradient_norm, options.max_norm), own_chunks());
    send_params();
    micro_batches += options.num_microbatches;
    report.step = adam.step;
    report.max_steps = options.max_steps;
    return report;
  }

  /// Steps until max_steps or until a signal asks any rank to stop; whether max_steps was reached. All ranks
  /// call the hooks, which may collect from all; the first one has the progress line.
  template <class F>
  bool run(F&& loss_and_gradient, const TrainHooks& hooks = {}) {
    const StopSignals stop;
    ProgressLine line(ranks_.rank() == 0 ? hooks.progress : nullptr);
    const auto start = std::chrono::steady_clock::now();
    const std::int64_t first = adam.step;
    frames_ = 0;
    while (adam.step < options.max_steps) {
      StepReport report = step(loss_and_gradient);
      report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      report.frames_per_second = frames_ / std::max(report.seconds, 1e-9);
      report.seconds_left = report.seconds / static_cast<double>(adam.step - first) *
                            static_cast<double>(options.max_steps - adam.step);
      const bool asked = ranks_.sum(stop.requested() ? 1 : 0) > 0;  // whichever rank was
      const bool last = adam.step >= options.max_steps || asked;
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
    Master(B& be, std::vector<bool> held, std::pair<Index, Index> window)
        : store(be, std::move(held), window.first, window.second) {}
  };
  struct NoMaster {
    NoMaster(B&, const std::vector<bool>&, std::pair<Index, Index>) {}
  };
  static std::vector<bool> held(const std::vector<ParamGroup>& groups) {
    std::vector<bool> held;
    if constexpr (requires { requires M::frozen_without_gradient; }) {
      for (const auto& group : groups) held.push_back(!group.frozen);
    }
    return held;
  }

  RankPart own_chunks() const {
    return table_.shares().chunks[sharded_ ? static_cast<std::size_t>(ranks_.rank()) : 0];
  }
  /// Bytes of the moments and originals that are here.
  std::pair<Index, Index> window() const {
    const RankPart own = shares()[sharded_ ? static_cast<std::size_t>(ranks_.rank()) : 0];
    return {own.from * static_cast<Index>(sizeof(A)), (own.from + own.count) * static_cast<Index>(sizeof(A))};
  }
  /// The store itself or, where the ranks share it out, all of it in the gradient's memory.
  Store<M, B>& collected(Store<M, B>& own) {
    if (own.whole()) return own;
    be_.copy(own.data() + own.first(), grad.data() + own.first(), own.last() - own.first());
    ranks_.all_gather(be_, grad.template flat<A>().data(), shares());
    ranks_.wait(be_);
    return grad;
  }
  /// Sums elements [from, incomplete_) over the ranks, which goes on beside the backend's work.
  void sum_gradient_from(Index from) {
    A* const all = grad.template flat<A>().data();
    const Index to = std::exchange(incomplete_, from);
    if (!sharded_) return ranks_.all_reduce_sum(be_, all + from, to - from);
    RankParts parts;
    for (const RankPart& part : shares()) {
      const Index begin = std::max(from, part.from), end = std::min(to, part.from + part.count);
      if (begin < end) parts.push_back({begin, end - begin, part.owner});
    }
    ranks_.reduce_scatter(be_, all, parts);
  }
  /// What each rank has changed of the weights that the model reads.
  void send_params() {
    if (!sharded_) return;
    ranks_.all_gather(be_, params.template flat<typename B::Scalar>().data(), table_.shares().read);
    ranks_.wait(be_);
  }

  [[noreturn]] void diverged(const char* found) const {
    fail("training step " + std::to_string(adam.step + 1), found, "a finite loss",
         "the parameters are still those of step " + std::to_string(adam.step) +
             "; resume from an earlier checkpoint with a lower learning rate");
  }

  B& be_;
  [[no_unique_address]] std::conditional_t<mixed, Master, NoMaster> master_;
  double frames_ = 0;
  Index incomplete_ = 0;  // elements of the gradient that are not yet being summed over the ranks
  bool last_micro_batch_ = false;
};

}  // namespace mttt
