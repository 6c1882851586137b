// The tiny Moshi, with and without TTT: a frame of a conversation, and a training step with loss and AdamW;
// what it costs to watch the TTT layers in either. Not watched, a step has a null pointer to test in each of
// them.
#include "language_model.hpp"
#include "mttt/lm/probes.hpp"
#include "mttt/presets/tiny.hpp"
#include "mttt/train/moshi_loss.hpp"
#include "mttt/train/trainer.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

template <MoshiConfig C>
void train(bench::Suite& suite, const std::string& name, Index batch, Index frames) {
  using Model = Moshi<C, B>;
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    Store<typename Model::Params, B> params(be);
    Rng rng(1);
    Model::init(*params, rng);
    Trainer<typename Model::Params, B> trainer(be, params, TrainOptions{});
    const auto codes = be.make<std::int32_t, dyn, dyn, dyn>(batch, C.streams(), frames);
    for (Index i = 0; i < codes.size(); ++i) codes.data()[i] = static_cast<std::int32_t>(rng.below(C.card));
    const double flops = 6 * bench::multiplied_weights(*params) * static_cast<double>(batch * frames);
    suite.run(name + " training step, " + std::to_string(batch) + " x " + std::to_string(frames) + " frames",
              {.threads = threads, .flops = flops}, [&] {
                trainer.step([&](std::int64_t, typename Model::Params& grad) {
                  return MicroBatch{moshi_loss<Model>(be, *params, codes, {}, &grad).total(), batch * frames};
                });
              });
    char text[120];
    std::snprintf(text, sizeof text, "%s, %d thread(s): %.0f frames a second in training", name.c_str(),
                  threads, static_cast<double>(batch * frames) / suite.last().seconds);
    suite.note(text);
    if constexpr (C.temporal.num_ttt_layers() > 0) {
      const double step = suite.last().seconds;
      suite.run(name + " look at inner losses, 1 x " + std::to_string(frames) + " frames",
                {.threads = threads}, [&] { bench::keep(inner_losses<Model>(be, *params, codes)); });
      std::snprintf(text, sizeof text,
                    "%s, %d thread(s): a look every 100 steps costs %.2f %% of the training", name.c_str(),
                    threads, suite.last().seconds / step);
      suite.note(text);
    }
  }
}

/// A frame of the transformer alone, watched or not.
template <MoshiConfig C>
void watch(bench::Suite& suite, const std::string& name) {
  using Transformer = typename Moshi<C, B>::Transformer;
  B be(1);
  Store<typename Transformer::Params, B> params(be);
  Rng rng(1);
  Transformer::init(*params, rng);
  Store<typename Transformer::State, B> state(be);
  Transformer::reset(be, *params, *state, Mask{});
  const auto x = be.make<float, dyn, dyn, Transformer::dim>(1, 1),
             y = be.make<float, dyn, dyn, Transformer::dim>(1, 1);
  bench::fill_uniform(x.data(), x.size());
  suite.run(name + " transformer, a frame, not watched", {},
            [&] { Transformer::step(be, *params, *state, x, y, Mask{}); });
  StreamProbe<Transformer, B> probe(be);
  suite.run(name + " transformer, a frame, watched", {}, [&] {
    probe.step(*params, *state, x, y);
    for (auto& curves : probe.curves) curves = {curves.layer};
  });
}

template <MoshiConfig C>
void measure(bench::Suite& suite, const std::string& name) {
  B be;
  Store<typename Moshi<C, B>::Params, B> params(be);
  Rng rng(1);
  Moshi<C, B>::init(*params, rng);
  bench::converse<C>(suite, name, params, 1, C.temporal.context);
  if (!suite.quick()) bench::converse<C>(suite, name, params, 16, C.temporal.context);
  train<C>(suite, name, suite.quick() ? 1 : 4, suite.quick() ? 16 : 64);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("moshi", argc, argv);
  measure<presets::tiny>(suite, "tiny");
  watch<presets::tiny>(suite, "tiny");
  measure<presets::tiny_without_ttt>(suite, "tiny_without_ttt");
  return suite.finish();
}
