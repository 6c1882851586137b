// Training, for any configuration of the model. Each preset is compiled in a file of its own, beside this
// one.
#pragma once

#include <cstdio>
#include <map>
#include <string>

#include "../backend.hpp"
#include "../ranks.hpp"
#include "inner_loss_watch.hpp"
#include "mttt/data/loader.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/train/guard.hpp"
#include "mttt/train/work.hpp"
#include "options.hpp"
#include "passes.hpp"
#include "save.hpp"
#include "start.hpp"

/// The first few by name, and how many there are.
inline void tell_skipped(const std::vector<std::string>& skipped) {
  constexpr std::size_t most = 20;
  for (std::size_t i = 0; i < std::min(most, skipped.size()); ++i)
    std::fprintf(stderr, "left out: %s\n", skipped[i].c_str());
  if (!skipped.empty()) std::fprintf(stderr, "%zu recordings are left out\n", skipped.size());
}

/// The data: coded recordings, of which micro-batch i is a function of the seed and i alone.
inline mttt::Batches load_batches(const Options& options, bool tell) {
  std::vector<std::string> skipped;
  auto segments = options.segments;
  const auto filter = options.config ? options.config->config.data.filter : mttt::TrainConfig::Filter{};
  auto sources = mttt::load_data_sources(options.data, skipped, filter);
  if (tell) tell_skipped(skipped);
  if (options.config) options.config->config.set_lengths(sources[0].recordings[0].frame_rate, segments);
  return mttt::Batches(std::move(sources), segments);
}

/// What trains.
template <mttt::MoshiConfig C>
std::vector<mttt::GroupRule> rules_of(const Options& options) {
  if (options.config) {
    mttt::expect_preset<C>(*options.config, options.preset);
    return mttt::what_trains<C>(options.config->config);
  }
  if (C.temporal.num_ttt_layers() == 0) return {};
  return {mttt::frozen_base_lr()};
}

/// A training from its start to its end.
template <mttt::MoshiConfig C, mttt::StorageType T>
class Training {
  using Pass = Passes<C, T>;
  using B = typename Pass::B;
  using Model = typename Pass::Model;
  using P = typename Pass::P;
  using M = typename Pass::M;
  static constexpr bool has_ttt = C.temporal.num_ttt_layers() > 0;

 public:
  explicit Training(const Options& options)
      : options_(options),
        config_(options.config ? options.config->config : mttt::TrainConfig{}),
        be_(open_device<T>()),
        ranks_(ranks_of(be_)),
        batches_(load_batches(options, ranks_.rank() == 0)),
        params_(be_),
        trainer_(be_, params_, options.train, rules_of<C>(options), ranks_),
        carries_(has_ttt && segments().order == mttt::Order::sequential &&
                 (!options.config || config_.ttt.persistent_states)),
        run_(options.output, options.train.num_ckpt_keep, ranks_),
        about_(mttt::config_json<C>(options.preset)),
        watch_(options.inner_loss_freq, options.train.log_freq, has_ttt),
        loader_(batches_, carries_ ? 1 + C.max_delay() : 0, [](mttt::Index k) { return C.initial().of(k); }) {
    tell();
    if (carries_) carry();
  }

  int run() {
    start();
    const bool finished = trainer_.run(
        [&](std::int64_t index, M& grad) { return micro_batch(index, grad); },
        {.log = [&](const mttt::StepReport& report) { log(report); }, .checkpoint = [&] { checkpoint(); }});
    watch_.print(seconds_);
    if (finished) {
      Save<C, T>::model(be_, trainer_, run_.path(), options_.preset, saves_adapters());
    } else {
      std::printf("stopped in good order; go on with --resume\n");
    }
    return 0;
  }

 private:
  const mttt::BatchOptions& segments() const { return batches_.options(); }
  void tell() const {
    std::printf("training on %s, %s", name_of(be_).c_str(), options_.dtype.c_str());
    ranks_.size() > 1 ? std::printf(", %d processes\n", ranks_.size()) : std::printf("\n");
    std::printf("%s: %.0f s of coded recordings%s\n", options_.data.c_str(),
                static_cast<double>(batches_.total_frames()) / batches_.frame_rate(),
                segments().order == mttt::Order::sequential ? ", each from its start to its end" : "");
    std::printf("%s: %.2f million parameters\n", options_.preset.c_str(),
                static_cast<double>(mttt::count_elements(*params_)) * 1e-6);
  }
  bool saves_adapters() const { return options_.config && config_.saves_adapters(); }

  /// Segments of a recording go on with the fast weights that the one before left.
  void carry() {
    for (std::size_t i = 0; i <= segments().stages.size(); ++i) {
      const mttt::Index frames = i == 0 ? segments().frames : segments().stages[i - 1].frames;
      if (frames % Model::carry_multiple == 0) continue;
      mttt::fail("the length of a segment", std::to_string(frames) + " frames",
                 "a multiple of the TTT layers' mini-batch of " + std::to_string(Model::carry_multiple),
                 "correct duration_sec, or set ttt.persistent_states to false");
    }
    carried_.emplace(be_, segments().batch);
  }

