// One frame of Moshi 7B on the GPU, one session: the language model's step, its parts, and the whole frame from
// sound to sound, each as one recorded graph; random weights, drawn on the GPU.
//
// Counted: every weight that a frame multiplies with once, and the keys and values attended to. Shares are of
// 4.8 TB/s, an H200's memory by its datasheet; a plain copy reaches 4.2 to 4.3.
#pragma once

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/lm/duplex.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"
#include "timing.cuh"

namespace bench {
using namespace mttt;
using Codec = Mimi<presets::mimi_24khz, Cuda<float>>;
using HostCodec = Mimi<presets::mimi_24khz, Cpu<float>>;
constexpr MoshiConfig config = presets::moshi_7b;

/// Numbers of the sizes that training leaves, so that nothing overflows.
template <class B, class P>
void draw(B& be, P& params) {
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        using T = typename std::remove_cvref_t<decltype(t)>::value_type;
        if constexpr (std::is_integral_v<T>) {
          be.for_each(t.size(),
                      Fill<T>{t.data(), 120, sizeof(T) == 1 && std::is_unsigned_v<T> ? 128.0f : 0.0f});
        } else if (name.ends_with("scale")) {
          be.fill(t.data(), t.size(), T(1.0f / 4096));
        } else if (name.ends_with("alpha")) {
          be.fill(t.data(), t.size(), T(1));
        } else {
          be.for_each(t.size(),
                      Fill<T>{t.data(), 1.7f / std::sqrt(static_cast<float>(t.extent(t.rank - 1)))});
        }
      },
      params);
}

/// Bytes of the weights that a frame multiplies with.
template <class P>
double weight_bytes(const P& params, std::string_view part = "") {
  double bytes = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if (name.find("emb") != name.npos || name.find(part) == name.npos) return;
        bytes +=
            static_cast<double>(t.size()) * sizeof(typename std::remove_cvref_t<decltype(t)>::value_type);
      },
      params);
  return bytes;
}

template <class B, class F>
double show(B& be, const char* name, double bytes, F&& work) {
  work();  // the arena grows, kernels are loaded
  be.synchronize();
  CudaGraph graph = be.capture(work);
  const auto ms = times(be.stream(), 100, 1, [&] { graph.launch(); });
  const double p50 = ms[ms.size() / 2];
  std::printf("%-34s %5td nodes  p50 %7.3f ms  p99 %7.3f ms", name, graph.nodes(), p50,
              ms[ms.size() * 99 / 100]);
  if (bytes > 0)
    std::printf("  %6.2f GB  %5.0f GB/s  %4.1f %%", 1e-9 * bytes, 1e-6 * bytes / p50,
                1e5 * bytes / p50 / peak_bytes);
  std::printf("\n");
  std::fflush(stdout);
  return p50;
}

template <class B>
void frame(B& be, const char* weights) {
  using Model = Moshi<config, B>;
  using Gen = LMGen<config, B>;
  using Talk = Duplex<Codec, Gen, B>;
  Store<typename Model::Params, B> lm(be);
  draw(be, *lm);
  Cuda<float> codec_be = be.template as<float>();
  Store<Codec::Params, Cuda<float>> codec(codec_be);
  {
    Cpu<float> cpu;
    Store<HostCodec::Params, Cpu<float>> host(cpu);
    Rng rng{1};
    HostCodec::init(*host, rng);
    upload(codec_be, host, codec);
  }
  Store<Codec::Codebooks, Cuda<float>> books(codec_be);
  Codec::derive(codec_be, *codec, *books);
  const typename Talk::Models models{*codec, *books, *lm};
  Store<typename Talk::State, B> state(be);
  Store<typename Talk::Input, B> in(be);
  Store<typename Talk::Output, B> out(be);
  const std::uint8_t on = 1;
  be.to_device(&on, in->active.data(), 1);
  be.for_each(in->pcm.size(), Fill<float>{in->pcm.data(), 0.1f});
  be.fill(out->heard.data(), out->heard.size(), std::int32_t{17});
  const GenOptions options{.check = false};

  const double all = weight_bytes(*lm), temporal = weight_bytes(*lm, "transformer"),
               depth = weight_bytes(*lm, "depformer") + weight_bytes(*lm, "linears");
  std::printf("%s weights, one session; %.2f GB of parameters\n", weights, 1e-9 * lm.bytes());
  const auto full = [&](std::int64_t seen) {
    Talk::reset(be, models, *state, Mask{});
    for_each_tensor(
        [&](std::string_view name, auto& t) {
          using T = typename std::remove_cvref_t<decltype(t)>::value_type;
          if constexpr (std::is_same_v<T, std::int64_t>) {
            if (name.ends_with("position")) be.fill(t.data(), t.size(), seen);
          } else if constexpr (std::is_same_v<T, bf16>) {
            be.for_each(t.size(), Fill<T>{t.data(), 1});
          }
        },
        *state);
    be.fill(state->lm.offset.data(), Index{1}, seen);
  };
  const auto x = be.template make<bf16, dyn, dyn, Model::dim>(1, 1),
             h = be.template make<bf16, dyn, dyn, Model::dim>(1, 1);
  be.for_each(x.size(), Fill<bf16>{x.data(), 1});
  be.for_each(h.size(), Fill<bf16>{h.data(), 1});
  for (const std::int64_t seen : {20, 5000}) {
    full(seen);
    const double keys = static_cast<double>(std::min<Index>(seen, config.temporal.context)),
                 rings = 4 * keys * static_cast<double>(config.temporal.dim * config.temporal.num_layers);
    std::printf("%.0f frames attended to\n", keys);
    show(be, "  language model", all + rings,
         [&] { Gen::step(be, *lm, state->lm, out->heard, out->said, options, in->active); });
    show(be, "  with Mimi", all + rings, [&] { Talk::step(be, models, *state, *in, *out, options); });
    show(be, "  temporal transformer", temporal + rings,
         [&] { Model::Transformer::step(be, lm->transformer, state->lm.transformer, x, h, Mask{}); });
  }
  const auto text = be.template make<bf16, dyn, dyn, config.text_card>(1, 1);
  const auto codes = be.template make<std::int32_t, dyn, Gen::spoken>(1);
  be.fill(codes.data(), codes.size(), std::int32_t{3});
  be.for_each(text.size(), Fill<bf16>{text.data(), 3});
  NoState none;
  show(be, "text logits", 2.0 * config.text_card * Model::dim,
       [&] { Model::TextLinear::step(be, lm->text_linear, none, h, text, Mask{}); });
  show(be, "depformer, 8 steps and draws", depth,
       [&] { Gen::say_audio(be, *lm, state->lm, h, codes, options, {}); });
  show(be, "a text sample", 0, [&] {
    sample(be, Tensor<bf16, dyn, config.text_card>(text.data(), {1, config.text_card}), options.text,
           state->lm.seed.data(), state->lm.offset.data(), 0, codes.data());
  });
  show(be, "embeddings", 0, [&] {
    const auto scope = be.scope();
    const auto inputs = be.template make<std::int32_t, dyn, dyn, dyn>(1, config.streams(), 1);
    Model::embed(be, *lm, inputs, x);
  });
}

/// A program's work, whose errors end it with their message.
template <class F>
int guarded(F&& work) {
  try {
    std::printf("%s\n", mttt::detail::device_name().c_str());
    work();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace bench
