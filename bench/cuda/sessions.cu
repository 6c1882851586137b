// How many conversations one card holds: the published 7B model in bf16 and Mimi in float32, every session a
// frame from sound to sound within 80 ms, uploads and downloads included, by the host's clock.
//
// Three models: attention to 3000 frames; TTT-Linear beside attention to 100 and to 750 frames, in all
// layers. Weights are random, rings full, and sessions at different places of their TTT mini-batches.
//
// Counted, for B sessions: weights of 15.4 GB (19.7 with TTT), read once a frame; of each session its keys
// and values, 524,288 bytes a frame of context, read, and TTT's fast weights and gradients, 135 MB, read, and
// the gradients written; 2 FLOP a weight. The floor is bytes over 4.8 TB/s plus FLOPs over 790 TFLOP/s.
// Arguments: which of the models, 0 1 2 (none: all); "parts" times the parts of a frame instead of searching.
#include <cstdlib>
#include <cstring>
#include <string>

#include "full_size.cuh"
#include "mttt/lm/sessions.hpp"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"

namespace {
using namespace mttt;
using L = Cuda<bf16>;
using Codec = Mimi<presets::mimi_24khz, Cuda<float>>;
constexpr double limit = 80;  // ms

constexpr MoshiConfig with_ttt(Index context) {
  MoshiConfig config = presets::moshi_7b;
  config.temporal.context = context;
  config.temporal.ttt_layers = LayerSet::range(0, config.temporal.num_layers - 1);
  return config;
}

double gigabytes(Index bytes) { return static_cast<double>(bytes) * 1e-9; }

/// What the codec has learned.
struct Ears {
  Cuda<float> be;
  Store<Codec::Params, Cuda<float>> params;
  Store<Codec::Codebooks, Cuda<float>> books;
  explicit Ears(L& gpu) : be(gpu.as<float>()), params(be), books(be) {
    bench::draw(be, *params);
    Codec::derive(be, *params, *books);
  }
};

template <MoshiConfig C>
struct Card {
  using Gen = LMGen<C, L>;
  using Model = Moshi<C, L>;
  using Talk = Duplex<Codec, Gen, L>;
  using Everyone = Sessions<Talk, L>;
  static constexpr Index layers = C.temporal.num_layers;
  static constexpr bool learns = C.temporal.num_ttt_layers() > 0;

  L& be;
  Ears ears;
  Store<typename Model::Params, L> lm;
  typename Talk::Models models;
  std::vector<float> noise;

  explicit Card(L& gpu) : be(gpu), ears(gpu), lm(gpu), models{*ears.params, *ears.books, *lm} {
    bench::draw(be, *lm);
    Rng rng(3);
    for (Index i = 0; i < 8 * Talk::frame_size; ++i) noise.push_back(static_cast<float>(0.1 * rng.normal()));
  }

  /// All slots taken, by sessions that have talked for 5 minutes, none at the same place.
  void fill(Everyone& all) {
    for (Index b = 0; b < all.slots(); ++b) all.join({.seed = b});
    for_each_tensor(
        [&](std::string_view name, const auto& t) {
          using T = std::remove_const_t<typename std::remove_cvref_t<decltype(t)>::value_type>;
          if constexpr (std::is_same_v<T, std::int64_t>) {
            if (!name.ends_with("position") && !name.ends_with("offset")) return;
            std::vector<std::int64_t> at;
            for (Index b = 0; b < all.slots(); ++b) at.push_back(3750 + b);
            be.to_device(at.data(), const_cast<std::int64_t*>(t.data()), t.size());
          }
        },
        all.state());
  }

  double floor(Index sessions) const {
    const double state =
        2.0 * static_cast<double>(C.temporal.dim * C.temporal.context * layers) * sizeof(bf16) +
        (learns ? 1.5 * 135e6 : 0);
    const double weights = static_cast<double>(count_elements(*lm));
    const double b = static_cast<double>(sessions);
    return 1e3 * ((2 * weights + b * state) / bench::peak_bytes + 2 * b * weights / bench::peak_flops);
  }

  void parts(Everyone& all) {
    const Index n = all.slots();
    const auto scope = be.scope();
    auto& state = const_cast<typename Talk::State&>(all.state());
    const auto pcm = be.template make<float, dyn, dyn, 1>(n, Talk::frame_size);
    const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(n, Talk::hears, 1);
    const auto said = be.template make<std::int32_t, dyn, Gen::spoken>(n);
    const auto x = be.template make<bf16, dyn, dyn, Model::dim>(n, 1);
    const auto y = be.template make<bf16, dyn, dyn, Model::dim>(n, 1);
    const auto text = be.template make<bf16, dyn, C.text_card>(n);
    const auto audio = be.template make<bf16, dyn, C.card>(n);
    be.for_each(pcm.size(), bench::Fill<float>{pcm.data(), 0.2f});
    be.for_each(x.size(), bench::Fill<bf16>{x.data(), 1.0f});
    be.for_each(text.size(), bench::Fill<bf16>{text.data(), 3.0f});
    be.for_each(audio.size(), bench::Fill<bf16>{audio.data(), 3.0f});
    NoState none;
    const auto time = [&](const char* name, auto&& work) {
      std::printf("    %-18s %8.3f ms\n", name, bench::milliseconds(be, work, 3, 3));
    };
    time("encode",
         [&] { Codec::encode_step(ears.be, models.codec, models.books, state.encoder, pcm, codes); });
    be.fill(codes.data(), codes.size(), std::int32_t{7});
    time("temporal",
         [&] { Model::Transformer::step(be, models.lm.transformer, state.lm.transformer, x, y, Mask{}); });
    time("text product", [&] {
      Model::TextLinear::step(be, models.lm.text_linear, none, y, {text.data(), {n, 1, C.text_card}}, {});
    });
    be.for_each(text.size(), bench::Fill<bf16>{text.data(), 3.0f});
    const auto draw = [&](auto logits, const SampleOptions& options) {
      sample(be, logits, options, state.lm.seed.data(), state.lm.offset.data(), 0, said.data(), Gen::spoken);
    };
    time("text sample", [&] { draw(text, GenOptions{}.text); });
    time("8 audio samples", [&] {
      for (int k = 0; k < 8; ++k) draw(audio, GenOptions{}.audio);
    });
    time("language model", [&] {
      Gen::step(be, models.lm, state.lm, {codes.data(), {n, Gen::heard_streams}}, said, {.check = false});
    });
    time("decode",
         [&] { Codec::decode_step(ears.be, models.codec, models.books, state.decoder, codes, pcm); });
  }

