// The CUDA backend itself: products, teams, memory, recorded graphs.
#include <array>

#include "agreement.cuh"

namespace mttt::testing {

/// Every primitive of a team, one row each: out (rows, 6).
struct Primitives {
  const float* x;  // (rows, n)
  double* out;
  Index n;
  template <class Team>
  MTTT_HD void operator()(Team team, Index row) const {
    const float* in = x + row * n;
    float* copy = team.template scratch<float>();
    const Index length = n;
    team.for_each(n, [=](Index i) { copy[i] = in[length - 1 - i]; });
    team.sync();
    const double sum = team.template sum<double>(n, [=](Index i) { return static_cast<double>(copy[i]); });
    const float max = team.template max<float>(n, [=](Index i) { return in[i]; });
    const Index whole = team.template max<Index>(n, [=](Index i) { return i % 7; });
    const Index best = team.template argmax<float>(n, [=](Index i) { return in[i]; });
    const Index tie = team.template argmax<float>(n, [=](Index i) { return i > 0 ? 1.0f : 0.0f; });
    const auto count = team.template sum<std::int32_t>(n, [=](Index i) { return in[i] > 0 ? 1 : 0; });
    if (team.leader()) {
      double* to = out + row * 6;
      to[0] = sum, to[1] = max, to[2] = static_cast<double>(whole), to[3] = static_cast<double>(best);
      to[4] = static_cast<double>(tie), to[5] = count;
    }
  }
};

/// x = 3 x + 1: the order of two of them shows.
struct Step {
  float* x;
  MTTT_HD void operator()(Index i) const { x[i] = 3 * x[i] + 1; }
};

struct Count {
  int* seen;
  MTTT_HD void operator()(Index i) const { seen[i] += 1; }
};

/// c = a b^T of planes in scratch.
struct TeamProduct {
  const double *a, *b;
  double* c;
  Index m, n, k;
  template <class Team>
  MTTT_HD void operator()(Team team, Index) const {
    double* copy = team.template scratch<double>();
    const double* from = a;
    team.for_each(m * k, [=](Index i) { copy[i] = from[i]; });
    team.sync();
    team.matmul(Matrix<const double>{copy, m, k, k}, Matrix<const double>{b, n, k, k}.t(),
                Matrix<double>{c, m, n, n}, 2, 0);
    team.sync();
    team.matmul(Matrix<const double>{copy, m, k, k}, Matrix<const double>{b, n, k, k}.t(),
                Matrix<double>{c, m, n, n}, 1, 1);
  }
};

template <class T>
T element(const Matrix<T>& m, Index i, Index j) {
  return m.transposed ? m.data[j * m.ld + i] : m.data[i * m.ld + j];
}

}  // namespace mttt::testing

