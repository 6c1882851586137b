// Streaming steps of many sessions, whose products have many rows: convolutions, norms and what stands around
// them, in every kernel that takes such a product, against the CPU; and equal bits in every row of a batch.
#include "agreement.cuh"
#include "mttt/codec/conv1d.hpp"
#include "mttt/codec/conv_transpose1d.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using H = Cpu<float>;
using D = Cuda<float>;

/// Two steps of `sessions`, some of them masked out, every second of them hearing what its neighbour hears.
template <template <class> class Block>
void step_agrees(Index sessions, Index steps) {
  H cpu;
  D gpu;
  Rng rng{4};
  const auto host_params = laws::random_params<Block<H>>(cpu, {}, rng);
  Store<typename Block<D>::Params, D> params(gpu);
  upload(gpu, host_params, params);
  Store<typename Block<H>::State, H> host_state(cpu, sessions), fetched(cpu, sessions);
  Store<typename Block<D>::State, D> state(gpu, sessions);
  constexpr Index in = Block<H>::in, out = Block<H>::out;
  const Index out_steps = out_time<Block<H>>(steps);
  const auto x = cpu.make<float, dyn, dyn, in>(sessions, steps);
  const auto y = cpu.make<float, dyn, dyn, out>(sessions, out_steps);
  const auto got = cpu.make<float, dyn, dyn, out>(sessions, out_steps);
  const auto gpu_x = gpu.make<float, dyn, dyn, in>(sessions, steps);
  const auto gpu_y = gpu.make<float, dyn, dyn, out>(sessions, out_steps);
  const auto mask = cpu.make<std::uint8_t, dyn>(sessions), gpu_mask = gpu.make<std::uint8_t, dyn>(sessions);
  for (int frame = 0; frame < 2; ++frame) {
    laws::fill_normal(x, 1, rng);
    for (Index b = 0; b + 1 < sessions; b += 2) cpu.copy(&x(b, 0, 0), &x(b + 1, 0, 0), steps * in);
    for (Index b = 0; b < sessions; ++b) mask(b) = b / 2 % 5 != frame;
    gpu.to_device(x.data(), gpu_x.data(), x.size());
    gpu.to_device(mask.data(), gpu_mask.data(), sessions);
    Block<H>::step(cpu, *host_params, *host_state, x, y, mask);
    Block<D>::step(gpu, *params, *state, gpu_x, gpu_y, gpu_mask);
    gpu.to_host(gpu_y.data(), got.data(), got.size());
    CHECK(laws::largest_difference(got.data(), y.data(), y.size()) < 2e-6 * std::sqrt(4096.0));
    for (Index b = 0; b + 1 < sessions; b += 2)
      REQUIRE(laws::detail::same_bits(&got(b, 0, 0), &got(b + 1, 0, 0), out_steps * out));
  }
  download(gpu, state, fetched);
  laws::detail::Worst worst;
  laws::detail::compare(*fetched, *host_state, worst, "State");
  INFO(worst.name << ": " << worst.error);
  CHECK(worst.error < 1e-4);
}

template <class B>
using First = Conv1d<Conv1dConfig{.in = 1, .out = 64, .kernel = 7}, B>;
template <class B>
using Last = Conv1d<Conv1dConfig{.in = 64, .out = 1, .kernel = 3}, B>;
template <class B>
using Window = Conv1d<Conv1dConfig{.in = 64, .out = 32, .kernel = 3}, B>;
template <class B>
using Stride = Conv1d<Conv1dConfig{.in = 64, .out = 132, .kernel = 8, .stride = 4}, B>;
template <class B>
using Deep =
    Conv1d<Conv1dConfig{.in = 512, .out = 132, .kernel = 16, .stride = 8, .pad_mode = PadMode::replicate}, B>;
template <class B>
using Point = Conv1d<Conv1dConfig{.in = 32, .out = 64, .kernel = 1}, B>;
template <class B>
using Up = ConvTranspose1d<ConvTranspose1dConfig{.in = 512, .out = 36, .kernel = 16, .stride = 8}, B>;
template <class B>
using UpWide = ConvTranspose1d<ConvTranspose1dConfig{.in = 128, .out = 64, .kernel = 8, .stride = 4}, B>;

