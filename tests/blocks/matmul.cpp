// Products of the CPU backend: every transposition, stride, alpha and beta against sums written out; and the
// same bits whatever the number of threads.
#include <cmath>
#include <cstring>
#include <vector>

#include "catch.hpp"
#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/core/rng.hpp"

namespace {
using namespace mttt;

template <class T>
struct Problem {
  Index M, N, K, gap;  // `gap` unused elements at the end of each row
  bool at, bt;
  std::vector<T> a, b, c;

  Problem(Index m, Index n, Index k, Index g, bool a_transposed, bool b_transposed)
      : M(m), N(n), K(k), gap(g), at(a_transposed), bt(b_transposed) {
    Rng rng(static_cast<std::uint64_t>(m + 1000 * n + 7 * k));
    const auto fill = [&](std::vector<T>& v, Index rows, Index cols) {
      v.resize(static_cast<std::size_t>(rows * (cols + gap)));
      for (T& x : v) x = static_cast<T>(rng.normal());
    };
    at ? fill(a, K, M) : fill(a, M, K);
    bt ? fill(b, N, K) : fill(b, K, N);
    fill(c, M, N);
  }
  Matrix<const T> A() const {
    return at ? Matrix<const T>{a.data(), K, M, M + gap}.t() : Matrix<const T>{a.data(), M, K, K + gap};
  }
  Matrix<const T> B() const {
    return bt ? Matrix<const T>{b.data(), N, K, K + gap}.t() : Matrix<const T>{b.data(), K, N, N + gap};
  }
  Matrix<T> C() { return {c.data(), M, N, N + gap}; }

  static double at_of(Matrix<const T> m, Index i, Index j) {
    return static_cast<double>(m.transposed ? m.data[j * m.ld + i] : m.data[i * m.ld + j]);
  }
  /// Largest error of c against alpha a b + beta before, in units of sqrt(K).
  double error(const std::vector<T>& before, double alpha, double beta) {
    double worst = 0;
    for (Index i = 0; i < M; ++i) {
      for (Index j = 0; j < N + gap; ++j) {
        const auto here = static_cast<std::size_t>(i * (N + gap) + j);
        double expected = static_cast<double>(before[here]);
        if (j < N) {
          double sum = 0;
          for (Index k = 0; k < K; ++k) sum += at_of(A(), i, k) * at_of(B(), k, j);
          expected = alpha * sum + (beta == 0 ? 0 : beta * expected);
        }
        const double difference = std::abs(static_cast<double>(c[here]) - expected);
        worst = std::isfinite(difference) ? std::max(worst, difference) : INFINITY;
      }
    }
    return worst / std::sqrt(static_cast<double>(K));
  }
};

template <class T>
void check_products(double tolerance) {
  Cpu<T> be;
  for (const Index M : {1, 3, 17, 70}) {
    for (const Index N : {1, 5, 64, 133}) {
      for (const Index K : {1, 7, 96, 150}) {
        for (int kind = 0; kind < 4; ++kind) {
          Problem<T> p(M, N, K, kind == 3 ? 5 : 0, (kind & 1) != 0, (kind & 2) != 0);
          INFO(M << " x " << N << " x " << K << ", kind " << kind);
          const auto before = p.c;
          be.matmul(p.A(), p.B(), p.C(), T(0.5), T(2));
          CHECK(p.error(before, 0.5, 2) < tolerance);
          p.c = before;
          CpuTeam(nullptr).matmul<T>(p.A(), p.B(), p.C(), T(0.5), T(2));
          CHECK(p.error(before, 0.5, 2) < tolerance);
          if (p.gap > 0) continue;
          std::fill(p.c.begin(), p.c.end(), static_cast<T>(NAN));  // beta = 0 overwrites even NaN
          be.matmul(p.A(), p.B(), p.C());
          CHECK(p.error(p.c, 1, 0) < tolerance);
          std::fill(p.c.begin(), p.c.end(), static_cast<T>(NAN));
          CpuTeam(nullptr).matmul<T>(p.A(), p.B(), p.C());
          CHECK(p.error(p.c, 1, 0) < tolerance);
        }
      }
    }
  }
}

}  // namespace

TEST_CASE("products in float32") { check_products<float>(1e-5); }
TEST_CASE("products in float64") { check_products<double>(1e-14); }

TEST_CASE("products have the same bits on any number of threads") {
  for (const Index M : {1, 3, 17, 40, 129, 500}) {
    for (const Index N : {5, 64, 333, 700}) {
      for (const Index K : {7, 96, 700}) {
        for (int kind = 0; kind < 4; ++kind) {
          Problem<float> one(M, N, K, 0, (kind & 1) != 0, (kind & 2) != 0), more = one;
          Cpu<float> single(1), several(3);
          single.matmul(one.A(), one.B(), one.C());
          several.matmul(more.A(), more.B(), more.C());
          INFO(M << " x " << N << " x " << K << ", kind " << kind);
          CHECK(std::memcmp(one.c.data(), more.c.data(), one.c.size() * sizeof(float)) == 0);
        }
      }
    }
  }
}
