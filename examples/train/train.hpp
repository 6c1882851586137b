// Training, for any configuration of the model. Each preset is compiled in a file of its own, beside this
// one.
#pragma once

#include <cstdio>
#include <string>

#include "../backend.hpp"
#include "../ranks.hpp"
#include "mttt/data/loader.hpp"
#include "mttt/io/model_config.hpp"
#include "mttt/io/published.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/lm/gates.hpp"
#include "mttt/lm/probes.hpp"
#include "mttt/train/guard.hpp"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/work.hpp"
#include "options.hpp"

/// What a model has beside a published one: TTT layers, gates, adapters.
inline bool is_added(std::string_view name) { return mttt::is_ttt_name(name) || mttt::is_lora_name(name); }
inline bool is_base(std::string_view name) { return !is_added(name); }

/// The same start on every backend: it is drawn in the host's memory. With a base to come from a file, only
/// what is added to it is drawn.
template <mttt::MoshiConfig C, class P, class B, class M, class R>
void draw_start(B& be, mttt::Trainer<P, B, M, R>& trainer, bool without_base) {
  using namespace mttt;
  using Model = Moshi<C, Host>;
  using T = typename B::Scalar;
  std::vector<bool> drawn;
  for_each_tensor(
      [&](std::string_view name, const auto&) { drawn.push_back(!without_base || is_added(name)); },
      *trainer.params);
  Host host;
  Store<typename Model::Params, Host> start(host, 1, drawn);
  Rng rng(trainer.options.seed);
  Model::init(*start, rng);
  trainer.edit_weights([&](auto& all) {
    for_each_tensor(
        [&](std::string_view, const auto& from, auto& trained, auto& read) {
          if (left_out(from)) return;
          if (!left_out(trained)) return be.to_device(from.data(), trained.data(), from.size());
          std::vector<T> rounded(static_cast<std::size_t>(from.size()));
          std::transform(from.data(), from.data() + from.size(), rounded.begin(),
                         [](float x) { return static_cast<T>(x); });
          be.to_device(rounded.data(), read.data(), read.size());
        },
        *start, *all, *trainer.params);
  });
}

/// The learned start of another model of these shapes: all of it, or a base without what is_added, whose own
/// start these keep. Published names and adapters are read as docs/loading.md says. A file that says that its
/// base is elsewhere may lack that.
template <class P, class B, class M, class R>
void load_base(const std::filesystem::path& path, B& be, mttt::Trainer<P, B, M, R>& trainer) {
  mttt::LoadOptions load;
  load.may_be_missing = is_added;
  if (mttt::TensorFiles(path).first().metadata().contains("base"))
    load.may_be_missing = [](std::string_view) { return true; };
  load_weights(path, be, trainer, load);
  std::printf("started from %s\n", path.c_str());
}

/// Gates and inner learning rate start as the file says, if it does.
template <mttt::MoshiConfig C, class B, class P>
void set_ttt_start(B& be, P& weights, const mttt::TrainConfig::Ttt& ttt) {
  if constexpr (C.temporal.num_ttt_layers() > 0) {
    if (ttt.initial_gating_alpha) force_gating_alpha(be, weights, *ttt.initial_gating_alpha);
    mttt::for_each_tensor(
        [&](std::string_view name, auto& t) {
          if (ttt.base_lr && !left_out(t) && name.ends_with("base_lr"))
            be.fill(t.data(), t.size(), static_cast<typename B::Scalar>(*ttt.base_lr));
        },
        weights);
  }
}

