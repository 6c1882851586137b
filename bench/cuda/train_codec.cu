// Training of mimi_small on the GPU: seconds of sound a second, milliseconds of a step and of its parts,
// TFLOP/s by count, memory; with products in TF32, as train_codec trains, and once in float32.
//
// Then the same with a discriminator that judges all of a segment, or 1 s of it.
//
// Counted: the products of convolutions and transformers, three of each (forward, inputs' and weights'
// gradient); those of the spectral loss: sound, reply and gradient; of the discriminator's convolutions and spectra
// of sound and reply 2 forward, 4 for its gradient, 1 for the reply's. Not counted: attention, codebooks,
// element-wise work. The share is of 67 TFLOP/s, what an H200 does in float32 by its datasheet.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/cuda.cuh"
#include "mttt/presets/mimi.hpp"
#include "mttt/train/codec_loss.hpp"
#include "mttt/train/trainer.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using B = Cuda<float>;
constexpr MimiConfig config = presets::mimi_small;
using Codec = Mimi<config, B>;
using HostCodec = Mimi<config, Cpu<float>>;
constexpr double peak = 67e12;

/// Multiplications of encoder and decoder for a second of sound.
double multiplications() {
  constexpr SeanetConfig s = config.seanet;
  double sum = 0, rate = static_cast<double>(config.sample_rate);
  const auto conv = [&](Index in, Index out, Index kernel) {
    sum += static_cast<double>(in * out * kernel) * rate;
  };
  conv(s.channels, s.n_filters, s.kernel_size + s.last_kernel_size);  // of the decoder the last
  for (Index i = 0; i < s.stages(); ++i) {
    const Index width = s.width(i), inner = width / s.compress, ratio = s.ratio(s.stages() - 1 - i);
    for (int side = 0; side < 2; ++side)
      conv(width, inner, (s.residual_kernel_size + 1) * s.n_residual_layers);
    rate /= static_cast<double>(ratio);
    for (int side = 0; side < 2; ++side) conv(width, 2 * width, 2 * ratio);
  }
  conv(s.width(s.stages()), s.dimension, s.kernel_size + s.last_kernel_size);
  constexpr MimiTransformerConfig t = config.transformer;
  conv(t.d_model, 4 * t.d_model + 2 * t.dim_feedforward, 2 * t.num_layers);
  conv(s.dimension, s.dimension, 2);  // downsample
  return sum;
}

template <class F>
double mean_ms(B& be, int runs, const F& f) {
  be.synchronize();
  const double start = bench::now();
  for (int i = 0; i < runs; ++i) f();
  be.synchronize();
  return 1e3 * (bench::now() - start) / runs;
}

