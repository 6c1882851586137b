// Training, for any configuration of the model. Each preset is compiled in a file of its own, beside this
// one.
#pragma once

#include <cstdio>
#include <string>

#include "../backend.hpp"
#include "mttt/data/batches.hpp"
#include "mttt/io/codes.hpp"
#include "mttt/io/model_config.hpp"
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

/// T: what the model stores. In bf16 it reads rounded copies of weights that are trained in float32.
template <mttt::MoshiConfig C, mttt::StorageType T>
int train(const Options& options) {
  using namespace mttt;
  using B = Device<T>;
  using Model = Moshi<C, B>;
  using Weights = typename Moshi<C, Device<Wide<T>>>::Params;
  B be;
  std::printf("training on %s, %s\n", name_of(be).c_str(), options.dtype.c_str());

  // The data: coded recordings, of which micro-batch i is a function of the seed and i alone.
  const Batches batches(load_code_folder(options.data), options.segments);
  std::printf("%s: %.0f s of coded recordings\n", options.data.c_str(),
              static_cast<double>(batches.total_frames()) / batches.frame_rate());

  Store<typename Model::Params, B> params(be);
  std::printf("%s: %.2f million parameters\n", options.preset.c_str(),
              static_cast<double>(count_elements(*params)) * 1e-6);

  // The inner learning rate is a parameter, so that it is saved with the weights; here it keeps its value.
  std::vector<GroupRule> rules;
  if constexpr (C.temporal.num_ttt_layers() > 0) {
    rules.push_back({.says = "base_lr", .matches = name_contains("base_lr"), .frozen = true});
  }
  Trainer<typename Model::Params, B, Weights> trainer(be, params, options.train, rules);

  // The model starts at random, or where the run was left.
  draw_start<C>(be, trainer.weights(), options.train.seed);
  trainer.weights_changed();
  RunFolder run(options.output, options.train.num_ckpt_keep);
  const auto config = config_json<C>(options.preset);
  if (options.resume && run.resume(be, trainer, config)) {
    std::printf("resumed at step %lld\n", static_cast<long long>(trainer.adam.step));
  }

  MoshiLoss losses{};
  const auto loss_and_gradient = [&](std::int64_t index, Weights& grad) {
    const auto scope = be.scope();
    losses = moshi_loss<Model>(be, *params, batches.make(be, index), options.loss, &grad);
    return MicroBatch{losses.total(), options.segments.batch * options.segments.frames};
  };
  const bool finished = trainer.run(
      loss_and_gradient,
      {.log =
           [&](const StepReport& report) {
             run.log(report, {{"text_loss", losses.text_loss}, {"audio_loss", losses.audio_loss}});
           },
       .checkpoint = [&] { run.save(be, trainer, config); }});
  if (!finished) {
    std::printf("stopped in good order; go on with --resume\n");
    return 0;
  }
  save_params(run.path() / "model.safetensors", be, trainer.weights(), {.config = config});
  std::printf("wrote %s\n", (run.path() / "model.safetensors").c_str());
  return 0;
}
