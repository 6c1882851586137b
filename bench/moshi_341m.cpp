// A frame of a Moshi of 341 million parameters, 251 million of which are read in every frame, in float.
#include "moshi_341m.hpp"

#include "language_model.hpp"

int main(int argc, char** argv) {
  using namespace mttt;
  using bench::moshi_341m;
  bench::Suite suite("moshi_341m", argc, argv);
  Cpu<float> be;
  const Store<Moshi<moshi_341m, Cpu<float>>::Params, Cpu<float>> params = [&] {
    Store<Moshi<moshi_341m, Cpu<float>>::Params, Cpu<float>> random(be);
    bench::fill_tensors(*random, 0.03f);
    return random;
  }();
  for (const Index past : {Index{1}, Index{250}, Index{3000}}) {
    if (past == 1 || !suite.quick()) bench::converse<moshi_341m>(suite, "341m", params, 1, past);
  }
  return suite.finish();
}