void train(Index batch, Index frames, int runs, bool tf32) {
  B be;
  be.tf32(tf32);
  Cpu<float> cpu;
  Store<Codec::Params, B> params(be);
  {
    Store<HostCodec::Params, Cpu<float>> host(cpu);
    Rng rng{1};
    HostCodec::init(*host, rng);
    upload(be, host, params);
  }
  Trainer<Codec::Params, B> trainer(
      be, params, {.max_steps = 100000, .lr = 3e-4},
      {{.says = "codebooks", .matches = name_contains("_codebook"), .frozen = true}});
  CodecTraining<Codec, B> training(be, {.seed = 1});

  // Voices of a kind: harmonics of a gliding pitch, in noise.
  const Index samples = frames * Codec::frame_size;
  std::vector<float> sound(static_cast<std::size_t>(batch * samples));
  Rng rng(2);
  for (Index b = 0; b < batch; ++b) {
    const double pitch = 80 + 200 * rng.uniform();
    for (Index i = 0; i < samples; ++i) {
      const double t = static_cast<double>(i) / 24000, phase = 6.283185307 * pitch * t * (1 + 0.1 * t);
      sound[static_cast<std::size_t>(b * samples + i)] =
          static_cast<float>(0.1 * std::sin(phase) + 0.06 * std::sin(3 * phase) + 0.03 * std::sin(7 * phase) +
                             0.005 * rng.normal());
    }
  }
  const auto pcm = be.make<float, dyn, dyn, 1>(batch, samples);
  be.to_device(sound.data(), pcm.data(), pcm.size());

  CodecLoss loss{};
  const auto loss_and_gradient = [&](std::int64_t pass, Codec::Params& grad) {
    loss = training(*params, pcm, pass, &grad);
    return MicroBatch{loss.total, batch * frames};
  };
  const auto step = [&] { trainer.step(loss_and_gradient); };
  step();  // the arena grows, kernels are loaded
  const CodecLoss first = loss;
  step();
  const double whole = mean_ms(be, runs, step);
  const double forward = mean_ms(be, runs, [&] { training(*params, pcm, 0, nullptr); });
  const double optimiser = mean_ms(be, runs, [&] {
    trainer.step([](std::int64_t, Codec::Params&) { return MicroBatch{0, 0}; });
  });
  SpectralLoss<B> spectra(be, 24000);
  const Tensor<float, dyn, dyn> flat(pcm.data(), {batch, samples});
  const auto dy = be.make<float, dyn, dyn>(batch, samples);
  const auto total = be.make<double, 1>();
  const double spectral = mean_ms(be, runs, [&] { spectra.queue(flat, flat, 1, total.data(), dy); });
  const auto latent = be.make<float, dyn, dyn, Codec::dimension>(batch, frames);
  const double encoder = mean_ms(be, runs, [&] { Codec::encode_latent(be, *params, pcm, latent); });

  const double seconds = static_cast<double>(batch * samples) / 24000;
  const double codec = 6 * multiplications() * seconds, spectrum = 3 * spectra.flops(24000) * seconds;
  const double speed = (codec + spectrum) / (1e-3 * whole);
  std::printf(
      "%s, %td x %td frames (%.0f s) a step: %.0f s of sound a second\n"
      "  %.2f ms a step: forward %.2f (encoder %.2f), backward %.2f, spectral loss and gradient %.2f, "
      "optimiser "
      "%.2f\n"
      "  %.2f GFLOP a second of sound for the codec, %.2f for the spectra: %.1f TFLOP/s, %.1f %% of 67\n"
      "  activations %.2f GB, %.1f MB a second of sound; loss %.3f, then %.3f\n",
      tf32 ? "TF32" : "float32", batch, frames, seconds, 1e3 * seconds / whole, whole, forward, encoder,
      whole - forward - optimiser, spectral, optimiser, 1e-9 * codec / seconds, 1e-9 * spectrum / seconds,
      1e-12 * speed, 100 * speed / peak, 1e-9 * static_cast<double>(be.arena_bytes()),
      1e-6 * static_cast<double>(be.arena_bytes()) / seconds, first.total, loss.total);
  std::fflush(stdout);

  using Judge = Adversary<DiscriminatorConfig{.filters = 16}, Cuda<bf16>>;
  for (const Index judged : {samples, std::min<Index>(24000, samples)}) {
    Judge adversary(be, {.adversarial = 1, .features = 1, .samples = judged, .max_steps = 100000});
    const auto judged_step = [&] {
      trainer.step([&](std::int64_t pass, Codec::Params& grad) {
        loss = training(*params, pcm, pass, &grad, &adversary);
        adversary.update();
        return MicroBatch{loss.total, batch * frames};
      });
    };
    judged_step();
    const AdversaryLoss start = loss.adversary;
    judged_step();
    const double with = mean_ms(be, runs, judged_step);
    const double work =
        7 * 2 * Judge::Discriminator::work(24000) * static_cast<double>(batch * judged) / 24000;
    std::printf(
        "  judged (16 filters, bf16), %.1f s of each: %.2f ms a step, %.2f of it the discriminator's (%.0f "
        "%%), "
        "%.1f GFLOP a second of sound, %.1f TFLOP/s; activations %.2f GB\n"
        "    discriminator %.3f, then %.3f; features %.3f, then %.3f; adversarial %.3f, then %.3f\n",
        static_cast<double>(judged) / 24000, with, with - whole, 100 * (with - whole) / with,
        14e-9 * Judge::Discriminator::work(24000), 1e-9 * work / (with - whole),
        1e-9 * static_cast<double>(be.arena_bytes()), start.discriminator, loss.adversary.discriminator,
        start.features, loss.adversary.features, start.adversarial, loss.adversary.adversarial);
    std::fflush(stdout);
  }
}

}  // namespace

int main() {
  try {
    std::printf("%s, mimi_small, 8 codebooks\n", detail::device_name().c_str());
    train(16, 13, 20, true);
    train(32, 25, 20, true);
    train(64, 50, 10, true);
    train(32, 25, 10, false);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
