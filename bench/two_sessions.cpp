// Two conversations in one process, each in a thread of its own: a frame of Mimi encoded and decoded alone, and
// while the other does the same.
//
// Expected: what the two share is the memory. A frame that reads n bytes alone at r1, and beside another at half of
// what two threads read together, r2, takes n (2 / r2 - 1 / r1) longer; what lies in the caches takes no longer.
// Each thread has its own backend; the parameters are one.
#include <atomic>
#include <thread>

#include "harness.hpp"
#include "mttt/presets/mimi.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

template <MimiConfig C>
struct Conversation {
  using Codec = Mimi<C, B>;
  B be{1};
  Store<typename Codec::EncoderState, B> encoder{be};
  Store<typename Codec::DecoderState, B> decoder{be};
  Tensor<float, dyn, dyn, Codec::channels> pcm =
      be.make<float, dyn, dyn, Codec::channels>(1, Codec::frame_size);
  Tensor<std::int32_t, dyn, dyn, dyn> codes = be.make<std::int32_t, dyn, dyn, dyn>(1, 8, 1);

  explicit Conversation(const typename Codec::Params& params) {
    Codec::reset_encoder(be, params, *encoder);
    Codec::reset_decoder(be, params, *decoder);
    bench::fill_uniform(pcm.data(), pcm.size());
  }
  void frame(const typename Codec::Params& params, const typename Codec::Codebooks& books) {
    Codec::encode_step(be, params, books, *encoder, pcm, codes);
    Codec::decode_step(be, params, books, *decoder, codes, pcm);
  }
};

template <MimiConfig C>
void beside(bench::Suite& suite, const std::string& name, double bytes) {
  using Codec = Mimi<C, B>;
  B be(1);
  Store<typename Codec::Params, B> params(be);
  Rng rng(1);
  Codec::init(*params, rng);
  Store<typename Codec::Codebooks, B> books(be);
  Codec::derive(be, *params, *books);
  Conversation<C> one(*params), other(*params);
  suite.run(name + ", alone", {.bytes = bytes}, [&] { one.frame(*params, *books); });
  const bench::Row alone = suite.last();
  std::atomic<bool> over = false;
  std::atomic<Index> frames = 0;
  std::thread neighbour([&] {
    for (; !over; ++frames) other.frame(*params, *books);
  });
  suite.run(name + ", beside another", {}, [&] { one.frame(*params, *books); });
  over = true;
  neighbour.join();
  double longer = 0;
  if (bytes > 0) {
    bench::Peaks peaks(suite.quick());
    double both = 0;  // the best, since any other program would be a third reader
    for (int i = 0; i < 9; ++i) both = std::max(both, peaks.read(2));
    longer = bytes * std::max(0.0, 2 / both - 1 / alone.bandwidth);
  }
  char text[160];
  std::snprintf(text, sizeof text, "%s: %.3f ms alone, %.3f beside another, expected %.3f at most",
                name.c_str(), alone.seconds * 1e3, suite.last().seconds * 1e3,
                (alone.seconds + longer) * 1e3);
  suite.note(text);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("two_sessions", argc, argv);
  beside<presets::mimi_tiny>(suite, "mimi_tiny", 0);  // lies in a cache
  if (!suite.quick()) beside<presets::mimi_24khz>(suite, "mimi_24khz", 334e6);
  return suite.finish();
}
