// Two conversations in two threads: they share what was learned and the files that are read, and nothing else.
// Under -fsanitize=thread this shows every race between them, and within OpenMP's teams.
#include <thread>

#include "laws/moshi_small.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/lm/lm_gen.hpp"
#include "mttt/nn/attention.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<float>;
using Gen = LMGen<moshi_small, B>;
using Params = Store<Gen::Params, B>;
using Codes = std::vector<std::int32_t>;

/// What a conversation of a few frames says; its backend, of `threads` threads, is its own.
Codes talk(const Params& params, std::int64_t seed, int threads) {
  B be(threads);
  Store<Gen::State, B> state(be, 1);
  Gen::reset(be, *params, *state, Mask{}, Tensor<const std::int64_t, dyn>(&seed, {1}));
  const auto heard = be.make<std::int32_t, dyn, Gen::heard_streams>(1);
  const auto said = be.make<std::int32_t, dyn, Gen::spoken>(1);
  Codes all;
  for (Index t = 0; t < 12; ++t) {
    heard(0, 0) = static_cast<std::int32_t>((3 * t + seed) % moshi_small.card);
    Gen::step(be, *params, *state, heard, said, {});
    all.insert(all.end(), said.data(), said.data() + said.size());
  }
  return all;
}

/// Runs f(0) and f(1) at the same time.
template <class F>
void two_threads(const F& f) {
  std::thread other([&] { f(1); });
  f(0);
  other.join();
}
}  // namespace

TEST_CASE("threads: two conversations say what each says alone") {
  B be;
  Rng rng(3);
  const auto params = laws::random_params<Gen::Model>(be, {.perturbation = 0.3}, rng);
  for (const int threads : {1, 2}) {
    Codes together[2];
    two_threads([&](int i) { together[i] = talk(params, 5 + i, threads); });
    for (int i = 0; i < 2; ++i) CHECK(together[i] == talk(params, 5 + i, 1));
    CHECK(together[0] != together[1]);
  }
}

TEST_CASE("threads: OpenMP's teams compute what one thread computes, in two programs at once") {
  // Large enough to be worth a second thread: products, element-wise functions, rows with scratch memory.
  using Block = Attention<AttentionConfig{.dim = 64, .num_heads = 4, .context = 40}, B>;
  constexpr Index steps = 1100;
  B be(1);
  Rng rng(6);
  const auto params = laws::random_params<Block>(be, {}, rng);
  const auto run = [&](int threads) {
    B own(threads);
    const auto make = [&] { return own.make<float, dyn, dyn, Block::in>(1, steps); };
    const auto x = make(), y = make(), dx = make();
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = 0.01f * static_cast<float>(i * 37 % 201 - 100);
    Store<Block::Params, B> grad(own);
    Block::Saved saved;
    Block::forward(own, *params, x, y, saved);
    own.map(
        y.size(), [](float v) { return 2 * v; }, y.data(), y.data());
    Block::backward(own, *params, saved, y, dx, *grad);
    std::vector<float> all(y.data(), y.data() + y.size());
    all.insert(all.end(), dx.data(), dx.data() + dx.size());
    all.insert(all.end(), grad->in_proj.weight.data(),
               grad->in_proj.weight.data() + grad->in_proj.weight.size());
    return all;
  };
  const auto alone = run(1);
  std::vector<float> together[2];
  two_threads([&](int i) { together[i] = run(2); });
  for (const auto& all : together) {
    REQUIRE(all.size() == alone.size());
    double largest = 0, difference = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      largest = std::max<double>(largest, std::abs(alone[i]));
      difference = std::max<double>(difference, std::abs(all[i] - alone[i]));
    }
    CHECK(largest > 0.1);
    CHECK(difference <= 1e-5 * largest);  // products of another width add in another order
  }
}

TEST_CASE("threads: one file is read, and files are written, by both") {
  const auto folder = std::filesystem::temp_directory_path() / ("mttt-threads-" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  B be(1);
  Rng rng(4);
  const auto params = laws::random_params<Gen::Model>(be, {}, rng);
  save_params(folder / "params", be, params);
  const SafetensorsFile file(folder / "params");
  std::vector<float> read[2];
  two_threads([&](int i) {
    for (const TensorEntry& entry : file.tensors()) {
      const auto values = file.read<float>(entry);
      read[i].insert(read[i].end(), values.begin(), values.end());
    }
    B own(1);
    Params loaded(own);
    load_params(folder / "params", own, loaded);
    for (int k = 0; k < 3; ++k) save_params(folder / std::to_string(i), own, loaded);
  });
  CHECK(read[0] == read[1]);
  CHECK(read[0].size() == static_cast<std::size_t>(count_elements(*params)));
  CHECK(WholeFile(folder / "0").text() == WholeFile(folder / "1").text());
  std::filesystem::remove_all(folder);
}
