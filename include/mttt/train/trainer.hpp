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
// it gives is its share, and the shares of all add up to the loss, as do the gradients. What is shared out, in
// windows of whole chunks with about as many elements as any other's, TrainOptions::sharding says
// (train/sharding.hpp): a rank changes its weights alone, and all get them. A pass that is given hooks() lets sums over
// the ranks go on beside it; gradients and parameters that are shared out need it.
//
// Where these are, `params` and `grad` hold windows from the first step on, and *params is for passes with hooks()
// alone. Between steps whole_params, edit_weights and read_weights give all; the first two make room for them, until
// the next step: a model must fit whole into the memory of a rank, without gradients and activations.
//
// Formula: gradient = mean over the micro-batches; then clip.hpp, schedule.hpp, adamw.hpp.
// Shapes:  those of the parameters.
// Units:   frames a second.
// Errors:  a loss or a gradient that is not finite stops the training before the parameters change.
//          A rank whose loss is not finite is the only one to know: the program then ends all.
// Not supported: loss scaling (bf16 has the exponents of float32).
// Source:  kyutai-labs/moshi-finetune, train.py; Rajbhandari et al. 2020 (arXiv 1910.02054).
#pragma once

#include <chrono>
#include <cmath>
#include <concepts>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mttt/core/rng.hpp"
#include "mttt/train/adamw.hpp"
#include "mttt/train/clip.hpp"
#include "mttt/train/progress.hpp"
#include "mttt/train/ranks.hpp"
#include "mttt/train/schedule.hpp"
#include "mttt/train/sharding.hpp"

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
  Sharding sharding = Sharding::optimizer;  // what several ranks share out
  Index bucket = 1 << 23;  // elements of a gradient that is not shared out, summed at a time in backward
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
  const Sharding sharding_;
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
        grad(first_gradient(be, held(groups), sharding_of(ranks, train_options))),
        ranks_(ranks),
        sharding_(sharding_of(ranks, train_options)),
        table_(be, parameters, grad, shares(Sharding::optimizer) ? ranks.size() : 1,
               shares(Sharding::full) ? Table::Evenly::read : Table::Evenly::trained),
        adam(be, held(groups), window().first, window().second),
        rng(train_options.seed),
        options(train_options),
        schedule(OneCycle({train_options.max_steps, train_options.lr, train_options.pct_start})),
        be_(be),
        master_(be, held(groups), window()),
        units_(detail::unit_ranges(grad)) {
    if constexpr (mixed) table_.widen(be, params, weights(), own_chunks());
    if (shares(Sharding::gradients)) grad.hold(be, window().first, window().second);
    for (const RankPart& part : table_.shares().chunks) {
      if (shares(Sharding::optimizer) && !shares(Sharding::full) && part.count == 0)
        fail("training with " + std::to_string(ranks.size()) + " ranks", "one that nothing is left for",
             "as many pieces of 16384 weights that train", "start fewer processes, or set sharding to none");
    }
    if (options.num_microbatches < 1 || options.log_freq < 1 || options.ckpt_freq < 0) {
      fail("training options", "num_microbatches or log_freq below 1, or a negative ckpt_freq",
           "at least one micro-batch and one step between two reports", "correct the training options");
    }
  }

  static constexpr bool mixed = !std::same_as<P, M>;

  const R& ranks() const { return ranks_; }
  /// What each rank has of the moments: elements.
  const RankParts& moment_shares() const { return table_.shares().trained; }
  /// What each rank has of weights() and of params, where these are not whole: elements.
  const RankParts& weight_shares() const { return mixed ? table_.shares().trained : table_.shares().read; }
  const RankParts& param_shares() const { return table_.shares().read; }

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
      table_.round(be_, weights(), whole_params(), own_chunks());
      send_params();
    }
  }

  /// params, all of them, until the next step. All ranks call it, between two steps.
  Store<P, B>& whole_params() {
    if (params.whole()) return params;
    reader_.reset();
    params.hold(be_, 0, params.bytes());
    auto* const all = params.template flat<Scalar>().data();
    ranks_.all_gather(be_, all, all, param_shares());
    ranks_.wait(be_);
    return params;
  }
  /// f(store) with all of the weights, and what f leaves there is trained on from. All ranks call it, with an f
  /// that does the same. Between two steps; the gradient's memory may serve for it.
  template <class F>
  void edit_weights(F&& f) {
    whole_params();
    auto& all = collected(weights());
    f(all);
    take(all, weights());
    if constexpr (mixed) table_.round(be_, all, params, table_.all());
  }
  /// f(store) with the weights of the chosen names, whole, and without the others. All ranks call it, between two
  /// steps.
  template <class F>
  decltype(auto) read_weights(const std::function<bool(std::string_view)>& chosen, F&& f) {
    const Store<M, B>& own = weights();
    std::vector<bool> held;
    for_each_tensor(
        [&](std::string_view name, const auto& t) { held.push_back(chosen(name) && !left_out(t)); }, *own);
    Store<M, B> some(be_, 1, held);
    std::size_t tensor = 0;
    for_each_tensor(
        [&](std::string_view, auto& to) {
          const Index from = own.place_of(tensor++) / static_cast<Index>(sizeof(A));
          if (!left_out(to)) collect(own, to.data() - from, from, from + to.size(), weight_shares());
        },
        *some);
    return f(std::as_const(some));
  }
  /// The same with all of the weights.
  template <class F>
  decltype(auto) read_weights(F&& f) {
    if constexpr (!mixed) whole_params();
    return f(std::as_const(collected(weights())));
  }
  /// Whether every rank has all of weights() or of a moment.
  bool has_whole(const Store<M, B>& own) const {
    const bool read = static_cast<const void*>(&own) == &params;
    return !shares(Sharding::optimizer) || (read && params.whole());
  }
  /// A store for all of weights() or of a moment, and what of it this rank keeps: to load a checkpoint.
  Store<M, B>& room_for(Store<M, B>& own) {
    if (has_whole(own)) return own;
    if (!shares(Sharding::gradients)) return grad;
    if (!room_) room_.emplace(be_, 1, grad.held());
    return *room_;
  }
  void take(const Store<M, B>& all, Store<M, B>& own) {
    if (&all != &own) own.assign(be_, all);
  }

  /// For the passes of a micro-batch; nothing where one rank trains alone.
  UnitHooks hooks() {
    if (ranks_.size() == 1) return {};
    return {[this](UnitMoment moment, Index unit) { told(moment, unit); }};
  }

  /// One step of the optimiser; params change last, after everything was checked.
  template <class F>
  requires std::is_invocable_r_v<MicroBatch, F&, std::int64_t, M&> StepReport step(F&& loss_and_gradient) {
    share_out();
    be_.fill(grad.data() + grad.first(), grad.last() - grad.first(),
             std::byte{0});  // AdamW could write the zeros, but they are as many bytes
    const double share = 1.0 / options.num_microbatches;
    incomplete_ = grad.bytes() / static_cast<Index>(sizeof(A));
    StepReport report{};
    Index frames = 0;
    for (int i = 0; i < options.num_microbatches; ++i) {
      last_micro_batch_ = i + 1 == options.num_microbatches;
      start_micro_batch();
      const MicroBatch done = loss_and_gradient(micro_batches + i, *grad);
      if (!std::isfinite(done.loss)) diverged(std::isnan(done.loss) ? "a loss of NaN" : "an infinite loss");
      if (adder_) expect_all_added();
      report.loss += share * done.loss;
      frames += done.frames;
    }
    if (ranks_.size() > 1) {
      report.loss = ranks_.sum(report.loss);
      adder_ ? adder_->finish(be_, ranks_) : sum_gradient_from(0);
      ranks_.wait(be_);
    }
    frames_ += ranks_.sum(static_cast<double>(frames));
    report.gradient_norm = gradient_norm(be_, table_, grad, groups, share, ranks_,
                                         shares(Sharding::optimizer) ? table_.shares().chunks : RankParts{});
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
  using Scalar = typename B::Scalar;
  using Table = ChunkTable<P, B, M>;
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

  static Sharding sharding_of(const R& ranks, const TrainOptions& options) {
    return ranks.size() > 1 ? options.sharding : Sharding::none;
  }
  /// Where gradients are shared out: no memory yet, nobody knows the parts.
  static Store<M, B> first_gradient(B& be, std::vector<bool> held, Sharding sharding) {
    if (sharding >= Sharding::gradients) return Store<M, B>(be, std::move(held), 0, 0);
    return Store<M, B>(be, 1, std::move(held));
  }
  bool shares(Sharding what) const { return sharding_ >= what; }

  const RankPart& own(const RankParts& parts) const {
    return parts[shares(Sharding::optimizer) ? static_cast<std::size_t>(ranks_.rank()) : 0];
  }
  RankPart own_chunks() const { return own(table_.shares().chunks); }
  /// Bytes of the moments and originals that are here.
  std::pair<Index, Index> window() const { return bytes_of(own(moment_shares()), sizeof(A)); }
  static std::pair<Index, Index> bytes_of(const RankPart& part, std::size_t element) {
    const auto each = static_cast<Index>(element);
    return {part.from * each, (part.from + part.count) * each};
  }

  /// Elements [from, last) of all ranks in `to`.
  void collect(const Store<M, B>& own, A* to, Index from, Index last, const RankParts& shares) {
    const A* const mine = own.template flat<A>().data();
    if (has_whole(own)) return be_.copy(mine + from, to + from, last - from);
    ranks_.all_gather(be_, mine, to, detail::parts_within(shares, from, last));
    ranks_.wait(be_);
  }
  /// The store itself or, where the ranks share it out, all of it in other memory.
  Store<M, B>& collected(Store<M, B>& own) {
    if (has_whole(own)) return own;
    auto& all = room_for(own);
    collect(own, all.template flat<A>().data(), 0, all.bytes() / static_cast<Index>(sizeof(A)),
            moment_shares());
    return all;
  }

  /// From whole parameters, as a program writes and reads them, to what a step needs.
  void share_out() {
    room_.reset();
    if (shares(Sharding::gradients) && !adder_) adder_.emplace(be_, grad, moment_shares());
    if (!shares(Sharding::full) || reader_) return;
    const auto [first, last] = bytes_of(own(param_shares()), sizeof(Scalar));
    params.hold(be_, first, last);
    reader_.emplace(be_, params, param_shares());
  }
  void start_micro_batch() {
    added_.assign(units_.size(), false);
    complete_ = units_.size();
    if (reader_) reader_->start_micro_batch();
  }
  void told(UnitMoment moment, Index unit) {
    if (moment == UnitMoment::read) {
      if (reader_) reader_->read(be_, ranks_, unit);
    } else if (moment == UnitMoment::add) {
      if (adder_) adder_->add(be_, ranks_, unit);
    } else {
      added_.at(static_cast<std::size_t>(unit)) = true;
      adder_ ? adder_->added(be_, ranks_, unit) : sum_what_is_complete();
    }
  }
  void expect_all_added() const {
    for (std::size_t unit = 0; unit < units_.size(); ++unit) {
      if (!added_[unit] && !adder_->empty(static_cast<Index>(unit)))
        fail("a backward pass with sharding: " + name_of(sharding_),
             "no word of unit " + std::to_string(unit), "each of " + std::to_string(units_.size()),
             "give the passes Trainer::hooks(), or set sharding to optimizer");
    }
  }
  /// Sums, beside the backward pass, the gradients of the last units if all of them are there.
  void sum_what_is_complete() {
    while (complete_ > 0 && added_[complete_ - 1]) --complete_;
    if (!last_micro_batch_ || complete_ == units_.size()) return;
    const Index from = units_[complete_].first / static_cast<Index>(sizeof(A));
    if (incomplete_ - from >= options.bucket) sum_gradient_from(from);
  }
  /// Sums elements [from, incomplete_) over the ranks, which goes on beside the backend's work.
  void sum_gradient_from(Index from) {
    A* const all = grad.template flat<A>().data();
    const Index to = std::exchange(incomplete_, from);
    if (!shares(Sharding::optimizer)) return ranks_.all_reduce_sum(be_, all + from, to - from);
    ranks_.reduce_scatter(be_, all, all, detail::parts_within(moment_shares(), from, to));
  }
  /// What each rank has changed of the weights that the model reads.
  void send_params() {
    if (reader_) return reader_->forget();
    if (!shares(Sharding::optimizer)) return;
    auto* const all = params.template flat<Scalar>().data();
    ranks_.all_gather(be_, all, all, param_shares());
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
  std::vector<detail::UnitRange> units_;  // of the gradient
  std::optional<detail::SlotReader<P, B>> reader_;
  std::optional<detail::SlotAdder<M, B>> adder_;
  std::optional<Store<M, B>> room_;
  std::vector<bool> added_;   // of a micro-batch's units, whether their gradients are there
  std::size_t complete_ = 0;  // and of this one and all behind it they are
  Index incomplete_ = 0;      // elements of the gradient that are not yet being summed over the ranks
  bool last_micro_batch_ = false;
};

}  // namespace mttt
