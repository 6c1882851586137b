// Which of the presets hold 80 ms a frame, in float32 and with weights in 8 and 4 bits: a conversation 20
// seconds old. Models that take more memory than the machine has are left out.
#include <cstdlib>
#include <fstream>
#include <memory>

#include "language_model.hpp"
#include "moshi_341m.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/presets/moshi.hpp"
#include "mttt/presets/moshi_100m.hpp"
#include "mttt/presets/moshi_1b.hpp"
#include "mttt/presets/tiny.hpp"

namespace {
using namespace mttt;

/// What the system can give, the pages of files among it.
double available_bytes() {
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("MemAvailable:")) return 1024 * std::strtod(line.c_str() + 13, nullptr);
  }
  return 0;
}

template <MoshiConfig C, class B>
void frame(bench::Suite& suite, const std::string& name) {
  using Params = typename Moshi<C, B>::Params;
  double bytes = 8.0 * static_cast<double>(C.temporal.num_layers * C.temporal.context * C.temporal.dim);
  for_each_tensor(
      [&](std::string_view, const auto& t) {
        bytes += static_cast<double>(t.size()) * static_cast<double>(sizeof(*t.data()));
      },
      *std::make_unique<Params>());
  if (bytes > 0.95 * available_bytes()) {
    suite.note(name + ": left out, it takes " + std::to_string(bytes * 1e-9) + " GB");
    return;
  }
  B be;
  Store<Params, B> params(be);
  bench::fill_weights(*params);
  bench::converse<C, B>(suite, name, params, 1, 250);
}

template <MoshiConfig C>
void formats(bench::Suite& suite, const std::string& name) {
  frame<C, Cpu<float>>(suite, name + " f32 ");
  frame<C, WithWeights<Int8, Cpu<float>>>(suite, name + " int8");
  frame<C, WithWeights<Int4, Cpu<float>>>(suite, name + " int4");
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("quantised_presets", argc, argv);
  formats<presets::tiny>(suite, "tiny");
  if (suite.quick()) return suite.finish();
  formats<presets::moshi_100m>(suite, "moshi_100m");
  formats<bench::moshi_341m>(suite, "moshi_341m");
  formats<presets::moshi_1b>(suite, "moshi_1b");
  formats<presets::moshi_7b>(suite, "moshi_7b");
  return suite.finish();
}
