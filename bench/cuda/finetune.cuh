// Fine-tuning of a Moshi of full size on one GPU: adapters, or TTT layers, on a base that stays. Tokens a
// second, TFLOP/s by count, memory, and what a checkpoint costs.
//
// A token is moshi-finetune's: a prediction, of which a frame has 1 + dep_q (text and the spoken codebooks,
// 9). FLOPs are counted as train/work.hpp says. The share is of 790 TFLOP/s, what cuBLAS reaches on an H200
// in bf16 products of 8192^3.
#pragma once

#include <filesystem>
#include <string>

#include "mttt/io/checkpoint.hpp"
#include "mttt/train/work.hpp"
#include "train.cuh"

namespace bench {

inline double gigabytes_in_use() {
  std::size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  return 1e-9 * static_cast<double>(total - free);
}

/// `trains`: the names of what trains beside the base, all else is frozen.
template <MoshiConfig C>
void finetune(const char* name, Index batch, Index frames, int micro_batches, int runs,
              const std::vector<GroupRule>& trains, const LeaveOut& is_base) {
  using B = Cuda<bf16>;
  using Model = Moshi<C, B>;
  using P = typename Model::Params;
  using M = typename Moshi<C, Cuda<float>>::Params;
  const double before = gigabytes_in_use();
  B be;
  std::printf("%s, %s: %d x %td x %td frames a step\n", mttt::detail::device_name().c_str(), name,
              micro_batches, batch, frames);
  std::fflush(stdout);
  Store<P, B> params(be);
  draw_start<C>(be, *params);
  for_each_tensor(
      [&](std::string_view tensor, auto& t) {  // adapters that change nothing yet
        if (tensor.ends_with(".lora_B.weight")) be.fill(t.data(), t.size(), bf16(0));
      },
      *params);
  std::vector<GroupRule> rules{
      {.says = "the base", .matches = [](std::string_view) { return true; }, .frozen = true}};
  rules.insert(rules.end(), trains.begin(), trains.end());
  Trainer<P, B, M> trainer(be, params, {.max_steps = 1000, .lr = 1e-4, .num_microbatches = micro_batches},
                           rules);
  double trained = 0;
  std::size_t number = 0;
  for_each_tensor(
      [&](std::string_view, const auto& t) {
        if (!trainer.groups[number++].frozen) trained += static_cast<double>(t.size());
      },
      *params);

  std::vector<std::int32_t> drawn;
  Rng rng(5);
  for (Index i = 0; i < batch * C.streams() * frames; ++i)
    drawn.push_back(static_cast<std::int32_t>(
        rng.below(static_cast<std::uint64_t>(i / frames % C.streams() == 0 ? C.text_card : C.card))));
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), frames);
  be.to_device(drawn.data(), codes.data(), codes.size());

  double loss = 0;
  const auto step = [&] {
    trainer.step([&](std::int64_t, M& grad) {
      loss = moshi_loss<Model>(be, *params, codes, {}, &grad).total();
      return MicroBatch{loss, batch * frames};
    });
  };
  step();  // the arena grows, kernels are loaded
  const double first_loss = loss;
  step();
  const double ms = mean_ms(be, runs, step);
  const double optimiser = mean_ms(be, runs, [&] {
    trainer.step([](std::int64_t, M&) { return MicroBatch{0, 0}; });
  });

  const TrainWork work = train_work<C>(*params, trainer.groups, batch, frames);
  const double n = static_cast<double>(micro_batches * batch * frames),
               m = static_cast<double>(micro_batches);
  const auto tera = [&](double flops) { return 1e-12 * flops * m / (1e-3 * ms); };
  std::printf(
      "  %.1f M parameters, %.1f M train; loss %.3f, then %.3f\n"
      "  %.0f frames/s = %.0f tokens/s; %.0f ms a step, of which the optimiser %.1f\n"
      "  %.3f PFLOP of use, %.3f again: %.1f TFLOP/s, %.1f %% of 790; with what is computed again %.1f %%\n"
      "  memory: %.1f GB in use, of it weights %.1f, gradient, moments and originals %.1f, activations "
      "%.1f\n",
      1e-6 * static_cast<double>(count_elements(*params)), 1e-6 * trained, first_loss, loss, 1e3 * n / ms,
      static_cast<double>(C.spoken_streams()) * 1e3 * n / ms, ms, optimiser, 1e-15 * work.use * m,
      1e-15 * work.again * m, tera(work.use), 100e12 * tera(work.use) / peak,
      100e12 * tera(work.use + work.again) / peak, gigabytes_in_use() - before,
      1e-9 * static_cast<double>(params.bytes()), 4e-9 * static_cast<double>(trainer.grad.bytes()),
      1e-9 * static_cast<double>(be.arena_bytes()));
  std::fflush(stdout);

  const auto path = std::filesystem::temp_directory_path() / "mttt_bench_checkpoint.safetensors";
  const auto file = [&](const char* what, const auto& save) {
    const auto start = std::chrono::steady_clock::now();
    save();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double bytes = static_cast<double>(std::filesystem::file_size(path));
    std::printf("  %s: %.2f GB in %.0f ms, %.2f GB/s\n", what, 1e-9 * bytes, 1e3 * seconds,
                1e-9 * bytes / seconds);
    std::filesystem::remove(path);
  };
  const LeaveOut base = frozen_base(trainer, is_base);
  file("a checkpoint to resume from, without the base", [&] { save_training(path, be, trainer, {}, base); });
  file("adapters alone, bf16",
       [&] { save_weights(path, be, trainer, SaveOptions{.dtype = DType::BF16, .config = {}}, base); });
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace bench
