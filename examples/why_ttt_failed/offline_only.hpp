// Two functions that the earlier attempt computed in place of a TTT layer, with the weights of a TTT layer:
//
//   HearsAhead<B>     on this backend every token of a mini-batch is answered by the weights that have learned from
//                     all of them, those behind it among them: the masks of the dual form are full. That is how the
//                     attempt trained.
//   PadsWithZeros<B>  on this one a stream makes of every token a mini-batch of its own, followed by zeros. That is
//                     how the attempt streamed.
//
// A model changes its function with its backend, Temporal<C, HearsAhead<Cuda<bf16>>>, and keeps its weights.
//
// Formula: W_C = W - scale_C (sum over all s of lr_s dl(W; s) / dW),  o_t = q_t + LN(net(q_t; W_C)) for all t.
//          A causal mini-batch of 2 C tokens does this: first C that are learned from and whose answers nobody
//          reads, then C that are answered and learned from at the rate 0. So the library's own scans run it, the
//          kernels of the GPU too, forward and backward.
// Shapes:  those of ttt/ttt.hpp.
// Units:   none.
// Errors:  a length that is not a multiple of C; step() of a layer that hears ahead does not compile.
// Not supported: streams of a layer that hears ahead: their next frame would need those after it.
// Source:  ttt-video-dit ttt_layer.py, whose eta and Q K^T are full matrices.
#pragma once

#include <utility>

#include "mttt/ttt/ttt.hpp"

namespace why {
using namespace mttt;

/// to (B, 2 T, width): mini-batches of 2 C tokens, one half of which is that of `from`; the other is 0.
template <class T>
struct IntoHalf {
  const T* from;  // (B, T, width)
  T* to;
  Index mini_batch, width, half;
  MTTT_HD void operator()(Index i) const {
    const Index token = i / width, place = token % (2 * mini_batch);
    const Index at = token / (2 * mini_batch) * mini_batch + place % mini_batch;
    to[i] = place / mini_batch == half ? from[at * width + i % width] : T(0);
  }
};
/// And back.
template <class T>
struct FromHalf {
  const T* from;
  T* to;  // (B, T, width)
  Index mini_batch, width, half;
  MTTT_HD void operator()(Index i) const {
    const Index token = i / width, m = token / mini_batch;
    to[i] = from[((2 * m + half) * mini_batch + token % mini_batch) * width + i % width];
  }
};
/// All answers, and what is carried on, are at the scale of the last token.
template <class A>
struct LastScale {
  const A* from;  // (C)
  A* to;          // (2 C)
  Index mini_batch;
  MTTT_HD void operator()(Index i) const { to[i] = from[mini_batch - 1]; }
};
template <class A>
struct LastScaleBackward {
  const A* from;  // (B H, 2 C)
  A* to;          // (B H, C)
  Index mini_batch;
  MTTT_HD void operator()(Index head) const {
    A sum = 0;
    for (Index i = 0; i < 2 * mini_batch; ++i) sum += from[head * 2 * mini_batch + i];
    to[head * mini_batch + mini_batch - 1] += sum;
  }
};

template <class B>
class FullMasks : public B {
  static constexpr Index learned_from = 0, answered = 1;  // the halves

 public:
  using B::B;
  using B::rows;
  FullMasks() = default;
  explicit FullMasks(B base) : B(std::move(base)) {}

  template <class T, class A>
  void rows(Index count, const TttForward<T, A>& scan, Index scratch, Index cost) {
    forward(scan, [&](const TttForward<T, A>& twice) { B::rows(count, twice, 4 * scratch, 2 * cost); });
  }
  template <class T, class A>
  void rows(Index count, const TttBackward<T, A>& scan, Index scratch, Index cost) {
    backward(scan, [&](const TttBackward<T, A>& twice) { B::rows(count, twice, 4 * scratch, 2 * cost); });
  }

  /// Kernels, where the backend has them for mini-batches twice as long.
  template <Index width, Index hidden, Index layers, Index mini_batch>
  static constexpr bool fuses_ttt = requires {
    requires B::template fuses_ttt<width, hidden, layers, 2 * mini_batch>;
  };
  template <Index width, Index hidden, Index layers, Index mini_batch, class T, class A>
  void ttt_forward(const TttForward<T, A>& scan) {
    forward(scan, [&](const TttForward<T, A>& twice) {
      B::template ttt_forward<width, hidden, layers, 2 * mini_batch>(twice);
    });
  }
  template <Index width, Index hidden, Index layers, Index mini_batch, class T, class A>
  void ttt_backward(const TttBackward<T, A>& scan) {
    backward(scan, [&](const TttBackward<T, A>& twice) {
      B::template ttt_backward<width, hidden, layers, 2 * mini_batch>(twice);
    });
  }

 private:
  template <class T, class A, class Run>
  void forward(const TttForward<T, A>& scan, const Run& run) {
    const auto scope = this->scope();
    const TttScan<T, A> once = scan.scan, twice = doubled(once);
    T* out = this->template make<T, dyn>(2 * tokens(once) * once.heads * once.model.width).data();
    run(TttForward<T, A>{twice, scan.weights, scan.gradients, out});
    pick(once, out, scan.out, once.heads * once.model.width, answered);
  }