namespace {
using namespace mttt;
using namespace mttt::testing;
using laws::detail::fetch;
using laws::detail::send;

/// By how many times what it may err a product errs: at most 1 is right. Of one product: the sum, in the type
/// to compute in, of the exact products of what A and B hold, in any order; then one rounding to what C holds,
/// which is relative to the number itself. `scale` is the root of the sum of the squares of what is added.
/// Tensor cores, which multiply bfloat16, cut what they add instead of rounding it: on an H200 about 2^-19 of
/// the scale was lost; sums held in bfloat16 would lose 2^-9. A product that is added up in C from several
/// parts is rounded after each, where a sum of fewer terms lies within a few times the scale.
template <class T, class V>
double error_of_sum(double found, double exact, double scale, Index K, Index parts = 1) {
  const double cut = std::is_same_v<T, Wide<T>> ? 0 : 0x1p-16 * scale;
  const double rounding = std::is_same_v<V, Wide<T>> ? 0 : epsilon<V>() / 2;
  const double sums = laws::agreement<Wide<T>>(static_cast<double>(K) + 1, 4) + cut +
                      static_cast<double>(parts - 1) * rounding * 3 * scale;
  return std::abs(found - exact) / (sums + rounding * (std::abs(exact) + sums));
}

/// One product of every kind: the planes lie in buffers of random numbers, `ld` wider than they are. A and B
/// hold T, C holds V.
template <class T, class V = T>
void multiply(Cpu<T>& cpu, Cuda<T>& gpu, Rng& rng, Index M, Index N, Index K, bool ta, bool tb, Index a_ld,
              Index b_ld, Index c_ld, Wide<T> alpha, Wide<T> beta, Index parts = 1) {
  INFO(M << " x " << N << " x " << K << ", transposed " << ta << tb << ", ld " << a_ld << " " << b_ld << " "
         << c_ld << ", alpha " << alpha << ", beta " << beta);
  constexpr Index outer = 2, inner = 3;
  const auto scope = cpu.scope();
  const auto device_scope = gpu.scope();
  const auto buffer = [&]<class U>(U) {
    const auto t = cpu.template make<U, dyn>(60000);
    laws::fill_normal(t, 1, rng);
    return t;
  };
  const auto a = buffer(T{}), b = buffer(T{});
  const auto c = buffer(V{});
  if (beta == 0) cpu.fill(c.data(), c.size(), static_cast<V>(NAN));
  const auto ga = send(gpu, a), gb = send(gpu, b);
  const auto gc = send(gpu, c);
  const auto grid = [&](const T* data, Index rows, Index cols, Index ld, bool transposed) {
    const Matrix<const T> plane =
        transposed ? Matrix<const T>{data, cols, rows, ld}.t() : Matrix<const T>{data, rows, cols, ld};
    return MatrixGrid<const T>{plane, 20000, 5000};
  };
  const auto A = grid(a.data(), M, K, a_ld, ta), B = grid(b.data(), K, N, b_ld, tb);
  gpu.matmul_grid(outer, inner, grid(ga.data(), M, K, a_ld, ta), grid(gb.data(), K, N, b_ld, tb),
                  MatrixGrid<V>{{gc.data(), M, N, c_ld}, 20000, 5000}, alpha, beta);
  const auto got = fetch(cpu, gpu, gc);
  double worst = 0;
  for (Index o = 0; o < outer; ++o) {
    for (Index p = 0; p < inner; ++p) {
      for (Index i = 0; i < M; ++i) {
        for (Index j = 0; j < N; ++j) {
          double sum = 0, squares = 0;
          for (Index k = 0; k < K; ++k) {
            const double term = static_cast<double>(element(A.at(o, p), i, k)) *
                                static_cast<double>(element(B.at(o, p), k, j));
            sum += term;
            squares += term * term;
          }
          V& out = c.data()[o * 20000 + p * 5000 + i * c_ld + j];
          V& found = got.data()[&out - c.data()];
          const double before = beta == 0 ? 0 : static_cast<double>(out);
          const double exact = static_cast<double>(alpha) * sum + static_cast<double>(beta) * before;
          const double scale =
              std::hypot(static_cast<double>(alpha) * std::sqrt(squares), static_cast<double>(beta) * before);
          worst = std::max(worst, error_of_sum<T, V>(static_cast<double>(found), exact, scale, K, parts));
          found = out;
        }
      }
    }
  }
  CHECK(worst <= 1);
  CHECK(laws::detail::same_bits(got.data(), c.data(), c.size()));  // nothing beside the planes was written
}
}  // namespace

TEMPLATE_TEST_CASE("CUDA: products of every kind", "", float, double) {
  using T = TestType;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(1);
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const T beta : {T(0), T(1), T(-0.5)}) {
        for (const Index M : {1, 17}) {
          multiply<T>(cpu, gpu, rng, M, 33, 20, ta, tb, 50, 60, 40, T(1.5), beta);
          multiply<T>(cpu, gpu, rng, M, 1, 70, ta, tb, 70, 70, 1, T(1), beta);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("CUDA: products of planes whose rows overlap", "", float, double) {
  using T = TestType;
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(1);
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const T beta : {T(0), T(1)}) {
        multiply<T>(cpu, gpu, rng, 17, 33, 20, ta, tb, 3, 60, 40, T(1.5), beta);
        multiply<T>(cpu, gpu, rng, 17, 33, 20, ta, tb, 50, 1, 40, T(1.5), beta);
        multiply<T>(cpu, gpu, rng, 9, 5, 20, ta, tb, 4, 4, 5, T(1), beta);
      }
    }
  }
}