/// moshi_path is what a fine-tuning starts from; resume_from another training's checkpoint, whose optimiser
/// and step go on unless they are reset.
template <mttt::MoshiConfig C, class P, class B, class M, class R>
void start_from(B& be, mttt::Trainer<P, B, M, R>& trainer, const mttt::TrainConfig& config) {
  auto stored = be.template as<mttt::Wide<typename B::Scalar>>();  // what the weights are in
  const auto both = [&](const auto& set) {                         // what trains and what does not
    set(be, *trainer.params);
    trainer.edit_weights([&](auto& all) { set(stored, *all); });
  };
  both([&](auto& backend, auto& weights) { set_ttt_start<C>(backend, weights, config.ttt); });
  if (config.moshi_paths.moshi_path) load_base(*config.moshi_paths.moshi_path, be, trainer);
  if (!config.resume_from) return;
  if (config.reset_optimizer) {
    load_base(*config.resume_from, be, trainer);
  } else {
    load_training(*config.resume_from, be, trainer);
    std::printf("went on from %s\n", config.resume_from->c_str());
  }
  if (config.ttt.override_gating_alpha_on_resume)
    both([&](auto& backend, auto& weights) {
      force_gating_alpha(backend, weights,
                         config.ttt.initial_gating_alpha.value_or(C.temporal.initial_gating_alpha));
    });
  if (config.reset_step) {  // AdamW counts on: its moments are as old as they are
    trainer.micro_batches = 0;
    trainer.options.max_steps += trainer.adam.step;
    trainer.schedule = [schedule = trainer.schedule, first = trainer.adam.step](std::int64_t step) {
      return schedule(step - first);
    };
  }
}

/// The first few by name, and how many there are.
inline void tell_skipped(const std::vector<std::string>& skipped) {
  constexpr std::size_t most = 20;
  for (std::size_t i = 0; i < std::min(most, skipped.size()); ++i)
    std::fprintf(stderr, "left out: %s\n", skipped[i].c_str());
  if (!skipped.empty()) std::fprintf(stderr, "%zu recordings are left out\n", skipped.size());
}

/// Now and then, what the inner loops do to their losses in the micro-batch that comes.
template <class Model>
class InnerLossWatch {
 public:
  /// `every`: steps between two looks; 0: as many as the guard of the inner loops may wait, in steps that are
  /// logged. A look at one segment in 20 steps takes less than 3 % of the time even where that is the batch.
  InnerLossWatch(std::int64_t every, std::int64_t log_freq, bool has_ttt)
      : every_(!has_ttt    ? 0
               : every > 0 ? every
                           : (19 + log_freq) / log_freq * log_freq) {}

  bool due(std::int64_t step) const { return every_ > 0 && (step == 1 || step % every_ == 0); }
  template <class B>
  void look(B& be, const typename Model::Params& params, mttt::Streams<const std::int32_t> codes,
            const mttt::MoshiSegment<Model>& segment) {
    const auto start = std::chrono::steady_clock::now();
    found_ = mttt::inner_losses<Model>(be, params, codes, segment.carry, segment.before);
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++looks_;
  }
  const std::vector<mttt::InnerLosses>& found() const { return found_; }
  /// What was found since the last time, for metrics.jsonl.
  void tell(nlohmann::json& line) {
    for (const auto& layer : std::exchange(found_, {})) {
      const std::string name = "_layer_" + std::to_string(layer.layer);
      line["inner_loss_0" + name] = layer.at_start;
      line["inner_loss_prev" + name] = layer.before;
      line["inner_loss_after" + name] = layer.after;
      line["inner_violations" + name] = layer.violations;
    }
  }
  void print(double seconds) const {
    if (looks_ > 0)
      std::printf("inner losses: %d looks, %.2f %% of the time\n", looks_, 100 * seconds_ / seconds);
  }

 private:
  std::int64_t every_;
  int looks_ = 0;
  double seconds_ = 0;
  std::vector<mttt::InnerLosses> found_;
};

/// The end of a training: adapters, for the base that it started from, or a model that needs neither. What
/// either makes of the base is a model of a preset without adapters.
template <mttt::MoshiConfig C, class P, class B, class M, class R>
void save_model(B& be, mttt::Trainer<P, B, M, R>& trainer, const std::filesystem::path& folder,
                const std::string& preset, bool adapters) {
  using namespace mttt;
  constexpr MoshiConfig fused = C.with_lora(0);
  const std::string suffix = "_lora";
  const bool named = preset.ends_with(suffix);
  SaveOptions options{
      .config = config_json<fused>(named ? preset.substr(0, preset.size() - suffix.size()) : preset)};
  const auto file = folder / (adapters ? "lora.safetensors" : "model.safetensors");
  if (adapters) {
    options.metadata["base"] = "elsewhere";
    save_weights(file, be, trainer, options, frozen_base(trainer, is_base));
    if (C.lora.rank > 0 && trainer.ranks().rank() == 0) {
      nlohmann::json about;  // as other programs expect it
      about["lora"] = true, about["lora_name"] = "lora.safetensors";
      about["lora_rank"] = C.lora.rank, about["lora_scaling"] = C.lora.scaling;
      write_file_atomically(folder / "config.json", about.dump(2));
    }
  } else {
    if constexpr (C.lora.rank > 0) {
      auto stored = be.template as<Wide<typename B::Scalar>>();
      if constexpr (Trainer<P, B, M, R>::mixed) fuse_adapters(be, *trainer.params, C.lora.scaling);
      trainer.edit_weights([&](auto& all) { fuse_adapters(stored, *all, C.lora.scaling); });
    }
    save_weights(file, be, trainer, options, C.lora.rank > 0 ? LeaveOut(is_lora_name) : LeaveOut());
  }
  if (trainer.ranks().rank() == 0) std::printf("wrote %s\n", file.c_str());
}