  template <class T, class A, class Run>
  void backward(const TttBackward<T, A>& scan, const Run& run) {
    const auto scope = this->scope();
    const TttScan<T, A> once = scan.scan, twice = doubled(once);
    const Index width = once.heads * once.model.width, n = 2 * tokens(once) * width;
    T *dq = this->template make<T, dyn>(n).data(), *dk = this->template make<T, dyn>(n).data(),
      *dtarget = this->template make<T, dyn>(n).data();
    A* dlr = this->template make<A, dyn>(2 * tokens(once) * once.heads).data();
    const auto dscale = this->template make<A, dyn>(once.batch * once.heads * 2 * once.mini_batch);
    this->fill(dscale.data(), dscale.size(), A(0));
    run(TttBackward<T, A>{twice, spread(once, scan.dout, width, answered), dq, dk, dtarget, dlr,
                          dscale.data(), scan.dgamma, scan.dbeta, scan.dweights});
    pick(once, dq, scan.dq, width, answered);
    pick(once, dk, scan.dk, width, learned_from);
    pick(once, dtarget, scan.dtarget, width, learned_from);
    pick(once, dlr, scan.dlr, once.heads, learned_from);
    this->for_each(once.batch * once.heads,
                   LastScaleBackward<A>{dscale.data(), scan.dscale, once.mini_batch});
  }

  template <class T, class A>
  static Index tokens(const TttScan<T, A>& scan) {
    return scan.batch * scan.steps;
  }
  template <class T, class A>
  TttScan<T, A> doubled(TttScan<T, A> scan) {
    if (scan.steps % scan.mini_batch != 0) {
      fail("a TTT layer that hears ahead", std::to_string(scan.steps) + " tokens",
           "a multiple of " + std::to_string(scan.mini_batch), "cut or fill up the sequence");
    }
    const Index width = scan.heads * scan.model.width;
    A* scale = this->template make<A, dyn>(2 * scan.mini_batch).data();
    this->for_each(2 * scan.mini_batch, LastScale<A>{scan.scale, scale, scan.mini_batch});
    TttScan<T, A> twice = scan;
    twice.q = spread(scan, scan.q, width, answered);
    twice.k = spread(scan, scan.k, width, learned_from);
    twice.target = spread(scan, scan.target, width, learned_from);
    twice.lr = spread(scan, scan.lr, scan.heads, learned_from);
    twice.scale = scale;
    twice.steps *= 2;
    twice.mini_batch *= 2;
    return twice;
  }
  template <class T, class A, class U>
  const U* spread(const TttScan<T, A>& scan, const U* from, Index width, Index half) {
    const auto to = this->template make<U, dyn>(2 * tokens(scan) * width);
    this->for_each(to.size(), IntoHalf<U>{from, to.data(), scan.mini_batch, width, half});
    return to.data();
  }
  template <class T, class A, class U>
  void pick(const TttScan<T, A>& scan, const U* from, U* to, Index width, Index half) {
    this->for_each(tokens(scan) * width, FromHalf<U>{from, to, scan.mini_batch, width, half});
  }
};

template <class B>
struct HearsAhead : FullMasks<B> {
  using FullMasks<B>::FullMasks;
  HearsAhead() = default;
};

template <class B>
struct PadsWithZeros : B {
  using B::B;
  PadsWithZeros() = default;
  explicit PadsWithZeros(B base) : B(std::move(base)) {}
};

/// to (B, C, width): a token, then zeros
template <class T>
struct Pad {
  const T* from;  // (B, width)
  T* to;
  Index mini_batch, width;
  MTTT_HD void operator()(Index i) const {
    const Index token = i / width;
    to[i] = token % mini_batch == 0 ? from[token / mini_batch * width + i % width] : T(0);
  }
};
template <class T>
struct Unpad {
  const T* from;  // (B, C, width)
  T* to;
  Index mini_batch, width;
  MTTT_HD void operator()(Index i) const { to[i] = from[i / width * mini_batch * width + i % width]; }
};

}  // namespace why

namespace mttt {

/// Offline only.
template <TttConfig C, class B>
struct Ttt<C, why::HearsAhead<B>> : Ttt<C, why::FullMasks<B>> {
  static void step(auto&&...) = delete;  // the answer to a token would need those that are still to come
};

/// In a stream, one token at a time and of all sessions.
template <TttConfig C, class B>
struct Ttt<C, why::PadsWithZeros<B>> : Ttt<C, B> {
  using Layer = Ttt<C, B>;
  using T = typename B::Scalar;
  static void step(B& be, const typename Layer::Params& p, typename Layer::State& state,
                   Sequence<const T, C.dim> x, Sequence<T, C.dim> y, Mask) {
    const auto scope = be.scope();
    const Index batch = x.extent(0), n = C.mini_batch_size;
    const auto padded = be.template make<T, dyn, dyn, C.dim>(batch, n),
               out = be.template make<T, dyn, dyn, C.dim>(batch, n);
    be.for_each(padded.size(), why::Pad<T>{x.data(), padded.data(), n, C.dim});
    typename Layer::Saved saved;
    Layer::forward(be, p, padded, out, saved, {&state, &state, {}});
    be.for_each(y.size(), why::Unpad<T>{out.data(), y.data(), n, C.dim});
  }
};

}  // namespace mttt