template <class F>
void product_agrees(Index rows, Index depth, Index cols, bool normed, bool finished) {
  H cpu;
  D gpu;
  Rng rng{9};
  const auto random = [&](Index n, double scale) {
    const auto t = cpu.make<float, dyn>(n);
    laws::fill_normal(t, scale, rng);
    return t;
  };
  const auto send = [&](Tensor<float, dyn> t) {
    const auto to = gpu.make<float, dyn>(t.size());
    gpu.to_device(t.data(), to.data(), t.size());
    return to.data();
  };
  const auto x = random(rows * depth, 1), w = random(cols * depth, 1 / std::sqrt(static_cast<double>(depth))),
             weight = random(depth, 1), bias = random(depth, 1), add = random(cols, 1),
             scale = random(cols, 1), addend = random(rows * cols, 1);
  const auto y = gpu.make<float, dyn>(rows * cols);
  constexpr double eps = 1e-5;
  gpu.product_step<F>(Matrix<const float>{send(x), rows, depth, depth},
                      normed ? NormRows<float>{send(weight), send(bias), eps} : NormRows<float>{},
                      Matrix<const float>{send(w), cols, depth, depth},
                      Matrix<float>{y.data(), rows, cols, cols},
                      finished ? Finish<float>{send(add), send(scale), send(addend)} : Finish<float>{});
  const auto got = cpu.make<float, dyn>(y.size());
  gpu.to_host(y.data(), got.data(), y.size());
  double worst = 0;
  for (Index m = 0; m < rows; m += m % 7 + 1) {
    std::vector<double> row(x.data() + m * depth, x.data() + (m + 1) * depth);
    if (normed) {
      double mean = 0, square = 0;
      for (const double v : row) mean += v / static_cast<double>(depth);
      for (const double v : row) square += (v - mean) * (v - mean) / static_cast<double>(depth);
      for (Index k = 0; k < depth; ++k) {
        double& v = row[static_cast<std::size_t>(k)];
        v = (v - mean) / std::sqrt(square + eps) * static_cast<double>(weight(k)) +
            static_cast<double>(bias(k));
      }
    }
    for (Index n = 0; n < cols; ++n) {
      double value = 0;
      for (Index k = 0; k < depth; ++k)
        value += row[static_cast<std::size_t>(k)] * static_cast<double>(w(n * depth + k));
      if (finished) value += static_cast<double>(add(n));
      value = F::f(value);
      if (finished) value = value * static_cast<double>(scale(n)) + static_cast<double>(addend(m * cols + n));
      worst =
          std::max(worst, std::abs(static_cast<double>(got(m * cols + n)) - value) / (1 + std::abs(value)));
    }
  }
  INFO(rows << " x " << cols << " x " << depth << ": " << worst);
  CHECK(worst < 8 * epsilon<float>() * std::sqrt(static_cast<double>(depth)));
}
}  // namespace

TEST_CASE("CUDA: convolutions of many sessions") {
  SECTION("of one channel, no whole packs") { step_agrees<First>(5, 700); }
  SECTION("to one channel") { step_agrees<Last>(5, 700); }
  SECTION("a window, 32 columns") { step_agrees<Window>(37, 480); }
  SECTION("a stride, columns that are no whole tile") { step_agrees<Stride>(33, 96); }
  SECTION("a deep one of few tiles") { step_agrees<Deep>(70, 16); }
  SECTION("one sample") { step_agrees<Point>(41, 500); }
  SECTION("transposed, deep") { step_agrees<Up>(36, 4); }
  SECTION("transposed, many tiles") { step_agrees<UpWide>(19, 97); }
}
TEST_CASE("CUDA: products of many rows with a norm before and a sum behind") {
  for (const bool normed : {false, true}) {
    for (const bool finished : {false, true}) {
      product_agrees<Identity>(131, 512, 516, normed, finished);    // tiles of 32 x 32
      product_agrees<Gelu>(8200, 132, 34, normed, finished);        // 64 x 64
      product_agrees<Identity>(17000, 132, 31, normed, finished);   // 64 x 32
      product_agrees<Identity>(21300, 516, 132, normed, finished);  // 128 x 128
      product_agrees<Identity>(2100, 37, 34, normed, finished);     // no whole packs
    }
  }
}