/// T: what the model stores. In bf16 it reads rounded copies of weights that are trained in float32.
template <mttt::MoshiConfig C, mttt::StorageType T>
int train(const Options& options) {
  using namespace mttt;
  using B = Device<T>;
  using Model = Moshi<C, B>;
  using Weights = typename Moshi<C, Device<Wide<T>>>::Params;
  auto be = open_device<T>();
  const Ranks ranks = ranks_of(be);
  std::printf("training on %s, %s", name_of(be).c_str(), options.dtype.c_str());
  ranks.size() > 1 ? std::printf(", %d processes\n", ranks.size()) : std::printf("\n");

  // The data: coded recordings, of which micro-batch i is a function of the seed and i alone.
  std::vector<std::string> skipped;
  auto segments = options.segments;
  const auto filter = options.config ? options.config->config.data.filter : TrainConfig::Filter{};
  auto sources = load_data_sources(options.data, skipped, filter);
  if (ranks.rank() == 0) tell_skipped(skipped);
  if (options.config) options.config->config.set_lengths(sources[0].recordings[0].frame_rate, segments);
  const Batches batches(std::move(sources), segments);
  std::printf("%s: %.0f s of coded recordings%s\n", options.data.c_str(),
              static_cast<double>(batches.total_frames()) / batches.frame_rate(),
              segments.order == Order::sequential ? ", each from its start to its end" : "");

  Store<typename Model::Params, B> params(be);
  std::printf("%s: %.2f million parameters\n", options.preset.c_str(),
              static_cast<double>(count_elements(*params)) * 1e-6);

  // What trains. The inner learning rate is a parameter, so that it is saved with the weights; it keeps its
  // value.
  constexpr bool has_ttt = C.temporal.num_ttt_layers() > 0;
  std::vector<GroupRule> rules;
  if (options.config) {
    expect_preset<C>(*options.config, options.preset);
    rules = what_trains<C>(options.config->config);
  } else if constexpr (has_ttt) {
    rules.push_back({.says = "base_lr", .matches = name_contains("base_lr"), .frozen = true});
  }
  Trainer<typename Model::Params, B, Weights, Ranks> trainer(be, params, options.train, rules, ranks);

  // Segments of a recording go on with the fast weights that the one before left.
  const bool carries = has_ttt && segments.order == Order::sequential &&
                       (!options.config || options.config->config.ttt.persistent_states);
  for (std::size_t i = 0; carries && i <= segments.stages.size(); ++i) {
    const Index frames = i == 0 ? segments.frames : segments.stages[i - 1].frames;
    if (frames % Model::carry_multiple == 0) continue;
    fail("the length of a segment", std::to_string(frames) + " frames",
         "a multiple of the TTT layers' mini-batch of " + std::to_string(Model::carry_multiple),
         "correct duration_sec, or set ttt.persistent_states to false");
  }
  std::optional<Store<typename Model::Carried, B>> carried;
  if (carries) carried.emplace(be, segments.batch);

  // The model starts at random, from another one, or where the run was left.
  draw_start<C>(be, trainer, options.config && options.config->config.moshi_paths.moshi_path);
  if (options.config) start_from<C>(be, trainer, options.config->config);
  RunFolder run(options.output, options.train.num_ckpt_keep, ranks);
  const auto config = config_json<C>(options.preset);
  auto* const kept = carried ? &*carried : nullptr;
  if (options.resume && run.resume(be, trainer, config, kept)) {
    std::printf("resumed at step %lld\n", static_cast<long long>(trainer.adam.step));
  }

  const bool adapters = options.config && options.config->config.saves_adapters();
  const LeaveOut base_elsewhere = adapters ? frozen_base(trainer, is_base) : LeaveOut();
  const auto openings = [&] {  // fixed gates are not among the weights that are trained
    const auto trained =
        trainer.read_weights([&](const auto& weights) { return gate_openings(be, *weights); });
    return trained.empty() ? gate_openings(be, *trainer.params) : trained;
  };
  const auto gates_at_start = openings();
  const double alpha_pull =  // gradients of all ranks add up
      options.config ? options.config->config.ttt.alpha_pull / trainer.ranks().size() : 0;
  const double alpha_start =
      options.config
          ? options.config->config.ttt.initial_gating_alpha.value_or(C.temporal.initial_gating_alpha)
          : 0;
  const double peak = ranks.size() * product_peak(be, product_size);
  MoshiLoss losses{};
  std::vector<double> streams;  // the losses of the last micro-batch of a logged step, text first
  Index frames = segments.frames;
  const auto will_be_logged = [&](std::int64_t index) {
    const std::int64_t step = trainer.adam.step + 1;
    return index + 1 == trainer.micro_batches + trainer.options.num_microbatches &&
           (step == 1 || step % trainer.options.log_freq == 0 || step == trainer.options.max_steps);
  };
  InnerLossWatch<Model> watch(options.inner_loss_freq, trainer.options.log_freq, has_ttt);
  double seconds = 0;
  Loader loader(batches, carries ? 1 + C.max_delay() : 0, [](Index k) { return C.initial().of(k); });
  const auto loss_and_gradient = [&](std::int64_t index, Weights& grad) {
    const auto scope = be.scope();
    const LoadedBatch& loaded = loader.take(index);
    MoshiSegment<Model> segment;
    if (carried) {
      segment.carry = {&**carried, &**carried, loader.upload(be, loaded.continues)};
      segment.before = loader.upload(be, loaded.before);
    }
    segment.complete_from = [&](const void* first) { trainer.complete_from(first); };
    const auto codes = loader.upload(be, loaded.codes);
    if (index == trainer.micro_batches && watch.due(trainer.adam.step + 1))
      watch.look(be, *params, codes, segment);
    if (alpha_pull > 0) pull_gates(be, *params, grad, alpha_start, alpha_pull);  // before it may be complete
    frames = loaded.frames;
    losses = moshi_loss<Model>(be, *params, codes, options.loss, &grad, segment, ranks,
                               will_be_logged(index) ? &streams : nullptr);
    return MicroBatch{losses.total(), segments.batch * frames};
  };
  const bool keeps = !options.config || options.config->config.do_ckpt;
  const auto log = [&](const StepReport& report) {
    const TrainWork work = train_work<C>(*params, trainer.groups, 1, frames);
    nlohmann::json more = {{"text_loss", ranks.sum(losses.text_loss)},
                           {"audio_loss", ranks.sum(losses.audio_loss)},
                           {"loader_wait", loader.seconds_waited() / std::max(report.seconds, 1e-9)},
                           {"memory_mb", megabytes_in_use()}};
    more["share_of_peak"] = work.use / static_cast<double>(frames) * report.frames_per_second / peak;
    for (std::size_t k = 1; k < streams.size(); ++k) more["audio_loss_" + std::to_string(k - 1)] = streams[k];
    const auto open = openings();
    for (const auto& gate : open) more["gate_layer_" + std::to_string(gate.layer)] = gate.opening;
    const std::vector<InnerLosses> inner = watch.found();
    watch.tell(more);
    seconds = report.seconds;
    run.log(report, more);
    check_gates(gates_at_start, open);
    check_inner_loops(inner);
  };
  const auto checkpoint = [&] {
    if (keeps) run.save(be, trainer, config, kept, base_elsewhere);
  };
  const bool finished = trainer.run(loss_and_gradient, {.log = log, .checkpoint = checkpoint});
  watch.print(seconds);
  if (!finished) {
    std::printf("stopped in good order; go on with --resume\n");
    return 0;
  }
  save_model<C>(be, trainer, run.path(), options.preset, adapters);
  return 0;
}
