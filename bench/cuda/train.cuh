// Training of a Moshi on the GPU: frames a second, milliseconds of a step and of its parts, TFLOP/s by count.
//
// Counted, for F frames: 6 x weights x F, the weights that frames are multiplied with (all but embeddings;
// each of the depformer's 8 steps has its own, so that every weight is used once a frame); attention,
// 12 x keys x width x F a layer, keys being half the frames of a sequence that the window holds, else the
// window; the depformer's attention, 12 x 4.5 x width x 8 x F a layer. TTT's inner loops are not counted.
// The share is of 790 TFLOP/s, what cuBLAS reaches on an H200 in bf16 products of 8192^3.
#pragma once

#include <chrono>
#include <cstdio>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/cuda.cuh"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/trainer.hpp"

namespace bench {
using namespace mttt;

constexpr double peak = 790e12;

template <class T>
struct FillNormal {
  T* to;
  double deviation;
  std::uint64_t seed;
  MTTT_HD void operator()(Index i) const {
    const PhiloxBlock block = philox(seed, static_cast<std::uint64_t>(i));
    to[i] = static_cast<T>(
        static_cast<float>(deviation * std::sqrt(-2.0 * std::log(uniform_from(block.word[0]))) *
                           std::cos(6.283185307179586 * uniform_from(block.word[1]))));
  }
};

/// A start drawn on the GPU, of the sizes that the blocks' own init draws: a host takes a minute for a
/// billion.
template <MoshiConfig C, class B, class P>
void draw_start(B& be, P& params) {
  std::uint64_t seed = 1;
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        using T = typename std::remove_cvref_t<decltype(t)>::value_type;
        const auto ends = [&](std::string_view end) { return name.ends_with(end); };
        int wide = 0;
        for (const Index extent : t.extents()) wide += extent > 1;
        const auto constant = [&](double value) { be.fill(t.data(), t.size(), static_cast<T>(value)); };
        if (ends("gating_alpha")) {
          constant(C.temporal.initial_gating_alpha);
        } else if (ends("base_lr")) {
          constant(C.temporal.ttt.base_lr);
        } else if (ends("norm_bias") || ends("lr_bias") || ends("token_idx") || ends(".bias") ||
                   ends(".b1")) {
          constant(0);
        } else if (ends("norm_weight") || wide < 2) {
          constant(1);
        } else {
          const bool inner = ends("lr_weight") || ends(".W1");
          const double deviation = inner ? 0.02 : 1 / std::sqrt(static_cast<double>(t.extent(t.rank - 1)));
          be.for_each(t.size(), FillNormal<T>{t.data(), deviation, ++seed});
        }
      },
      params);
}

/// Mean milliseconds of a call.
template <class B, class F>
double mean_ms(B& be, int runs, const F& f) {
  be.synchronize();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < runs; ++i) f();
  be.synchronize();
  return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / runs;
}

template <MoshiConfig C, class T>
void train(const char* name, Index batch, Index frames, int runs) {
  using B = Cuda<T>;
  using Model = Moshi<C, B>;
  using P = typename Model::Params;
  using M = typename Moshi<C, Cuda<Wide<T>>>::Params;
  B be;
  std::printf("%s, %s: %s, %td x %td frames a step\n", detail::device_name().c_str(), name,
              std::same_as<T, bf16> ? "bf16 with float32 weights, moments and gradients" : "float32", batch,
              frames);
  std::fflush(stdout);
  Store<P, B> params(be);
  draw_start<C>(be, *params);
  double weights = 0;
  for_each_tensor(
      [&](std::string_view tensor, const auto& t) {
        if (tensor.find("emb") == tensor.npos) weights += static_cast<double>(t.size());
      },
      *params);
  Trainer<P, B, M> trainer(be, params, {.max_steps = 1000, .lr = 1e-4});

  std::vector<std::int32_t> drawn;
  Rng rng(5);
  for (Index i = 0; i < batch * C.streams() * frames; ++i)
    drawn.push_back(static_cast<std::int32_t>(
        rng.below(static_cast<std::uint64_t>(i / frames % C.streams() == 0 ? C.text_card : C.card))));
  const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), frames);
  be.to_device(drawn.data(), codes.data(), codes.size());

  double loss = 0;
  const auto loss_and_gradient = [&](std::int64_t, M& grad) {
    loss = moshi_loss<Model>(be, *params, codes, {}, &grad).total();
    return MicroBatch{loss, batch * frames};
  };
  const auto step = [&] { trainer.step(loss_and_gradient); };
  step();  // the arena grows, kernels are loaded
  const double first_loss = loss;
  step();
  const double whole = mean_ms(be, runs, step);
  const double forward = mean_ms(be, runs, [&] { moshi_loss<Model>(be, *params, codes); });
  const double both = mean_ms(be, runs, [&] { loss_and_gradient(0, *trainer.grad); });
  const double norm = mean_ms(be, runs, [&] {
    trainer.step([](std::int64_t, M&) { return MicroBatch{0, 0}; });
  });

  const double n = static_cast<double>(batch * frames);
  const double keys = C.temporal.context < frames ? static_cast<double>(C.temporal.context)
                                                  : 0.5 * static_cast<double>(frames + 1);
  const double attention = 12 * keys * static_cast<double>(C.temporal.dim * C.temporal.num_layers);
  const double depth =
      12 * 0.5 * static_cast<double>((C.dep_q + 1) * C.depformer.dim * C.depformer.num_layers * C.dep_q);
  const double flops = n * (6 * weights + attention + depth), speed = flops / (1e-3 * whole);
  const double million = 1e-6 * static_cast<double>(count_elements(*params));
  const double bytes = 1e6 * million * (std::same_as<T, bf16> ? 30 + 4 + 4 : 28 + 4 + 4);
  std::printf(
      "  %.1f M parameters, %.1f M of them multiplied with; loss %.3f, then %.3f\n"
      "  %.0f frames/s, %.2f ms a step: forward %.2f, backward %.2f, optimiser %.2f\n"
      "  FLOPs = frames x (6 x weights + 12 x keys x width x layers + the same over the depformer's steps)\n"
      "        = %.3f TFLOP: %.1f TFLOP/s, %.1f %% of 790\n"
      "  optimiser (zeros, norm, AdamW): %.2f GB, %.0f GB/s;  activations %.1f GB\n\n",
      million, 1e-6 * weights, first_loss, loss, 1e3 * n / whole, whole, forward, both - forward, norm,
      1e-12 * flops, 1e-12 * speed, 100 * speed / peak, 1e-9 * bytes, 1e-6 * bytes / norm,
      1e-9 * static_cast<double>(be.arena_bytes()));
  std::fflush(stdout);
}

template <class F>
int guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace bench
