// Times the scans of a TTT layer alone, by the backend's own kernels and composed, beside published figures.
//
// Formula: FLOPs of products alone, of a mini-batch of C tokens and a layer of the inner model, in x out:
//          forward  6 C in out + C (C + 1) (in + out): keys and queries through W, the update, and the causal
//                   products, of which half is masked; 2 C in out more for each layer but the first
//          backward 12 C in out + 2 C (C + 1) (in + out), and 4 C in out; what is computed again is not
//          counted bytes of q, k, target, out; backward of those read and dout, dq, dk, dtarget: once each
// Shapes:  q, k, target, out (B, T, H F).
// Units:   milliseconds.
// Errors:  those of the backend.
// Not supported: other storage than bf16.
// Source:  the figures beside: read on one H200 with the programs of the publications that bench/NOTES.md
//          names.
#pragma once

#include <cstdio>

#include "mttt/cuda.cuh"
#include "mttt/ttt/dual.hpp"
#include "timing.cuh"

namespace bench {

struct TokenScales {
  float* to;
  MTTT_HD void operator()(mttt::Index i) const { to[i] = 1 / static_cast<float>(i + 1); }
};

/// One shape's tensors and scans. A published figure of 0: there is none.
template <mttt::Index F, mttt::Index hidden, mttt::Index layers, mttt::Index C>
class TttBench {
 public:
  using Index = mttt::Index;
  using bf16 = mttt::bf16;
  using B = mttt::Cuda<bf16>;
  static constexpr mttt::InnerModel model{F, hidden, layers};

  TttBench(B& be, Index batch, Index steps, Index heads, Index group)
      : be_(be),
        cells_(batch * heads),
        rows_(batch * steps * heads),
        batch_(batch),
        steps_(steps),
        heads_(heads) {
    const Index groups = (steps + group * C - 1) / (group * C);
    const float wide = 1.7f;  // a deviation of 1
    scan_ = {model,
             batch,
             steps,
             heads,
             C,
             numbers<bf16>(rows_ * F, 0, wide),
             numbers<bf16>(rows_ * F, 0, wide),
             numbers<bf16>(rows_ * F, 0, wide),
             numbers<float>(rows_, 0.5f / F, 0.4f / F),
             numbers<float>(C, 0, 0),
             numbers<float>(heads * F, 1, 0.2f),
             numbers<float>(heads * F, 0, 0.2f),
             numbers<float>(groups * cells_ * model.size(), 0, 0),
             1e-6f,
             group};
    be.for_each(C, TokenScales{const_cast<float*>(scan_.scale)});
    weights_ = numbers<float>(cells_ * model.size(), 0, 0.05f);
    dweights_ = numbers<float>(cells_ * model.size(), 0, 0);
    out_ = numbers<bf16>(rows_ * F, 0, 0), dout_ = numbers<bf16>(rows_ * F, 0, wide);
    dq_ = numbers<bf16>(rows_ * F, 0, 0), dk_ = numbers<bf16>(rows_ * F, 0, 0);
    dtarget_ = numbers<bf16>(rows_ * F, 0, 0), dlr_ = numbers<float>(rows_, 0, 0);
    dscale_ = numbers<float>(cells_ * C, 0, 0);
    dgamma_ = numbers<float>(cells_ * F, 0, 0), dbeta_ = numbers<float>(cells_ * F, 0, 0);
  }

  mttt::TttForward<bf16, float> forward() const { return {scan_, weights_, nullptr, out_}; }
  mttt::TttBackward<bf16, float> backward() const {
    return {scan_, dout_, dq_, dk_, dtarget_, dlr_, dscale_, dgamma_, dbeta_, dweights_};
  }
  void fused_forward() { be_.template ttt_forward<F, hidden, layers, C>(forward()); }
  /// From no gradient of the last weights: what a pass leaves is not for the next to start from.
  void fused_backward() {
    be_.fill(dweights_, cells_ * model.size(), 0.0f);
    be_.template ttt_backward<F, hidden, layers, C>(backward());
  }
  template <class Scan>
  void composed(const Scan& scan) {
    be_.rows(cells_, scan, scan.scratch(model, C) * 4, steps_ * model.size() * 4);
  }

