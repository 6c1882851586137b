// Training of Mimi, for any configuration. Each preset is compiled in a file of its own, beside this one.
#pragma once

#include <cstdio>
#include <string>

#include "../backend.hpp"
#include "mttt/data/sounds.hpp"
#include "mttt/io/run_folder.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/train/codec_loss.hpp"
#include "options.hpp"

/// What the discriminator's activations are stored in: tensor cores multiply bf16.
#ifdef MTTT_EXAMPLES_CUDA
using JudgeDevice = Device<mttt::bf16>;
#else
using JudgeDevice = Device<float>;
#endif

inline mttt::DType dtype_named(const std::string& name) {
  return name == "f16" ? mttt::DType::F16 : name == "bf16" ? mttt::DType::BF16 : mttt::DType::F32;
}

/// The same random start on every backend, drawn in the host's memory; then codebooks placed where the
/// sounds' latents are.
template <class Codec, class B>
void draw_start(B& be, mttt::Store<typename Codec::Params, B>& params, const mttt::Sounds& sounds,
                const Options& options) {
  using namespace mttt;
  using HostCodec = Mimi<Codec::config, Host>;
  Host host;
  Store<typename HostCodec::Params, Host> start(host);
  Rng rng(options.train.seed);
  HostCodec::init(*start, rng);
  upload(be, start, params);

  const auto scope = be.scope();
  const Index rows = options.batch * options.segment_frames;
  const Index batches = std::min<Index>(64, (4 * Codec::card + rows - 1) / rows);
  const auto latents = be.template make<float, dyn, dyn, Codec::dimension>(batches, rows);
  for (Index i = 0; i < batches; ++i) {
    const auto inner = be.scope();
    constexpr std::int64_t apart = std::int64_t{1} << 40;  // from what is trained on
    Codec::encode_latent(be, *params, sounds.make(be, apart + i),
                         {latents[i].data(), {options.batch, options.segment_frames, Codec::dimension}});
  }
  RvqTraining<Codec::config.quantizer, B>::start(be, params->quantizer, latents.flat_rows(), rows, rng);
  std::printf("codebooks placed on %td frames\n", batches * rows);
}

/// Where the backend has such products.
template <class B>
void use_tf32(B& be, bool wanted) {
  if constexpr (requires { be.tf32(wanted); }) be.tf32(wanted);
}

