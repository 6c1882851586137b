// Mimi on the GPU, one 80 ms frame at a time: encode and decode as recorded graphs, 8 codebooks, random
// weights, the attention's ring full; and products of few rows, as every streaming step makes them.
//
// Counted: every weight and the scored codebooks once a frame, the keys and values attended to once a
// session. The floor is these bytes over 4.8 TB/s, an H200's memory by its datasheet. Products take so many weights in
// turn that a cache of 50 MB keeps none.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/cuda.cuh"
#include "mttt/presets/mimi.hpp"
#include "timing.cuh"

namespace {
using namespace mttt;
using T = float;
using Codec = Mimi<presets::mimi_24khz, Cuda<T>>;
using HostCodec = Mimi<presets::mimi_24khz, Cpu<T>>;

constexpr Index codebooks = 8;

void report(const char* name, Index sessions, Index nodes, const std::vector<double>& ms, double bytes) {
  const double floor = 1e3 * bytes / bench::peak_bytes;
  std::printf(
      "%-8s %3td sessions %4td nodes  p50 %.3f ms  p99 %.3f ms  %6.1f MB  floor %.3f ms  share %4.1f %%\n",
      name, sessions, nodes, ms[ms.size() / 2], ms[ms.size() * 99 / 100], bytes * 1e-6, floor,
      100 * floor / ms[ms.size() / 2]);
}

/// A ring that is full, so that every frame attends to all of it.
template <class State>
void fill_rings(Cuda<T>& be, State& state) {
  for_each_tensor(
      [&](std::string_view name, auto& t) {
        if constexpr (std::is_same_v<typename std::remove_cvref_t<decltype(t)>::value_type, std::int64_t>) {
          if (name.ends_with("position")) be.fill(t.data(), t.size(), std::int64_t{1000});
        }
      },
      state);
}

void frames(Cuda<T>& be, const Store<Codec::Params, Cuda<T>>& params, Index sessions) {
  const auto scope = be.scope();
  Store<Codec::Codebooks, Cuda<T>> books(be);
  Codec::derive(be, *params, *books);
  Store<Codec::EncoderState, Cuda<T>> encoder(be, sessions);
  Store<Codec::DecoderState, Cuda<T>> decoder(be, sessions);
  Codec::reset_encoder(be, *params, *encoder);
  Codec::reset_decoder(be, *params, *decoder);
  fill_rings(be, *encoder);
  fill_rings(be, *decoder);
  const auto pcm = be.make<T, dyn, dyn, Codec::channels>(sessions, Codec::frame_size);
  const auto reply = be.make<T, dyn, dyn, Codec::channels>(sessions, Codec::frame_size);
  const auto codes = be.make<std::int32_t, dyn, dyn, dyn>(sessions, codebooks, 1);
  std::vector<T> noise(static_cast<std::size_t>(pcm.size()));
  Rng rng{5};
  for (T& x : noise) x = static_cast<T>(0.1 * rng.truncated_normal());
  be.to_device(noise.data(), pcm.data(), pcm.size());
  const auto encode = [&] { Codec::encode_step(be, *params, *books, *encoder, pcm, codes); };
  const auto decode = [&] { Codec::decode_step(be, *params, *books, *decoder, codes, reply); };
  encode();  // the arena grows, kernels are loaded
  decode();
  CudaGraph encoding = be.capture(encode), decoding = be.capture(decode);

  constexpr auto q = presets::mimi_24khz.quantizer;
  const auto size = [](const auto& p) { return static_cast<double>(count_elements(p)) * sizeof(T); };
  const double projections = 2.0 * q.dim * q.codebook_dim * sizeof(T);
  constexpr auto t = presets::mimi_24khz.transformer;
  const double rings = 2.0 * static_cast<double>(sessions * t.context * t.d_model * t.num_layers) * sizeof(T);
  const double encode_bytes = size(params->to_latent) + projections + rings +
                              static_cast<double>(codebooks * q.card * q.codebook_dim) * sizeof(T);
  const double decode_bytes = size(params->from_latent) + projections + rings;
  constexpr int runs = 400;
  report("encode", sessions, encoding.nodes(), bench::times(be.stream(), runs, 1, [&] { encoding.launch(); }),
         encode_bytes);
  report("decode", sessions, decoding.nodes(), bench::times(be.stream(), runs, 1, [&] { decoding.launch(); }),
         decode_bytes);
  report("both", sessions, encoding.nodes() + decoding.nodes(),
         bench::times(be.stream(), runs, 1,
                      [&] {
                        encoding.launch();
                        decoding.launch();
                      }),
         encode_bytes + decode_bytes);
}

/// Products of `rows` rows in a graph that takes many weights in turn, more than the caches hold.
template <class U>
void product(const char* type, Index rows, Index out, Index in) {
  Cuda<U> be;
  const Index weights = std::max<Index>(2, (Index{400} << 20) / (out * in * static_cast<Index>(sizeof(U))));
  const auto w = be.template make<U, dyn>(weights * out * in);
  const auto x = be.template make<U, dyn>(rows * in);
  const auto y = be.template make<U, dyn>(rows * out);
  be.fill(w.data(), w.size(), U(0.01f));
  be.fill(x.data(), x.size(), U(1.0f));
  CudaGraph graph = be.capture([&] {
    for (Index i = 0; i < weights; ++i) {
      be.matmul(Matrix<const U>{x.data(), rows, in, in},
                Matrix<const U>{w.data() + i * out * in, out, in, in}.t(),
                Matrix<U>{y.data(), rows, out, out});
    }
  });
  const auto ms = bench::times(be.stream(), 20, 1, [&] { graph.launch(); });
  const double seconds = 1e-3 * ms[ms.size() / 2] / static_cast<double>(weights);
  const double bytes = static_cast<double>((out * in + rows * (out + in)) * static_cast<Index>(sizeof(U)));
  std::printf("%-5s %2td x %5td x %4td  %7.2f us  %6.0f GB/s  %4.1f %% of 4.8 TB/s  %.1f nodes a product\n",
              type, rows, out, in, 1e6 * seconds, 1e-9 * bytes / seconds,
              100 * bytes / seconds / bench::peak_bytes,
              static_cast<double>(graph.nodes()) / static_cast<double>(weights));
}

}  // namespace

int main() {
  try {
    std::printf("%s\n", detail::device_name().c_str());
    Cuda<T> be;
    Cpu<T> cpu;
    Store<Codec::Params, Cuda<T>> params(be);
    {
      Store<HostCodec::Params, Cpu<T>> host(cpu);
      Rng rng{1};
      HostCodec::init(*host, rng);
      upload(be, host, params);
    }
    for (const Index sessions : {1, 16}) frames(be, params, sessions);
    for (const Index rows : {1, 2, 4, 8, 16}) {
      product<bf16>("bf16", rows, 4096, 4096);
      product<bf16>("bf16", rows, 22528, 4096);
      product<bf16>("bf16", rows, 512, 2048);
      product<float>("float", rows, 4096, 4096);
      product<float>("float", rows, 22528, 4096);
      product<float>("float", rows, 512, 2048);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
