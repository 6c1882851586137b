// Backend: the vocabulary in which every block is written once. This page is the porting guide.
//
// Types:
//   Scalar                          storage type of activations, parameters and gradients
//   Accum                           type of sums, norms, softmax and inner loops
//   Memory                          owns bytes while it lives (parameters, states), zero at the start
//
// Memory of activations:
//   make<T, E...>(dims...)          a tensor in the arena, its contents undefined; a number for each dyn
//   scope()                         a guard: it releases what was made after it
//
// Work:
//   matmul(a, b, c, alpha, beta)    C = alpha A B + beta C; any of A and B may be transposed. C holds what A
//                                   and B hold, or the type to compute in (gradients of bf16 weights)
//   matmul_grid(no, ni, a, b, c, alpha, beta)
//                                   the same for no x ni pairs of planes (batch x heads)
//   map(n, f, out, in...)           out[i] = f(in[i]...) for i in [0, n): f gets and gives the type to compute in;
//                                   out may be one of the inputs. The element-wise functions, at memory speed
//   for_each(n, f)                  f(i) for i in [0, n), in any order
//   rows(n, f, scratch, cost)       f(team, i) for i in [0, n): one team a row; scratch in bytes a team, cost
//                                   in operations a row, roughly
//   as<U>()                         the same backend, its memory and its order of work, for blocks that
//                                   store U
//   copy(from, to, n)               n elements
//   fill(to, n, value)              n elements
//   to_host(from, to, n), to_device(from, to, n)
//                                   between the backend's memory and the host's
//
// The team of a row works on it together. A CPU's team is one thread whose loops vectorise; a GPU's is a warp
// or a thread block:
//   team.map(n, g, out, in...)      out[i] = g(in[i]...), as above
//   team.for_each(n, g)             g(i) for i in [0, n), in any order
//   team.sum<A>(n, g)               the sum of g(i), known to all members
//   team.sum<A>(n, g, in...)        the sum of g(in[i]...)
//   team.max<A>(n, g)               the largest g(i)
//   team.argmax<A>(n, g)            the first index of the largest
//   team.rows(n, g)                 g(part, r) for r in [0, n): parts of the team, a GPU's warps, take rows that need
//                                   not wait for each other. A part has for_each, sum, sync and leader; the
//                                   team waits after all rows where it wants to read what they wrote
//   team.histogram(n, bins, g, counts)
//                                   counts[j] = how many i have g(i) = j, for j in [0, bins); others are not
//                                   counted. counts in scratch
//   team.scan(n, counts)            counts[i] becomes the sum of counts[0] to counts[i]
//   team.matmul(a, b, c, alpha, beta)
//                                   a product of planes that fit into a cache
//   team.scratch<T>()               `scratch` bytes of fast memory
//   team.sync()                     what was written before is seen by what reads after
//   team.leader()                   true for one member: single numbers are written by it
//
// f is a named struct at namespace scope with `operator() const`, marked MTTT_HD, that holds pointers and
// numbers. Its template parameters are types and integers: a config must not reach a kernel's signature.
//
// A fused kernel is an optional member, taken by `if constexpr (requires { be.the_kernel(...); })`; the
// composed form stays as its reference and its test. So is what a backend's libraries do well:
//   sort_pairs(keys, values, n, largest)
//                                   keys in order with their values (gradients of embeddings)
//
// Shapes:  matrices are row-major planes with a leading dimension (core/tensor.hpp).
// Units:   elements, unless bytes are named.
// Errors:  Error for memory that cannot be had.
// Not supported: run-time choice of backend; it is a type.
// Source:  BLAS for the products; Kokkos' team policies for the rows.
#pragma once

#include <concepts>

#include "mttt/core/bf16.hpp"
#include "mttt/core/tensor.hpp"

namespace mttt {

namespace detail {
struct AnyMap {
  MTTT_HD void operator()(Index) const {}
  template <class A>
  MTTT_HD A operator()(A x) const {
    return x;
  }
};
struct AnyRow {
  template <class Team>
  MTTT_HD void operator()(Team, Index) const {}
};
}  // namespace detail

/// What matmul multiplies (UA and UB alike) and where the product may go.
template <class UA, class UB, class V>
concept ProductTypes = std::same_as<std::remove_const_t<UA>, std::remove_const_t<UB>> && StorageType<V> &&
    (std::same_as<std::remove_const_t<UA>, V> || std::same_as<Wide<UA>, V>);

template <class B>
concept Backend = requires(B be, Index n, typename B::Scalar* p, const typename B::Scalar* q,
                           Matrix<const typename B::Scalar> a, Matrix<typename B::Scalar> c,
                           MatrixGrid<const typename B::Scalar> ga, MatrixGrid<typename B::Scalar> gc,
                           typename B::Scalar s, typename B::Accum w) {
  typename B::Scalar;
  typename B::Accum;
  typename B::Memory;
  be.scope();
  be.template as<double>();
  { be.template make<float, dyn, 4>(n) } -> std::same_as<Tensor<float, dyn, 4>>;
  be.matmul(a, a, c, w, w);
  be.matmul_grid(n, n, ga, ga, gc, w, w);
  be.map(n, detail::AnyMap{}, p, q);
  be.for_each(n, detail::AnyMap{});
  be.rows(n, detail::AnyRow{}, n);
  be.copy(q, p, n);
  be.fill(p, n, s);
  be.to_host(q, p, n);
  be.to_device(q, p, n);
};

}  // namespace mttt
