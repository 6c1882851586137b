// Emulated<T>: the CPU with teams of several members, as a GPU has them, each a thread of its own.
//
// A functor that forgets a team.sync(), or lets two members write one place, is right by chance with a team of
// one. Here its numbers differ, now and then or always, and a build with -fsanitize=thread names the lines. The
// members' share of each loop is that of CudaTeam: strided, and by packs of neighbours in `map`.
#pragma once

#include <atomic>
#include <barrier>
#include <memory>
#include <thread>
#include <vector>

#include "mttt/backend/cpu/cpu.hpp"
#include "mttt/backend/member_matmul.hpp"

namespace mttt::testing {

inline constexpr Index members = 3;  // divides no usual width

/// Part of a team: one member alone.
class EmulatedPart {
 public:
  template <class F>
  void for_each(Index n, const F& f) const {
    for (Index i = 0; i < n; ++i) f(i);
  }
  template <class A, class F>
  A sum(Index n, const F& f) const {
    A total = 0;
    for (Index i = 0; i < n; ++i) total += f(i);
    return total;
  }
  void sync() const {}
  bool leader() const { return true; }
};

class EmulatedTeam {
 public:
  struct Shared {
    std::barrier<> barrier{members};
    alignas(16) std::byte slots[members][16];
  };
  EmulatedTeam(Shared& shared, Index member, void* scratch)
      : shared_(&shared), member_(member), scratch_(scratch) {}

  template <class F, class Out, class... In>
  void map(Index n, const F& f, Out* out, const In*... in) const {
    const Index width = n % pack == 0 ? pack : 1;
    for (Index i = member_ * width; i < n; i += members * width) {
      for (Index k = i; k < i + width; ++k) out[k] = static_cast<Out>(f(wide(in[k])...));
    }
  }
  template <class F>
  void for_each(Index n, const F& f) const {
    for (Index i = member_; i < n; i += members) f(i);
  }
  template <class A, class F>
  A sum(Index n, const F& f) const {
    sync();
    A part = 0;
    for_each(n, [&](Index i) { part += f(i); });
    return reduce(part, [](A a, A b) { return a + b; });
  }
  template <class A, class F, class... In>
  requires(sizeof...(In) > 0) A sum(Index n, const F& f, const In*... in)
  const {
    return sum<A>(n, [&](Index i) { return f(wide(in[i])...); });
  }
  template <class A, class F>
  A max(Index n, const F& f) const {
    sync();
    A part = f(0);  // as members without an element do
    for_each(n, [&](Index i) { part = std::max(part, static_cast<A>(f(i))); });
    return reduce(part, [](A a, A b) { return a < b ? b : a; });
  }
  template <class A, class F>
  Index argmax(Index n, const F& f) const {
    sync();
    Index best = 0;
    for_each(n, [&](Index i) {
      if (static_cast<A>(f(i)) > static_cast<A>(f(best))) best = i;
    });
    return reduce(best, [&](Index a, Index b) {
      const A x = f(a), y = f(b);
      return y > x || (y == x && b < a) ? b : a;
    });
  }
  template <class F>
  void rows(Index n, const F& f) const {
    for (Index r = member_; r < n; r += members) f(EmulatedPart{}, r);
  }
  template <class F>
  void histogram(Index n, Index bins, const F& f, std::int32_t* counts) const {
    sync();
    for_each(bins, [&](Index i) { counts[i] = 0; });
    sync();
    for_each(n, [&](Index i) {
      const Index bin = f(i);
      if (bin >= 0 && bin < bins) std::atomic_ref(counts[bin]).fetch_add(1);
    });
    sync();
  }
  void scan(Index n, std::int32_t* counts) const {
    sync();
    if (leader()) {
      for (Index i = 1; i < n; ++i) counts[i] += counts[i - 1];
    }
    sync();
  }
  template <class T>
  void matmul(Matrix<const T> a, std::type_identity_t<Matrix<const T>> b, std::type_identity_t<Matrix<T>> c,
              std::type_identity_t<T> alpha = 1, std::type_identity_t<T> beta = 0) const {
    detail::member_matmul<T>(static_cast<int>(member_), static_cast<int>(members), a, b, c, alpha, beta);
  }
  template <class T>
  void matmul(Matrix<T> a, std::type_identity_t<Matrix<const T>> b, std::type_identity_t<Matrix<T>> c,
              std::type_identity_t<T> alpha = 1, std::type_identity_t<T> beta = 0) const {
    matmul(Matrix<const T>(a), b, c, alpha, beta);
  }
  template <class T>
  T* scratch() const {
    return static_cast<T*>(scratch_);
  }
  void sync() const { shared_->barrier.arrive_and_wait(); }
  bool leader() const { return member_ == 0; }

 private:
  static constexpr Index pack = 4;

  template <class V, class Join>
  V reduce(V part, const Join& join) const {
    static_assert(sizeof(V) <= 16);
    std::memcpy(shared_->slots[member_], &part, sizeof part);
    sync();
    V total;
    std::memcpy(&total, shared_->slots[0], sizeof total);
    for (Index m = 1; m < members; ++m) {
      V other;
      std::memcpy(&other, shared_->slots[m], sizeof other);
      total = join(total, other);
    }
    return total;
  }

  Shared* shared_;
  Index member_;
  void* scratch_;
};

/// All else is the CPU's, by one thread.
template <StorageType T>
class Emulated : public Cpu<T> {
 public:
  using Team = EmulatedTeam;
  Emulated() : Cpu<T>(1) {}

  /// The members live as long as a call: they go through the rows together.
  template <class F>
  void rows(Index n, const F& f, Index scratch = 0, Index = 256) {
    const auto guard = this->scope();
    std::byte* memory = scratch == 0 ? nullptr : this->template make<std::byte, dyn>(scratch).data();
    EmulatedTeam::Shared shared;
    const auto work = [&](Index member) {
      const EmulatedTeam team(shared, member, memory);
      for (Index i = 0; i < n; ++i) {
        f(team, i);
        team.sync();  // the next row takes the same scratch
      }
    };
    std::vector<std::thread> threads;
    for (Index m = 1; m < members; ++m) threads.emplace_back(work, m);
    work(0);
    for (auto& thread : threads) thread.join();
  }
};

}  // namespace mttt::testing