  /// Whether so many sessions hold; false also where the card has no room for them.
  bool holds(Index sessions, bool with_parts) {
    constexpr int warm = 5, frames = 60;
    const Index before = CudaMemory::held();
    try {
      const double start = bench::now();
      Everyone all(be, models, sessions);
      fill(all);
      be.synchronize();
      const double ready = bench::now();
      std::vector<double> ms;
      std::vector<SessionId> ids;
      for (Index b = 0; b < sessions; ++b) ids.push_back({b, static_cast<std::uint64_t>(b + 1)});
      for (int t = 0; t < warm + frames; ++t) {
        for (const SessionId id : ids) {
          const float* from = noise.data() + static_cast<Index>((id.slot + t) % 8) * Talk::frame_size;
          std::copy(from, from + Talk::frame_size, all.hear(id).data());
        }
        const double begin = bench::now();
        all.step();
        if (t >= warm) ms.push_back(1e3 * (bench::now() - begin));
      }
      std::sort(ms.begin(), ms.end());
      const double p99 = ms[ms.size() - 1 - ms.size() / 100];
      std::size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      std::printf(
          "%5td sessions  p50 %7.2f  p99 %7.2f ms  floor %6.2f  %6.1f GB used  %7.1f MB a session  "
          "arena %5.1f GB  filled in %.1f s\n",
          sessions, ms[ms.size() / 2], p99, floor(sessions), static_cast<double>(total - free) * 1e-9,
          1e3 * gigabytes(CudaMemory::held() - before) / static_cast<double>(sessions),
          gigabytes(be.arena_bytes()), ready - start);
      if (with_parts) {
        parts(all);
        rows(all, ids);
      }
      std::fflush(stdout);
      return p99 <= limit;
    } catch (const Error& error) {
      std::printf("%5td sessions  %s\n", sessions, error.what());
      std::fflush(stdout);
      return false;
    }
  }

  /// Joining, keeping, returning and forking: how long the others wait.
  void rows(Everyone& all, const std::vector<SessionId>& ids) {
    const auto time = [&](const char* name, auto&& work) {
      be.synchronize();
      const double start = bench::now();
      work();
      be.synchronize();
      std::printf("    %-18s %8.3f ms\n", name, 1e3 * (bench::now() - start));
    };
    try {
      typename Everyone::Snapshot kept(be);
      for (int i = 0; i < 2; ++i) {
        time("reset", [&] { all.reset(ids[0], {.seed = 1}); });
        time("snapshot", [&] { all.snapshot(ids[0], kept); });
        time("restore", [&] { all.restore(ids[0], kept); });
      }
    } catch (const Error& error) {
      std::printf("    %s\n", error.what());
    }
  }

  /// The ladder, then the largest multiple of 8 that holds, to within `to`.
  void climb(const char* name, std::initializer_list<Index> ladder, Index to, bool with_parts) {
    std::printf("%s: %.1f GB of weights\n", name, gigabytes(lm.bytes() + ears.params.bytes()));
    Index good = 0, bad = 0;
    for (const Index n : ladder) {
      if (bad != 0) break;
      (holds(n, with_parts) ? good : bad) = n;
    }
    while (!with_parts && bad != 0 && bad - good > to) {
      const Index n = (good + bad) / 2 / to * to;
      if (n <= good) break;
      (holds(n, false) ? good : bad) = n;
    }
    std::printf("%s: %td sessions hold %.0f ms at p99\n\n", name, good, limit);
  }
};
}  // namespace

int main(int argc, char** argv) {
  try {
    bool wanted[3]{}, any = false, parts = false;
    for (int i = 1; i < argc; ++i) {
      const bool model = argv[i][0] >= '0' && argv[i][0] <= '2' && argv[i][1] == 0;
      if (model) wanted[argv[i][0] - '0'] = any = true;
      parts = parts || std::strcmp(argv[i], "parts") == 0;
    }
    std::printf("%s\n", detail::device_name().c_str());
    L be;
    if (wanted[0] || !any) {
      Card<presets::moshi_7b>(be).climb("attention to 3000 frames", {1, 4, 16, 32, 64, 80, 88}, 1, parts);
    }
    if (wanted[1] || !any) {
      Card<with_ttt(100)>(be).climb("TTT-Linear, attention to 100", {1, 16, 64, 128, 256, 512, 640}, 8,
                                    parts);
    }
    if (wanted[2] || !any) {
      Card<with_ttt(750)>(be).climb("TTT-Linear, attention to 750", {1, 16, 64, 128, 192, 240}, 4, parts);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
