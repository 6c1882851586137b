// What start.hpp declares, for any configuration of the model.
#pragma once

#include <cstdio>
#include <string>

#include "mttt/io/published.hpp"
#include "mttt/lm/gates.hpp"
#include "start.hpp"
#include "upload_start.hpp"

template <mttt::MoshiConfig C, mttt::StorageType T>
void Start<C, T>::draw(B& be, Trainer& trainer, bool without_base) {
  using namespace mttt;
  using Model = Moshi<C, Host>;
  std::vector<bool> drawn;
  for_each_tensor(
      [&](std::string_view name, const auto&) { drawn.push_back(!without_base || is_added(name)); },
      *trainer.params);
  Host host;
  Store<typename Model::Params, Host> start(host, 1, drawn);
  Rng rng(trainer.options.seed);
  Model::init(*start, rng);
  upload_start(be, trainer, start);
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

template <mttt::MoshiConfig C, mttt::StorageType T>
void Start<C, T>::from_files(B& be, Trainer& trainer, const mttt::TrainConfig& config) {
  using namespace mttt;
  auto stored = be.template as<mttt::Wide<typename B::Scalar>>();  // what the weights are in
  const auto both = [&](const auto& set) {                         // what trains and what does not
    set(be, *trainer.whole_params());
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

template <mttt::MoshiConfig C, mttt::StorageType T>
bool Start<C, T>::resume(B& be, Trainer& trainer, mttt::RunFolder& run, const nlohmann::json& config,
                         Carried* carried) {
  return run.resume(be, trainer, config, carried);
}
