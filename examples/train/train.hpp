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
#include "mttt/train/moshi_loss.hpp"
#include "options.hpp"

/// The same start on every backend: it is drawn in the host's memory.
template <mttt::MoshiConfig C, class P, class B>
void draw_start(B& be, mttt::Store<P, B>& params, std::uint64_t seed) {
  using Model = mttt::Moshi<C, Host>;
  Host host;
  mttt::Store<typename Model::Params, Host> start(host);
  mttt::Rng rng(seed);
  Model::init(*start, rng);
  mttt::upload(be, start, params);
}

/// The learned start of another model of these shapes: all of it, or a base without TTT layers, whose own start
/// these keep. Published names and adapters are read as docs/loading.md says.
template <class B>
void load_base(const std::filesystem::path& path, B& be, auto& trainer) {
  mttt::LoadOptions load;
  load.may_be_missing = mttt::is_ttt_name;
  trainer.edit_weights([&](auto& weights) { load_params(path, be, weights, load); });
  std::printf("started from %s\n", path.c_str());
}

/// Gates and inner learning rate start as the file says, if it does.
template <mttt::MoshiConfig C, class B, class P>
void set_ttt_start(B& be, P& weights, const mttt::TrainConfig::Ttt& ttt) {
  if constexpr (C.temporal.num_ttt_layers() > 0) {
    if (ttt.initial_gating_alpha) force_gating_alpha(be, weights, *ttt.initial_gating_alpha);
    mttt::for_each_tensor(
        [&](std::string_view name, auto& t) {
          if (ttt.base_lr && name.ends_with("base_lr"))
            be.fill(t.data(), t.size(), static_cast<typename B::Scalar>(*ttt.base_lr));
        },
        weights);
  }
}

/// moshi_path is what a fine-tuning starts from; resume_from another training's checkpoint, whose optimiser and
/// step go on unless they are reset.
template <mttt::MoshiConfig C, class P, class B, class M, class R>
void start_from(B& be, mttt::Trainer<P, B, M, R>& trainer, const mttt::TrainConfig& config) {
  auto stored = be.template as<mttt::Wide<typename B::Scalar>>();  // what the weights are in
  trainer.edit_weights([&](auto& weights) { set_ttt_start<C>(stored, *weights, config.ttt); });
  if (config.moshi_paths.moshi_path) load_base(*config.moshi_paths.moshi_path, be, trainer);
  if (!config.resume_from) return;
  if (config.reset_optimizer) {
    load_base(*config.resume_from, be, trainer);
  } else {
    load_training(*config.resume_from, be, trainer);
    std::printf("went on from %s\n", config.resume_from->c_str());
  }
  if (config.ttt.override_gating_alpha_on_resume) {
    const double alpha = config.ttt.initial_gating_alpha.value_or(C.temporal.initial_gating_alpha);
    trainer.edit_weights([&](auto& weights) { force_gating_alpha(stored, *weights, alpha); });
  }
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
  trainer.edit_weights([&](auto& weights) { draw_start<C>(be, weights, options.train.seed); });
  if (options.config) start_from<C>(be, trainer, options.config->config);
  RunFolder run(options.output, options.train.num_ckpt_keep, ranks);
  const auto config = config_json<C>(options.preset);
  auto* const kept = carried ? &*carried : nullptr;
  if (options.resume && run.resume(be, trainer, config, kept)) {
    std::printf("resumed at step %lld\n", static_cast<long long>(trainer.adam.step));
  }

  const auto openings = [&] {
    return trainer.read_weights([&](const auto& weights) { return gate_openings(be, *weights); });
  };
  const auto gates_at_start = openings();
  MoshiLoss losses{};
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
    losses =
        moshi_loss<Model>(be, *params, loader.upload(be, loaded.codes), options.loss, &grad, segment, ranks);
    return MicroBatch{losses.total(), segments.batch * loaded.frames};
  };
  const bool keeps = !options.config || options.config->config.do_ckpt;
  const bool finished = trainer.run(
      loss_and_gradient,
      {.log =
           [&](const StepReport& report) {
             nlohmann::json more = {{"text_loss", ranks.sum(losses.text_loss)},
                                    {"audio_loss", ranks.sum(losses.audio_loss)},
                                    {"loader_wait", loader.seconds_waited() / std::max(report.seconds, 1e-9)}};
             const auto gates = openings();
             for (const auto& gate : gates) more["gate_layer_" + std::to_string(gate.layer)] = gate.opening;
             run.log(report, more);
             check_gates(gates_at_start, gates);
           },
       .checkpoint =
           [&] {
             if (keeps) run.save(be, trainer, config, kept);
           }});
  if (!finished) {
    std::printf("stopped in good order; go on with --resume\n");
    return 0;
  }
  trainer.read_weights([&](const auto& weights) {
    if (ranks.rank() == 0) save_params(run.path() / "model.safetensors", be, weights, {.config = config});
  });
  std::printf("wrote %s\n", (run.path() / "model.safetensors").c_str());
  return 0;
}
