// Weights in 8 and 4 bits beside float32: products of one row (and of four), which read their weights at
// memory speed, and a frame of a Moshi of 341 million parameters. The weights rotate through 256 MB.
#include "language_model.hpp"
#include "moshi_341m.hpp"
#include "mttt/backend/with_weights.hpp"

namespace {
using namespace mttt;

template <class Block, class B>
void product(bench::Suite& suite, const char* format, Index rows) {
  B first;
  using Params = Store<typename Block::Params, B>;
  std::vector<Params> layers;
  layers.emplace_back(first);
  bench::fill_weights(*layers.back());
  const auto bytes = static_cast<double>(layers.back().bytes());
  const auto copies = suite.quick() ? 1 : static_cast<std::size_t>(256e6 / bytes) + 1;
  while (layers.size() < copies) layers.emplace_back(first, layers.front());
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    const auto x = be.template make<float, dyn, dyn, Block::in>(1, rows);
    const auto y = be.template make<float, dyn, dyn, Block::out>(1, rows);
    bench::fill_uniform(x.data(), x.size());
    std::size_t turn = 0;
    NoState none;
    suite.run(std::string(format) + " " + std::to_string(Block::out) + "x" + std::to_string(Block::in) +
                  ", batch " + std::to_string(rows),
              {.threads = threads, .bytes = bytes},
              [&] { Block::step(be, *layers[turn++ % layers.size()], none, x, y, Mask{}); });
  }
}

template <Index out, Index in>
void products(bench::Suite& suite, Index rows) {
  static constexpr LinearConfig config{.in = in, .out = out};
  using F32 = Cpu<float>;
  using Q8 = WithWeights<Int8, F32>;
  using Q4 = WithWeights<Int4, F32>;
  product<Linear<config, F32>, F32>(suite, "f32 ", rows);
  product<Linear<config, Q8>, Q8>(suite, "int8", rows);
  product<Linear<config, Q4>, Q4>(suite, "int4", rows);
}

template <class B>
void frames(bench::Suite& suite, const std::string& name) {
  B be;
  Store<typename Moshi<bench::moshi_341m, B>::Params, B> params(be);
  bench::fill_weights(*params);
  for (const Index past : {Index{1}, Index{250}, Index{3000}}) {
    if (past == 1 || !suite.quick()) bench::converse<bench::moshi_341m, B>(suite, name, params, 1, past);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("quantised", argc, argv);
  if (suite.quick()) {
    products<128, 96>(suite, 1);
    return suite.finish();
  }
  for (const Index rows : {Index{1}, Index{4}}) {
    products<4096, 4096>(suite, rows);
    products<11264, 4096>(suite, rows);
    products<1024, 1024>(suite, rows);
  }
  frames<Cpu<float>>(suite, "341m f32 ");
  frames<WithWeights<Int8, Cpu<float>>>(suite, "341m int8");
  frames<WithWeights<Int4, Cpu<float>>>(suite, "341m int4");
  return suite.finish();
}