TEMPLATE_TEST_CASE("CUDA: products of bfloat16, of every kind, into", "", bf16, float) {
  using V = TestType;
  Cpu<bf16> cpu;
  Cuda<bf16> gpu;
  Rng rng(1);
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const float beta : {0.0f, 1.0f, -0.5f}) {
        for (const Index M : {1, 17}) {
          multiply<bf16, V>(cpu, gpu, rng, M, 33, 20, ta, tb, 50, 60, 40, 1.5f, beta);  // 2 bytes aligned
          // 16 bytes: tensor cores. Where both factors are 1, cuBLAS rounds the product before it adds C.
          multiply<bf16, V>(cpu, gpu, rng, M, 32, 64, ta, tb, 64, 64, 40, 1.0f, beta,
                            beta == 1 && std::is_same_v<V, bf16> ? 2 : 1);
          multiply<bf16, V>(cpu, gpu, rng, M, 1, 70, ta, tb, 70, 70, 1, 1.0f, beta);
        }
      }
      multiply<bf16, V>(
          cpu, gpu, rng, 17, 33, 20, ta, tb, 3, 60, 40, 1.5f, 0.0f,
          ta || !std::is_same_v<V, bf16> ? 1 : 7);  // rows that overlap: 20 columns in strips of 3
    }
  }
}

TEMPLATE_TEST_CASE("CUDA: long sums of bfloat16 are taken in float32, into", "", bf16, float) {
  using V = TestType;
  Cpu<bf16> cpu;
  Cuda<bf16> gpu;
  Rng rng(1);
  // Few tiles and a long sum, which cuBLAS shares out; and the widths of a layer of a language model.
  for (const auto [M, N, K] : {std::array<Index, 3>{16, 64, 16384}, {1, 512, 4096}, {128, 128, 4096}}) {
    const auto scope = cpu.scope();
    const auto device_scope = gpu.scope();
    INFO(M << " x " << N << " x " << K);
    const auto a = cpu.make<bf16, dyn, dyn>(M, K), b = cpu.make<bf16, dyn, dyn>(N, K);
    const auto c = cpu.make<V, dyn, dyn>(M, N);
    laws::fill_normal(a, 1, rng);
    laws::fill_normal(b, 1, rng);
    const auto ga = send(gpu, a), gb = send(gpu, b);
    const auto gc = send(gpu, c);
    gpu.matmul(ga.matrix(), gb.matrix().t(), gc.matrix());
    const auto got = fetch(cpu, gpu, gc);
    double worst = 0;
    for (Index i = 0; i < M; ++i) {
      for (Index j = 0; j < N; ++j) {
        double sum = 0, squares = 0;
        for (Index k = 0; k < K; ++k) {
          const double term = static_cast<double>(a(i, k)) * static_cast<double>(b(j, k));
          sum += term;
          squares += term * term;
        }
        worst = std::max(worst,
                         error_of_sum<bf16, V>(static_cast<double>(got(i, j)), sum, std::sqrt(squares), K));
      }
    }
    CHECK(worst <= 1);
  }
}

TEST_CASE("CUDA: a large product is float32, not TF32") {
  Cpu<float> cpu;
  Cuda<float> gpu;
  Rng rng(1);
  constexpr Index n = 512;
  const auto a = cpu.make<float, dyn, dyn>(n, n), b = cpu.make<float, dyn, dyn>(n, n);
  const auto c = cpu.make<float, dyn, dyn>(n, n);
  laws::fill_normal(a, 1, rng);
  laws::fill_normal(b, 1, rng);
  const auto ga = send(gpu, a), gb = send(gpu, b), gc = send(gpu, c);
  cpu.matmul(a.matrix(), b.matrix(), c.matrix());
  gpu.matmul(ga.matrix(), gb.matrix(), gc.matrix());
  CHECK(laws::largest_difference(fetch(cpu, gpu, gc).data(), c.data(), c.size()) <=
        laws::agreement<float>(n, 1));
}

TEST_CASE("CUDA: a team's primitives equal the CPU's") {
  Cpu<float> cpu;
  Cuda<float> gpu;
  Rng rng(1);
  // Scratch in shared memory, in more of it than by default, and in global memory; rows beyond the grid.
  for (const auto [rows, n] : {std::pair<Index, Index>{70000, 5}, {40, 1000}, {33, 20000}, {600, 70000}}) {
    for (const Index cost : {1, 1000, 100000}) {
      const auto scope = cpu.scope();
      const auto device_scope = gpu.scope();
      INFO(rows << " rows of " << n << ", cost " << cost);
      const auto x = cpu.make<float, dyn, dyn>(rows, n);
      for (Index i = 0; i < x.size(); ++i)  // small whole numbers: sums are exact in any order, maxima tie
        x.data()[i] =
            static_cast<float>(static_cast<int>(philox(3, static_cast<std::uint64_t>(i)).word[0] % 17) - 8);
      const auto out = cpu.make<double, dyn, dyn>(rows, 6);
      const auto gx = send(gpu, x);
      const auto gout = send(gpu, out);
      const Index scratch = n * static_cast<Index>(sizeof(float));
      cpu.rows(rows, Primitives{x.data(), out.data(), n}, scratch, cost);
      gpu.rows(rows, Primitives{gx.data(), gout.data(), n}, scratch, cost);
      CHECK(laws::detail::same_bits(fetch(cpu, gpu, gout).data(), out.data(), out.size()));
    }
  }
}

