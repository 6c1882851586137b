// Mimi at full size, one 80 ms frame at a time, 8 codebooks, random weights, the attention's ring full.
//
// Counted: two FLOPs a multiply-add of every convolution, projection, codebook score and attended key; every
// weight read once a frame, and the scored codebooks. Activations are not counted: they stay in the caches.
// In 16 bits (f16) are the weights of the transformers and of convolutions with half a million or more; in
// 8 bits those of the two transformers, 60 % of all bytes.
#include "mttt/presets/mimi.hpp"

#include "harness.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/core/quantise.hpp"

namespace {
using namespace mttt;
using Plain = Cpu<float>;

constexpr Index codebooks = 8;

/// Multiply-adds of SEANet for `steps` latent steps: encoder or, mirrored, decoder.
double seanet(const SeanetConfig& c, Index stages, double steps, Index outer_kernel, Index inner_kernel) {
  const auto conv = [](Index in, Index out, Index kernel, double outputs) {
    return static_cast<double>(in * out * kernel) * outputs;
  };
  Index width = c.n_filters << stages;
  double rate = steps, total = conv(c.dimension, width, inner_kernel, rate);
  for (Index stage = 0; stage < stages; ++stage) {
    const Index ratio = c.ratios[static_cast<std::size_t>(stage)];
    total += conv(width, width / 2, 2 * ratio, rate);  // the strided one, counted at its slower side
    rate *= static_cast<double>(ratio), width /= 2;
    total += static_cast<double>(c.n_residual_layers) *
             (conv(width, width / c.compress, c.residual_kernel_size, rate) +
              conv(width / c.compress, width, 1, rate));
  }
  return total + conv(width, c.channels, outer_kernel, rate);
}

template <class P>
double bytes_of(const P& params) {
  double bytes = 0;
  for_each_tensor(
      [&](std::string_view, const auto& t) { bytes += static_cast<double>(t.size()) * sizeof(*t.data()); },
      params);
  return bytes;
}

template <MimiConfig C, class B = Plain>
void frame(bench::Suite& suite, const std::string& name) {
  using Codec = Mimi<C, B>;
  Plain first;
  Store<typename Mimi<C, Plain>::Params, Plain> drawn(first);
  bench::fill_tensors(*drawn, 0.03f);
  for_each_tensor(
      [&](std::string_view tensor, auto& t) {
        if (tensor.ends_with("cluster_usage")) init_constant(t, 0.05);
      },
      *drawn);
  B whole;
  Store<typename Codec::Params, B> params(whole);
  quantise(drawn, params);
  Store<typename Codec::Codebooks, B> books(whole);
  Codec::derive(whole, *params, *books);

  constexpr auto tr = C.transformer;
  constexpr double steps = static_cast<double>(C.downsample),
                   dimension = static_cast<double>(C.seanet.dimension);
  const double transformer_weights = static_cast<double>(count_elements(std::get<1>(drawn->to_latent.parts)));
  const double transformer =
      steps * (transformer_weights + 2.0 * static_cast<double>(tr.context * tr.d_model * tr.num_layers));
  const double quantizer = static_cast<double>(codebooks * C.quantizer.card * C.quantizer.codebook_dim);
  const double projections = 2 * dimension * static_cast<double>(C.quantizer.codebook_dim);
  const double encode =
      seanet(C.seanet, C.seanet.stages(), steps, C.seanet.kernel_size, C.seanet.last_kernel_size) +
      transformer + dimension * dimension * 2 * steps + quantizer + projections;
  const double decode =
      seanet(C.seanet, C.seanet.stages(), steps, C.seanet.last_kernel_size, C.seanet.kernel_size) +
      transformer + projections;
  const double encode_bytes = bytes_of(params->to_latent) + 4 * (quantizer + projections);
  const double decode_bytes = bytes_of(params->from_latent) + 4 * projections;

  for (const int threads : suite.thread_counts()) {
    B be(threads);
    Store<typename Codec::EncoderState, B> encoder(be);
    Store<typename Codec::DecoderState, B> decoder(be);
    Codec::reset_encoder(be, *params, *encoder);
    Codec::reset_decoder(be, *params, *decoder);
    const auto long_ago = [](std::string_view, auto& t) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(*t.data())>, std::int64_t>)
        init_constant(t, 1000.0);
    };
    for_each_tensor(long_ago, *encoder);
    for_each_tensor(long_ago, *decoder);
    const auto pcm = be.template make<float, dyn, dyn, Codec::channels>(1, Codec::frame_size);
    const auto reply = be.template make<float, dyn, dyn, Codec::channels>(1, Codec::frame_size);
    const auto codes = be.template make<std::int32_t, dyn, dyn, dyn>(1, codebooks, 1);
    bench::fill_uniform(pcm.data(), pcm.size());
    double seconds = 0;
    suite.run(name + " encode", {.threads = threads, .flops = 2 * encode, .bytes = encode_bytes},
              [&] { Codec::encode_step(be, *params, *books, *encoder, pcm, codes); });
    seconds += suite.last().seconds;
    suite.run(name + " decode", {.threads = threads, .flops = 2 * decode, .bytes = decode_bytes},
              [&] { Codec::decode_step(be, *params, *books, *decoder, codes, reply); });
    seconds += suite.last().seconds;
    char text[120];
    std::snprintf(text, sizeof text,
                  "%s, %d thread(s): encode + decode %.1f ms a frame of 80 ms, real-time factor %.3f",
                  name.c_str(), threads, seconds * 1e3, seconds / 0.08);
    suite.note(text);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("mimi", argc, argv);
  frame<presets::mimi_tiny>(suite, "mimi_tiny");
  if (!suite.quick()) {
    frame<presets::mimi_small>(suite, "mimi_small");
    frame<presets::mimi_small, WithWeights<f16, Plain>>(suite, "mimi_small, f16");
    frame<presets::mimi_24khz>(suite, "mimi_24khz");
    frame<presets::mimi_24khz, WithWeights<f16, Plain>>(suite, "mimi_24khz, f16");
    frame<presets::mimi_24khz, WithWeights<Int8, Plain>>(suite, "mimi_24khz, int8");
  }
  return suite.finish();
}
