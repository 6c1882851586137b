// A frame of a Moshi of 341 million parameters, 251 million of which are read in every frame, in float.
#include "language_model.hpp"

namespace {
using namespace mttt;

constexpr MoshiConfig config{
    .n_q = 16,
    .dep_q = 8,
    .card = 2048,
    .text_card = 32000,
    .delays = {0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
    .temporal = {.dim = 1024,
                 .num_heads = 16,
                 .num_layers = 8,
                 .hidden = gating_hidden(1024, 1024 * 33 / 8),
                 .context = 3000},
    .depformer = {.dim = 512, .num_heads = 8, .num_layers = 4, .hidden = gating_hidden(512, 512 * 33 / 8)}};

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("moshi_341m", argc, argv);
  Cpu<float> be;
  const Store<Moshi<config, Cpu<float>>::Params, Cpu<float>> params = [&] {
    Store<Moshi<config, Cpu<float>>::Params, Cpu<float>> random(be);
    bench::fill_tensors(*random, 0.03f);
    return random;
  }();
  for (const Index past : {Index{1}, Index{250}, Index{3000}}) {
    if (past == 1 || !suite.quick()) bench::converse<config>(suite, "341m", params, 1, past);
  }
  return suite.finish();
}