TEST_CASE("CUDA: a row of NaN has an argmax in range") {
  Cuda<float> gpu;
  const auto x = gpu.make<float, dyn>(100);
  const auto out = gpu.make<double, dyn>(6);
  gpu.fill(x.data(), x.size(), static_cast<float>(NAN));
  gpu.rows(1, Primitives{x.data(), out.data(), 100}, 400);
  double host[6];
  gpu.to_host(out.data(), host, 6);
  CHECK((host[3] >= 0 && host[3] < 100));
}

TEST_CASE("CUDA: a team's product") {
  Cpu<double> cpu;
  Cuda<double> gpu;
  Rng rng(1);
  constexpr Index m = 9, n = 31, k = 40;
  const auto a = cpu.make<double, dyn, dyn>(m, k), b = cpu.make<double, dyn, dyn>(n, k);
  const auto c = cpu.make<double, dyn, dyn>(m, n);
  laws::fill_normal(a, 1, rng);
  laws::fill_normal(b, 1, rng);
  cpu.fill(c.data(), c.size(), static_cast<double>(NAN));
  const auto ga = send(gpu, a), gb = send(gpu, b), gc = send(gpu, c);
  cpu.rows(1, TeamProduct{a.data(), b.data(), c.data(), m, n, k}, m * k * 8);
  gpu.rows(1, TeamProduct{ga.data(), gb.data(), gc.data(), m, n, k}, m * k * 8);
  CHECK(laws::largest_difference(fetch(cpu, gpu, gc).data(), c.data(), c.size()) <=
        laws::agreement<double>(k, 1));
}

TEST_CASE("CUDA: element-wise functions reach every element once") {
  Cuda<float> gpu;
  for (const Index n : {Index{1}, Index{1000}, Index{5000001}}) {
    const auto scope = gpu.scope();
    const auto seen = gpu.make<int, dyn>(n);
    gpu.fill(seen.data(), n, 41);
    gpu.for_each(n, Count{seen.data()});
    std::vector<int> host(static_cast<std::size_t>(n));
    gpu.to_host(seen.data(), host.data(), n);
    CHECK(std::count(host.begin(), host.end(), 42) == n);
  }
}

TEST_CASE("CUDA: memory is zero at the start, fill and copy take any type") {
  Cuda<float> gpu;
  CudaMemory memory(gpu, 1 << 20);
  std::vector<std::byte> bytes(1 << 20, std::byte{1});
  gpu.to_host(static_cast<const std::byte*>(memory.data()), bytes.data(), 1 << 20);
  CHECK(std::count(bytes.begin(), bytes.end(), std::byte{0}) == 1 << 20);
  const auto a = gpu.make<std::int64_t, dyn>(100), b = gpu.make<std::int64_t, dyn>(100);
  gpu.fill(a.data(), 100, std::int64_t{-5});
  gpu.copy(a.data(), b.data(), 100);
  gpu.fill(a.data(), 0, std::int64_t{3});
  std::int64_t host[100];
  gpu.to_host(b.data(), host, 100);
  CHECK(std::count(host, host + 100, -5) == 100);
  const auto c = gpu.make<std::uint8_t, dyn>(100);
  gpu.fill(c.data(), 100, std::uint8_t{200});
  std::uint8_t small[100];
  gpu.to_host(c.data(), small, 100);
  CHECK(std::count(small, small + 100, 200) == 100);
}

