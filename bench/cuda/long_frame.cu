// An hour of conversation on the GPU: 48,000 frames of the published 7B model in bf16, with TTT-Linear in its
// top 16 layers beside attention to 750 frames, in one recorded graph. Rings wrap 16 and 64 times,
// mini-batches end every 16 frames, and whatever grows would show: printed along the way are the time of a
// frame, the memory of the GPU and of its arena, and the size of the fast weights.
//
// Weights are random, as are the user's codes. Counted: weights of 17.6 GB read once a frame, and from frame
// 3000 on 16 x 49 MB of keys and values, 16 x 12 MB beside TTT, 16 x 4.2 MB of fast weights and gradients, of
// which half are written too. The floor is these bytes over 4.8 TB/s.
// Arguments: "sound": from sound to sound, Mimi before and behind; "frames N"; "seconds N": ends early.
#include <cstdlib>
#include <cstring>

#include "full_size.cuh"
#include "mttt/presets/mimi.hpp"
#include "mttt/presets/moshi.hpp"

namespace {
using namespace mttt;
using L = Cuda<bf16>;
constexpr MoshiConfig config = [] {
  MoshiConfig c = presets::moshi_7b;
  c.temporal.ttt_layers = LayerSet::range(16, 31);
  c.temporal.ttt_layer_context = 750;
  return c;
}();
using Codec = Mimi<presets::mimi_24khz, Cuda<float>>;
using Gen = LMGen<config, L>;
using Model = Moshi<config, L>;
using Talk = Duplex<Codec, Gen, L>;
constexpr std::int64_t seed = 1;

/// A user's codes, other ones in every frame.
struct AnyCodes {
  std::int32_t* heard;
  const std::int64_t* offset;
  std::uint32_t card;
  MTTT_HD void operator()(Index k) const {
    const auto random = philox(11, static_cast<std::uint64_t>(offset[0]), static_cast<std::uint64_t>(k));
    heard[k] = static_cast<std::int32_t>(random.word[0] % card);
  }
};
/// Noise, other in every frame.
struct AnySound {
  float* pcm;
  const std::int64_t* offset;
  MTTT_HD void operator()(Index i) const {
    const auto random = philox(12, static_cast<std::uint64_t>(offset[0]), static_cast<std::uint64_t>(i));
    pcm[i] = 0.2f * (static_cast<float>(uniform_from(random.word[0])) * 2 - 1);
  }
};

/// Root of the mean square of the fast weights and the largest of them; of what has been gathered, likewise.
struct Size {
  double squares = 0, largest = 0, n = 0;
  bool finite = true;
  void add(L& be, const float* data, Index count) {
    std::vector<float> host(static_cast<std::size_t>(count));
    be.to_host(data, host.data(), count);
    for (const float w : host) {
      finite = finite && std::isfinite(w);
      squares += static_cast<double>(w) * static_cast<double>(w);
      largest = std::max(largest, std::abs(static_cast<double>(w)));
    }
    n += static_cast<double>(count);
  }
  double rms() const { return std::sqrt(squares / n); }
};
Size fast_weights(L& be, const Gen::State& state) {
  Size size;
  for_each_tensor(
      [&](std::string_view name, const auto& t) {
        if constexpr (std::is_same_v<typename std::remove_cvref_t<decltype(t)>::value_type, float>) {
          if (name.ends_with("ttt.weights")) size.add(be, t.data(), t.size());
        }
      },
      state);
  return size;
}

/// The codec, if sound is wanted.
struct Ears {
  Cuda<float> be;
  Store<Codec::Params, Cuda<float>> params;
  Store<Codec::Codebooks, Cuda<float>> books;
  explicit Ears(L& gpu) : be(gpu.as<float>()), params(be), books(be) {
    bench::draw(be, *params);
    Codec::derive(be, *params, *books);
  }
};

int run(Index frames, double seconds, bool sound) {
  L be;
  std::printf("%s\n", detail::device_name().c_str());
  Store<Model::Params, L> lm(be);
  bench::draw(be, *lm);
  Ears ears(be);
  const Talk::Models models{*ears.params, *ears.books, *lm};
  Store<Talk::State, L> state(be);
  Store<Talk::Input, L> in(be);
  Store<Talk::Output, L> out(be);
  const Index window = std::max<Index>(1, frames / 12);
  Talk::reset(be, models, *state, Mask{}, Tensor<const std::int64_t, dyn>{});
  be.fill(state->lm.seed.data(), 1, seed);
  const GenOptions options{.check = false};
  auto graph = be.capture([&] {
    if (sound) {
      be.for_each(in->pcm.size(), AnySound{in->pcm.data(), state->lm.offset.data()});
      Talk::step(be, models, *state, {in->pcm, {}, {}, {}}, *out, options);
    } else {
      be.for_each(Gen::heard_streams, AnyCodes{out->heard.data(), state->lm.offset.data(),
                                               static_cast<std::uint32_t>(config.card)});
      Gen::step(be, *lm, state->lm, out->heard, out->said, options);
    }
  });
  std::printf("%.1f GB of weights, %.2f GB of state, %td nodes a frame%s\n",
              static_cast<double>(lm.bytes() + (sound ? ears.params.bytes() : 0)) * 1e-9,
              static_cast<double>(state.bytes()) * 1e-9, graph.nodes(), sound ? ", from sound to sound" : "");
  std::printf("%8s %9s %9s %9s %10s %10s %16s %10s %8s\n", "frame", "mean ms", "p50 ms", "p99 ms", "GPU GB",
              "arena MB", "fast weights rms", "largest", "codes");
  const double start = bench::now();
  std::vector<double> ms;
  std::vector<char> seen(static_cast<std::size_t>(config.card), 0);
  std::vector<std::int32_t> said(static_cast<std::size_t>(Gen::spoken));
  double first = 0;
  Index done = 0;
  for (; done < frames && (seconds <= 0 || bench::now() - start < seconds); ++done) {
    const double begin = bench::now();
    graph.launch();
    be.to_host(out->said.data(), said.data(), Gen::spoken);  // waits, as a conversation does
    ms.push_back(1e3 * (bench::now() - begin));
    for (Index k = 1; k < Gen::spoken; ++k) {
      if (said[static_cast<std::size_t>(k)] >= 0)
        seen[static_cast<std::size_t>(said[static_cast<std::size_t>(k)])] = 1;
    }
    if ((done + 1) % window != 0) continue;
    double total = 0;
    for (const double x : ms) total += x;
    std::sort(ms.begin(), ms.end());
    const double median = ms[ms.size() / 2];
    if (first == 0) first = median;
    const Size size = fast_weights(be, state->lm);
    std::size_t free = 0, all = 0;
    cudaMemGetInfo(&free, &all);
    std::printf("%8td %9.3f %9.3f %9.3f %10.3f %10.1f %16.6f %10.4f %8td\n", done + 1,
                total / static_cast<double>(ms.size()), median, ms[ms.size() * 99 / 100],
                static_cast<double>(all - free) * 1e-9, static_cast<double>(be.arena_bytes()) * 1e-6,
                size.rms(), size.largest, std::count(seen.begin(), seen.end(), 1));
    std::fflush(stdout);
    ms.clear();
    std::fill(seen.begin(), seen.end(), 0);
    if (!size.finite) {
      std::printf("fast weights that are no numbers\n");
      return 1;
    }
  }
  be.synchronize();
  std::printf("%td of %td frames in %.1f s%s\n", done, frames, bench::now() - start,
              done < frames ? ": out of time" : "");
  return 0;
}
}  // namespace

int main(int argc, char** argv) {
  Index frames = 48000;
  double seconds = 0;
  bool sound = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "sound") == 0) sound = true;
    if (std::strcmp(argv[i], "frames") == 0 && i + 1 < argc) frames = std::atol(argv[++i]);
    if (std::strcmp(argv[i], "seconds") == 0 && i + 1 < argc) seconds = std::atof(argv[++i]);
  }
  try {
    return run(frames, seconds, sound);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
