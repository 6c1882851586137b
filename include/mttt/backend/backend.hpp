// Backend: the vocabulary in which every block is written once. This page is the porting guide.
//
//   Scalar, Accum              storage type; type of sums, norms, softmax and inner loops
//   Memory                     owns bytes that live as long as it does (parameters, states); zero at the
//   start make<T, E...>(dims...)     a tensor in the arena; `scope()` returns a guard that releases what
//   follows it matmul(a, b, c, alpha, beta)            C = alpha A B + beta C, any of A and B transposed
//   matmul_grid(no, ni, a, b, c, alpha, beta)  the same for no x ni pairs of planes (batch x heads)
//   for_each(n, f)             f(i) for i in [0, n), in any order: the element-wise functions
//   rows(n, f, scratch)        f(team, i) for i in [0, n): one team a row, see below
//   copy, fill                 bytes and values
//   to_host, to_device         between the backend's memory and the host's
//
// A functor is a named struct at namespace scope with `operator() const`, marked MTTT_HD, holding pointers
// and numbers; its template parameters are types and integers (a config must not reach a kernel's signature).
// A team works on one row together:
//   team.for_each(n, g)  g(i) in any order        team.sum<A>(n, g)  the sum of g(i), known to all members
//   team.max<A>(n, g)    the largest              team.argmax<A>(n, g)  its first index
//   team.matmul(a, b, c, alpha, beta)  a product of planes that fit into a cache
//   team.scratch<T>()    `scratch` bytes of fast memory        team.sync()  order what was written before
//   what is read
// On a CPU a team is one thread and its loops vectorise; on a GPU it is a warp or a thread block.
//
// A fused kernel is an optional member, taken by `if constexpr (requires { be.the_kernel(...); })`; the
// composed form stays as its reference. Shapes:  matrices are row-major planes with a leading dimension
// (core/tensor.hpp). Units:   elements. Errors:  Error for memory that cannot be had. Not supported: run-time
// choice of backend; it is a type. Source:  BLAS for the products; Kokkos' team policies for the rows.
#pragma once

#include <concepts>

#include "mttt/core/tensor.hpp"

namespace mttt {

namespace detail {
struct AnyMap {
  MTTT_HD void operator()(Index) const {}
};
struct AnyRow {
  template <class Team>
  MTTT_HD void operator()(Team, Index) const {}
};
}  // namespace detail

template <class B>
concept Backend = requires(B be, Index n, typename B::Scalar* p, const typename B::Scalar* q,
                           Matrix<const typename B::Scalar> a, Matrix<typename B::Scalar> c,
                           MatrixGrid<const typename B::Scalar> ga, MatrixGrid<typename B::Scalar> gc,
                           typename B::Scalar s) {
  typename B::Scalar;
  typename B::Accum;
  typename B::Memory;
  be.scope();
  { be.template make<float, dyn, 4>(n) } -> std::same_as<Tensor<float, dyn, 4>>;
  be.matmul(a, a, c, s, s);
  be.matmul_grid(n, n, ga, ga, gc, s, s);
  be.for_each(n, detail::AnyMap{});
  be.rows(n, detail::AnyRow{}, n);
  be.copy(q, p, n);
  be.fill(p, n, s);
  be.to_host(q, p, n);
  be.to_device(q, p, n);
};

}  // namespace mttt