  /// At random, from another model, or where the run was left.
  void start() {
    Start<C, T>::draw(be_, trainer_, options_.config && config_.moshi_paths.moshi_path);
    if (options_.config) Start<C, T>::from_files(be_, trainer_, config_);
    if (options_.resume && Start<C, T>::resume(be_, trainer_, run_, about_, carried()))
      std::printf("resumed at step %lld\n", static_cast<long long>(trainer_.adam.step));
    if (saves_adapters()) base_elsewhere_ = mttt::frozen_base(trainer_, is_base);
    gates_at_start_ = openings();
    if (gates_at_start_.empty())  // fixed gates are not among the weights that are trained
      gates_at_start_ = mttt::gate_openings(be_, *trainer_.whole_params());
    peak_ = ranks_.size() * mttt::product_peak(be_, product_size);
    hooks_ = trainer_.hooks();
  }

  mttt::Store<typename Model::Carried, B>* carried() { return carried_ ? &*carried_ : nullptr; }

  std::vector<mttt::GateState> openings() {
    return trainer_.read_weights([](std::string_view name) { return name.ends_with("gating_alpha"); },
                                 [&](const auto& gates) { return mttt::gate_openings(be_, *gates); });
  }

  bool will_be_logged(std::int64_t index) const {
    const std::int64_t step = trainer_.adam.step + 1;
    return index + 1 == trainer_.micro_batches + trainer_.options.num_microbatches &&
           (step == 1 || step % trainer_.options.log_freq == 0 || step == trainer_.options.max_steps);
  }

  mttt::MicroBatch micro_batch(std::int64_t index, M& grad) {
    const auto scope = be_.scope();
    const mttt::LoadedBatch& loaded = loader_.take(index);
    mttt::MoshiSegment<Model> segment;
    if (carried_) {
      segment.carry = {&**carried_, &**carried_, loader_.upload(be_, loaded.continues)};
      segment.before = loader_.upload(be_, loaded.before);
    }
    segment.hooks.call = [&](mttt::UnitMoment moment, mttt::Index unit) {
      if (hooks_.call) hooks_.call(moment, unit);
      if (moment == mttt::UnitMoment::add) pull_gates_of(unit - Model::first_layer, grad);
    };
    const auto codes = loader_.upload(be_, loaded.codes);
    if (index == trainer_.micro_batches && watch_.due(trainer_.adam.step + 1))
      watch_.look([&] { return Pass::inner_losses(be_, *params_, codes, segment); });
    frames_ = loaded.frames;
    losses_ = Pass::loss(be_, *params_, codes, options_.loss, grad, segment, ranks_,
                         will_be_logged(index) ? &streams_ : nullptr);
    return {losses_.total(), segments().batch * frames_};
  }
  /// Gradients of all ranks add up: each adds its share.
  void pull_gates_of(mttt::Index layer, M& grad) {
    if (!options_.config || config_.ttt.alpha_pull == 0) return;
    if (layer < 0 || layer >= C.temporal.num_layers) return;
    mttt::pull_gates(be_, *params_, grad,
                     config_.ttt.initial_gating_alpha.value_or(C.temporal.initial_gating_alpha),
                     config_.ttt.alpha_pull / ranks_.size(), mttt::LayerSet::range(layer, layer));
  }

  /// FLOPs of use a frame, in segments as long as the last.
  double work_of_a_frame() {
    double& work = work_[frames_];
    if (work == 0)
      work = mttt::train_work<C>(*params_, trainer_.groups, 1, frames_).use / static_cast<double>(frames_);
    return work;
  }

  void log(const mttt::StepReport& report) {
    nlohmann::json more = {{"text_loss", ranks_.sum(losses_.text_loss)},
                           {"audio_loss", ranks_.sum(losses_.audio_loss)},
                           {"loader_wait", loader_.seconds_waited() / std::max(report.seconds, 1e-9)},
                           {"memory_mb", megabytes_in_use()}};
    more["share_of_peak"] = work_of_a_frame() * report.frames_per_second / peak_;
    for (std::size_t k = 1; k < streams_.size(); ++k)
      more["audio_loss_" + std::to_string(k - 1)] = streams_[k];
    auto open = openings();
    if (open.empty()) open = gates_at_start_;
    for (const auto& gate : open) more["gate_layer_" + std::to_string(gate.layer)] = gate.opening;
    const std::vector<mttt::InnerLosses> inner = watch_.found();
    watch_.tell(more);
    seconds_ = report.seconds;
    run_.log(report, more);
    mttt::check_gates(gates_at_start_, open);
    mttt::check_inner_loops(inner);
  }

  void checkpoint() {
    if (!options_.config || config_.do_ckpt) run_.save(be_, trainer_, about_, carried(), base_elsewhere_);
  }

  const Options& options_;
  const mttt::TrainConfig config_;
  B be_;
  const Ranks ranks_;
  const mttt::Batches batches_;
  mttt::Store<P, B> params_;
  mttt::Trainer<P, B, M, Ranks> trainer_;
  const bool carries_;
  std::optional<mttt::Store<typename Model::Carried, B>> carried_;
  mttt::RunFolder run_;
  const nlohmann::json about_;
  InnerLossWatch watch_;
  mttt::Loader loader_;
  mttt::UnitHooks hooks_;
  mttt::LeaveOut base_elsewhere_;
  std::vector<mttt::GateState> gates_at_start_;
  double peak_ = 0, seconds_ = 0;
  std::map<mttt::Index, double> work_;  // by frames of a segment
  // Of the last micro-batch.
  mttt::MoshiLoss losses_{};
  std::vector<double> streams_;  // of a logged step, text first
  mttt::Index frames_ = 0;
};

template <mttt::MoshiConfig C, mttt::StorageType T>
int train(const Options& options) {
  return Training<C, T>(options).run();
}
