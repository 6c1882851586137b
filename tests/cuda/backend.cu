// The CUDA backend itself: products, teams, memory, errors.
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

/// One product of every kind: the planes lie in buffers of random numbers, `ld` wider than they are.
template <class T>
void multiply(Cpu<T>& cpu, Cuda<T>& gpu, Rng& rng, Index M, Index N, Index K, bool ta, bool tb, Index a_ld,
              Index b_ld, Index c_ld, T alpha, T beta) {
  INFO(M << " x " << N << " x " << K << ", transposed " << ta << tb << ", ld " << a_ld << " " << b_ld << " "
         << c_ld << ", alpha " << alpha << ", beta " << beta);
  constexpr Index outer = 2, inner = 3;
  const auto scope = cpu.scope();
  const auto device_scope = gpu.scope();
  const auto buffer = [&] {
    const auto t = cpu.template make<T, dyn>(60000);
    laws::fill_normal(t, 1, rng);
    return t;
  };
  const auto a = buffer(), b = buffer(), c = buffer();
  if (beta == 0) cpu.fill(c.data(), c.size(), static_cast<T>(NAN));
  const auto ga = send(gpu, a), gb = send(gpu, b), gc = send(gpu, c);
  const auto grid = [&](const T* data, Index rows, Index cols, Index ld, bool transposed) {
    const Matrix<const T> plane =
        transposed ? Matrix<const T>{data, cols, rows, ld}.t() : Matrix<const T>{data, rows, cols, ld};
    return MatrixGrid<const T>{plane, 20000, 5000};
  };
  const auto A = grid(a.data(), M, K, a_ld, ta), B = grid(b.data(), K, N, b_ld, tb);
  gpu.matmul_grid(outer, inner, grid(ga.data(), M, K, a_ld, ta), grid(gb.data(), K, N, b_ld, tb),
                  MatrixGrid<T>{{gc.data(), M, N, c_ld}, 20000, 5000}, alpha, beta);
  const auto got = fetch(cpu, gpu, gc);
  double worst = 0;
  for (Index o = 0; o < outer; ++o) {
    for (Index p = 0; p < inner; ++p) {
      for (Index i = 0; i < M; ++i) {
        for (Index j = 0; j < N; ++j) {
          double sum = 0;
          for (Index k = 0; k < K; ++k)
            sum += static_cast<double>(element(A.at(o, p), i, k)) *
                   static_cast<double>(element(B.at(o, p), k, j));
          T& out = c.data()[o * 20000 + p * 5000 + i * c_ld + j];
          const double before = beta == 0 ? 0 : static_cast<double>(out);
          out = static_cast<T>(static_cast<double>(alpha) * sum + static_cast<double>(beta) * before);
          const double found = static_cast<double>(got.data()[&out - c.data()]);
          const double error = std::abs(found - static_cast<double>(out));
          worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
          got.data()[&out - c.data()] = out;
        }
      }
    }
  }
  CHECK(worst <= laws::agreement<T>(static_cast<double>(K) + 1, 4));
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

TEST_CASE("CUDA: what cannot be had is refused in one sentence, and the backend goes on") {
  using mttt::test::contains;
  Cuda<float> gpu;
  const auto impossible = [&] { gpu.make<float, dyn>(Index{1} << 44); };
  CHECK_THROWS_WITH(impossible(), contains("GPU memory: found") && contains("expected 67108864.0 MiB more") &&
                                      contains("lower batch"));
  const auto x = gpu.make<float, dyn>(10);
  gpu.fill(x.data(), 10, 2.0f);
  float host[10];
  gpu.to_host(x.data(), host, 10);
  CHECK(host[9] == 2.0f);
  CHECK_THROWS_WITH(Cuda<float>(1000), contains("CUDA: opening GPU 1000") && contains("nvidia-smi"));
}