  double forward_flops() const { return flops(6, 1, 2); }
  double backward_flops() const { return flops(12, 2, 4); }
  double bytes(int tensors) const { return 2.0 * tensors * static_cast<double>(rows_ * F); }

  void print(const char* what, double ms, double of, double moved, double published) const {
    char name[80];
    std::snprintf(name, sizeof name, "%-16s B %ld T %5ld, %ld x %ld, C %2ld", what, long(batch_),
                  long(steps_), long(heads_), long(F), long(C));
    std::printf("%-46s %8.4f ms %6.1f TFLOP/s %4.1f%% %6.0f GB/s %4.1f%%", name, ms, of / ms * 1e-9,
                100e3 * of / ms / peak_flops, moved / ms * 1e-6, 100e3 * moved / ms / peak_bytes);
    if (published > 0) std::printf("  %7.2f ms published: x %.2f", published, published / ms);
    std::printf("\n");
  }

 private:
  template <class T>
  T* numbers(Index n, float middle, float spread) {
    T* to = be_.template make<T, mttt::dyn>(n).data();
    be_.for_each(n, Fill<T>{to, spread, middle});
    return to;
  }
  /// Whole products, causal pairs' shares, and whole products of the layers but the first.
  double flops(int whole, int causal, int later) const {
    double sum = 0;
    for (Index l = 0; l < layers; ++l) {
      const auto in = static_cast<double>(model.in(l)), out = static_cast<double>(model.out(l));
      sum += (whole + (l > 0 ? later : 0)) * in * out + causal * (C + 1) * (in + out);
    }
    return sum * static_cast<double>(rows_);
  }

  B& be_;
  Index cells_, rows_, batch_, steps_, heads_;
  mttt::TttScan<bf16, float> scan_;
  float *weights_, *dweights_, *dlr_, *dscale_, *dgamma_, *dbeta_;
  bf16 *out_, *dout_, *dq_, *dk_, *dtarget_;
};

/// Forward, and both passes, by the backend's own kernels; `published` figures of the two, in milliseconds.
template <mttt::Index F, mttt::Index hidden, mttt::Index layers, mttt::Index C>
void time_ttt(mttt::Cuda<mttt::bf16>& be, mttt::Index batch, mttt::Index steps, mttt::Index heads,
              double published_forward = 0, double published_both = 0) {
  const auto scope = be.scope();
  TttBench<F, hidden, layers, C> bench(be, batch, steps, heads, 16);
  const int replays = batch * steps > 8192 ? 3 : 10;
  const double forward = milliseconds(
      be, [&] { bench.fused_forward(); }, replays, 5);
  bench.print("forward", forward, bench.forward_flops(), bench.bytes(4), published_forward);
  const double both = milliseconds(
      be,
      [&] {
        bench.fused_forward();
        bench.fused_backward();
      },
      replays, 5);
  bench.print("forward+backward", both, bench.forward_flops() + bench.backward_flops(), bench.bytes(11),
              published_both);
}

/// The same from the vocabulary of every backend: what the kernels replace.
template <mttt::Index F, mttt::Index hidden, mttt::Index layers, mttt::Index C>
void time_composed_ttt(mttt::Cuda<mttt::bf16>& be, mttt::Index batch, mttt::Index steps, mttt::Index heads) {
  const auto scope = be.scope();
  TttBench<F, hidden, layers, C> bench(be, batch, steps, heads, 1);
  const double forward = milliseconds(
      be, [&] { bench.composed(bench.forward()); }, 1, 3);
  bench.print("composed forward", forward, bench.forward_flops(), bench.bytes(4), 0);
  const double backward = milliseconds(
      be, [&] { bench.composed(bench.backward()); }, 1, 3);
  bench.print("composed backward", backward, bench.backward_flops(), bench.bytes(7), 0);
}

}  // namespace bench