TEST_CASE("CUDA: views of one backend in other types share its stream, its arena and its life") {
  Cuda<float> wide = [] {
    const Cuda<bf16> narrow;
    Cuda<float> view = narrow.as<float>();
    CHECK(view.stream() == narrow.stream());
    CHECK(view.arena_bytes() == narrow.arena_bytes());
    return view;
  }();  // the first view has ended
  Cuda<bf16> narrow = wide.as<bf16>();
  const Index before = wide.arena_bytes();
  const float* first = nullptr;
  {
    const auto scope = narrow.scope();
    first = wide.make<float, dyn>(Index{1} << 20).data();
    CHECK(narrow.arena_bytes() > before);
    CHECK(narrow.arena_bytes() == wide.arena_bytes());
  }
  CHECK(narrow.make<float, dyn>(Index{1} << 20).data() == first);  // released by the other view's scope

  // Work of both keeps its order: a product in bfloat16 of what float32 kernels have written, and back.
  const auto a = narrow.make<bf16, dyn, dyn>(64, 64), b = narrow.make<bf16, dyn, dyn>(64, 64);
  const auto c = wide.make<float, dyn, dyn>(64, 64);
  for (int round = 0; round < 20; ++round) {
    narrow.fill(a.data(), a.size(), bf16(1 + round));
    narrow.fill(b.data(), b.size(), bf16(2));
    narrow.matmul(a.matrix(), b.matrix(), c.matrix());
    wide.for_each(c.size(), Step{c.data()});
  }
  float last = 0;
  wide.to_host(&c(63, 63), &last, 1);
  CHECK(last == 3 * (64 * 20 * 2) + 1);
}

TEST_CASE("CUDA: a recorded graph does what the calls did, as often as it is launched") {
  Cuda<float> gpu;
  constexpr Index n = 300;
  const auto x = gpu.make<float, dyn, dyn>(n, n), y = gpu.make<float, dyn, dyn>(n, n);
  const auto kept = gpu.make<float, dyn, dyn>(n, n);
  const auto work = [&] {  // kernels, a copy, a product, a fill, scratch of rows in global memory
    const auto scope = gpu.scope();
    gpu.for_each(x.size(), Step{x.data()});
    gpu.copy(x.data(), kept.data(), x.size());
    gpu.matmul(x.matrix(), kept.matrix(), y.matrix(), 1e-3f);
    gpu.fill(kept.data(), n, 0.5f);
    const auto sums = gpu.make<double, dyn, dyn>(n, 6);
    gpu.rows(n, Primitives{y.data(), sums.data(), n}, Index{1} << 20);
  };
  const auto run = [&](const auto& each) {
    std::vector<float> result(static_cast<std::size_t>(3 * n * n));
    gpu.fill(x.data(), x.size(), 0.25f);
    for (int i = 0; i < 4; ++i) each();
    gpu.to_host(x.data(), result.data(), n * n);
    gpu.to_host(y.data(), result.data() + n * n, n * n);
    gpu.to_host(kept.data(), result.data() + 2 * n * n, n * n);
    return result;
  };
  const auto expected = run(work);
  gpu.fill(x.data(), x.size(), 7.0f);
  CudaGraph graph = gpu.capture(work);
  float untouched = 0;
  gpu.to_host(x.data(), &untouched, 1);
  CHECK(untouched == 7.0f);  // recording runs nothing
  CHECK(graph.nodes() >= 5);
  for (int again = 0; again < 2; ++again) {
    CHECK(run([&] { graph.launch(); }) == expected);
    const auto scope = gpu.scope();  // whoever takes the arena in between does no harm
    const auto other = gpu.make<float, dyn>(Index{1} << 22);
    gpu.fill(other.data(), other.size(), static_cast<float>(NAN));
  }
  CudaGraph moved = std::move(graph);
  CHECK(run([&] { moved.launch(); }) == expected);
}

TEST_CASE("CUDA: the arena may grow while a graph is recorded") {
  Cuda<float> gpu;
  const auto x = gpu.make<float, dyn>(1000);
  gpu.fill(x.data(), 1000, 1.0f);
  const Index before = gpu.arena_bytes();
  const auto work = [&] {
    const auto scope = gpu.scope();
    const auto large = gpu.make<float, dyn>(Index{1} << 24);
    gpu.copy(x.data(), large.data(), 1000);
    gpu.for_each(1000, Step{large.data()});
    gpu.copy(large.data(), x.data(), 1000);
  };
  CudaGraph graph = gpu.capture(work);
  CHECK(gpu.arena_bytes() > before);
  float last = 0;
  for (const float expected : {4.0f, 13.0f, 40.0f}) {
    graph.launch();
    gpu.to_host(&x(999), &last, 1);
    CHECK(last == expected);
  }
}

TEST_CASE("CUDA: a graph keeps alive what it works on") {
  const auto record = [](float*& x) {
    Cuda<float> gpu;
    x = gpu.make<float, dyn>(10).data();
    gpu.fill(x, 10, 1.0f);
    return gpu.capture([&] { gpu.for_each(10, Step{x}); });
  };
  float* x = nullptr;
  CudaGraph graph = record(x);
  graph.launch();
  float host[10]{};
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE(cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost) == cudaSuccess);
  CHECK(host[9] == 4.0f);
}