template <mttt::MimiConfig C, mttt::DiscriminatorConfig D>
int train_codec(const Options& options) {
  using namespace mttt;
  using B = Device<float>;
  using Codec = Mimi<C, B>;
  using Params = typename Codec::Params;
  B be;
  use_tf32(be, options.tf32);
  std::printf("training on %s\n", name_of(be).c_str());

  // The data: recordings, of which micro-batch i is a function of the seed and i alone.
  SoundOptions segments{options.batch, options.segment_frames * Codec::frame_size, options.train.seed};
  std::optional<Sounds> held_out;
  if (!options.held_out_voices.empty()) held_out.emplace(options.held_out_voices, segments);
  segments.gain_db = options.gain_db;
  const Sounds sounds(options.voices, segments);
  const double seconds = static_cast<double>(sounds.total_samples()) / static_cast<double>(C.sample_rate);
  std::printf("%.0f s of sound\n", seconds);

  // Codebooks are no parameters of the optimiser: they follow what they stand for (rvq_training.hpp). They
  // are saved with the weights, under their published names.
  Store<Params, B> params(be);
  std::printf("%s: %.2f million parameters\n", options.preset.c_str(),
              static_cast<double>(count_elements(*params)) * 1e-6);
  Trainer<Params, B> trainer(be, params, options.train,
                             {{.says = "codebooks", .matches = name_contains("_codebook"), .frozen = true}});
  auto config_of_loss = options.loss;
  config_of_loss.seed = options.train.seed;
  CodecTraining<Codec, B> training(be, config_of_loss);

  // A discriminator learns beside it, and has a checkpoint of its own.
  std::optional<Adversary<D, JudgeDevice>> adversary;
  if (options.adversary.wanted()) {
    AdversaryOptions more = options.adversary;
    more.samples = static_cast<Index>(options.adversarial_seconds * static_cast<double>(C.sample_rate));
    more.max_steps = options.train.max_steps;
    more.num_microbatches = options.train.num_microbatches;
    more.seed = options.train.seed;
    adversary.emplace(be, more);
    std::printf("discriminator: %.2f million parameters, from step %lld on\n",
                static_cast<double>(count_elements(*adversary->trainer().params)) * 1e-6,
                static_cast<long long>(more.from_step));
  }

  RunFolder run(options.output, options.train.num_ckpt_keep);
  const nlohmann::json config = {{"preset", options.preset}};
  if (options.resume && run.resume(be, trainer, config)) {
    std::printf("resumed at step %lld\n", static_cast<long long>(trainer.adam.step));
    if (adversary &&
        !run.resume_beside("adversary", trainer.adam.step, adversary->full(), adversary->trainer(), config))
      std::printf("the discriminator begins anew: the checkpoint has none\n");
  } else if (!options.from.empty()) {
    load_params(options.from, be, params);
    std::printf("started from %s\n", options.from.c_str());
  } else {
    draw_start<Codec>(be, params, sounds, options);
  }

  CodecLoss last{};
  std::optional<StepReport> learnt;
  const auto loss_and_gradient = [&](std::int64_t index, Params& grad) {
    const auto scope = be.scope();
    const bool judged = adversary && trainer.adam.step >= options.adversary.from_step;
    last = training(*params, sounds.make(be, index), index, &grad, judged ? &*adversary : nullptr);
    if (judged && adversary->learns(index) && (index + 1) % options.train.num_microbatches == 0)
      learnt = adversary->update();
    return MicroBatch{last.total, options.batch * options.segment_frames};
  };
  const auto log = [&](const StepReport& report) {
    nlohmann::json more;
    const auto terms = [&](const std::string& prefix, const CodecLoss& loss) {
      more[prefix + "spectral_loss"] = loss.spectral;
      more[prefix + "waveform_loss"] = loss.waveform;
      more[prefix + "commitment_loss"] = loss.commitment;
      more[prefix + "snr_db"] = loss.snr;
    };
    terms("", last);
    if (learnt) {
      more["adversarial_loss"] = last.adversary.adversarial;
      more["feature_loss"] = last.adversary.features;
      more["discriminator_loss"] = last.adversary.discriminator;
      more["logit_real"] = last.adversary.logit_real;
      more["logit_fake"] = last.adversary.logit_fake;
      more["discriminator_grad_norm"] = learnt->gradient_norm;
    }
    if (held_out) {  // all codebooks, everything quantised
      const auto scope = be.scope();
      const CodecLoss loss = training(*params, held_out->make(be, 0), 0, nullptr);
      more["held_out_loss"] = loss.total;
      terms("held_out_", loss);
    }
    double restarts = 0;
    const auto books = training.codebook_use();
    for (std::size_t q = 0; q < books.size(); ++q) {
      more["perplexity_" + std::to_string(q)] = books[q].perplexity;
      restarts += books[q].restarts;
    }
    more["restarted_codes"] = restarts;  // since the line before
    run.log(report, more);
  };
  const auto path = run.path() / "model.safetensors";
  const auto save_model = [&] {
    save_params(path, be, params,
                {.dtype = dtype_named(options.model_dtype),
                 .config = config,
                 .metadata = {{"training", detail::cat(trainer.adam.step, " steps on ", std::llround(seconds),
                                                       " s of sound")},
                              {"seed", std::to_string(options.train.seed)}}});
  };
  const auto loss_gradient_and_model = [&](std::int64_t index, Params& grad) {
    if (options.model_freq > 0 && trainer.adam.step > 0 && trainer.adam.step % options.model_freq == 0 &&
        index % options.train.num_microbatches == 0)
      save_model();
    return loss_and_gradient(index, grad);
  };
  const auto checkpoint = [&] {
    if (adversary)
      run.save_beside("adversary", trainer.adam.step, adversary->full(), adversary->trainer(), config);
    run.save(be, trainer, config);
  };
  const bool finished = trainer.run(loss_gradient_and_model, {.log = log, .checkpoint = checkpoint});
  save_model();
  std::printf("wrote %s\n", path.c_str());
  if (!finished) std::printf("stopped in good order; go on with --resume\n");
  return 0;
}
