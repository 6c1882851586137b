// expect: Trainable
// A block that cannot be differentiated must not be held to the gradient law by mistake.
#include <mttt/backend/cpu/cpu.hpp>
#include <mttt/laws.hpp>
#include <mttt/nn/linear.hpp>

using B = mttt::Cpu<double>;
using Whole = mttt::Linear<mttt::LinearConfig{.in = 4, .out = 4}, B>;
struct OnlyForward {
  using Params = Whole::Params;
  using Saved = Whole::Saved;
  static constexpr mttt::Index in = 4, out = 4;
  static void init(Params& p, mttt::Rng& rng) { Whole::init(p, rng); }
  static void forward(B& be, const Params& p, mttt::Sequence<const double, 4> x, mttt::Sequence<double, 4> y,
                      Saved& saved) {
    Whole::forward(be, p, x, y, saved);
  }
};

#if defined(RIGHT)
using Block = Whole;
#else
using Block = OnlyForward;
#endif
bool held(B& be) { return mttt::laws::gradient<Block>(be).holds; }
