// The scans of TTT-Linear and TTT-MLP: forward and backward over T = 256 tokens in the dual form, and a step.
//
// Counted, per head and mini-batch of n tokens; S = sum over layers of in out, S' = the same without the
// first layer, I and O = sums over layers of the input and output widths; two FLOPs a multiply-add, products
// only:
//   forward   keys' pass 2 n (S + S'), queries' pass 2 n S + 2 n^2 (I + O), update 2 n S
//   backward  both passes again, then 8 n S + 6 n S' + 4 n S + n^2 (4 O + 5 I): the carried weights (2
//             products), the queries' (2 with W, 2 with G, the causal dots again over half a square, 2 with
//             dP), the inner gradients (3), the keys' layers (2)
//   step      2 (S + S') for the gradient, 6 S for learning and answering; bytes: W, and the accumulated
//             gradients once read and once written (12 bytes a fast weight)
//             with factors 4 S + 2 S', (n + 1) (I + O) for the tokens there on average, and once in n tokens
//             2 n S; bytes: W, the factors there, and once in n tokens W read and written
// Memory speed shows in the steps of many sessions at once; one session's state lies in a cache here.
#include "mttt/ttt/ttt.hpp"

#include "harness.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

struct Counts {
  double S = 0, S1 = 0, I = 0, O = 0;
  explicit Counts(InnerModel model) {
    for (Index l = 0; l < model.layers; ++l) {
      const double in = static_cast<double>(model.in(l)), out = static_cast<double>(model.out(l));
      S += in * out, S1 += l > 0 ? in * out : 0, I += in, O += out;
    }
  }
  double passes(double n) const { return 2 * n * (2 * S + S1) + 2 * n * n * (I + O); }
  double forward(double n) const { return passes(n) + 2 * n * S; }
  double backward(double n) const { return passes(n) + n * (12 * S + 6 * S1) + n * n * (4 * O + 5 * I); }
  double step(double kept) const {
    return kept == 0 ? 2 * (S + S1) + 6 * S : 2 * (3 * S + S1) + (kept + 1) * (I + O);
  }
  double step_bytes(double kept) const {
    return kept == 0 ? 12 * (S + O) : 4 * (S + O) * (1 + 2 / kept) + 4 * (kept + 1) / 2 * (I + O);
  }
};

std::string name(std::string_view what, Index heads, InnerModel model) {
  return std::string(model.layers == 1 ? "Linear " : "MLP ") + std::string(what) + " " +
         std::to_string(heads) + "x" + std::to_string(model.width);
}

/// The tensors that a scan reads and writes, as Ttt lays them out.
struct Data {
  Tensor<float, dyn> q, k, target, out, dout, dq, dk, dtarget, lr, dlr, scale, gamma, beta, weights,
      gradients;
  Tensor<std::int64_t, dyn> position;
  Data(B& be, InnerModel model, Index batch, Index steps, Index heads, Index mini_batch) {
    const Index width = heads * model.width, n = batch * steps;
    for (auto* t : {&q, &k, &target, &out, &dout, &dq, &dk, &dtarget}) *t = be.make<float, dyn>(n * width);
    for (auto* t : {&lr, &dlr}) *t = be.make<float, dyn>(n * heads);
    for (auto* t : {&gamma, &beta}) *t = be.make<float, dyn>(width);
    weights = be.make<float, dyn>(batch * heads * model.size());
    gradients = be.make<float, dyn>(batch * heads * model.gathered());
    scale = be.make<float, dyn>(mini_batch);
    position = be.make<std::int64_t, dyn>(batch);
    for (auto* t : {&q, &k, &target, &dout}) bench::fill_uniform(t->data(), t->size());
    for (auto* t : {&dq, &dk, &dtarget, &beta, &gradients, &out, &dlr}) be.fill(t->data(), t->size(), 0.0f);
    be.fill(gamma.data(), width, 1.0f);
    be.fill(lr.data(), n * heads, 0.5f / static_cast<float>(model.width));
    be.fill(position.data(), batch, std::int64_t{0});
    for (Index t = 0; t < mini_batch; ++t) scale(t) = 1.0f / static_cast<float>(t + 1);
    bench::fill_uniform(weights.data(), weights.size(), 0.02f);
  }
};

void scans(bench::Suite& suite, Index heads, InnerModel model, Index mini_batch, Index steps) {
  const Counts counts(model);
  const double blocks = static_cast<double>(heads * (steps / mini_batch)),
               n = static_cast<double>(mini_batch);
  const std::string of = ", C = " + std::to_string(mini_batch) + ", T = " + std::to_string(steps);
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    Data d(be, model, 1, steps, heads, mini_batch);
    const auto checkpoints = be.make<float, dyn>(steps / mini_batch * heads * model.size());
    const auto start = be.make<float, dyn>(d.weights.size());
    be.copy(d.weights.data(), start.data(), start.size());
    const TttScan<float, float> scan{model,
                                     1,
                                     steps,
                                     heads,
                                     mini_batch,
                                     d.q.data(),
                                     d.k.data(),
                                     d.target.data(),
                                     d.lr.data(),
                                     d.scale.data(),
                                     d.gamma.data(),
                                     d.beta.data(),
                                     checkpoints.data(),
                                     1e-6f};
    using Forward = TttForward<float, float>;
    using Backward = TttBackward<float, float>;
    suite.run(name("forward", heads, model) + of, {.threads = threads, .flops = blocks * counts.forward(n)},
              [&] {
                be.copy(start.data(), d.weights.data(), start.size());
                be.rows(heads, Forward{scan, d.weights.data(), nullptr, d.out.data()},
                        Forward::scratch(model, mini_batch) * 4, steps * model.size() * 4);
              });
    const auto dscale = be.make<float, dyn>(heads * mini_batch),
               dnorm = be.make<float, dyn>(2 * heads * model.width);
    const auto dweights = be.make<float, dyn>(heads * model.size());
    suite.run(
        name("backward", heads, model) + of, {.threads = threads, .flops = blocks * counts.backward(n)}, [&] {
          for (const auto& t : {dscale, dnorm, dweights}) be.fill(t.data(), t.size(), 0.0f);
          be.rows(heads,
                  Backward{scan, d.dout.data(), d.dq.data(), d.dk.data(), d.dtarget.data(), d.dlr.data(),
                           dscale.data(), dnorm.data(), dnorm.data() + heads * model.width, dweights.data()},
                  Backward::scratch(model, mini_batch) * 4, steps * model.size() * 12);
        });
  }
}

void step(bench::Suite& suite, Index heads, InnerModel model, Index mini_batch, Index batch) {
  const Counts counts(model);
  for (const int threads : suite.thread_counts()) {
    B be(threads);
    Data d(be, model, batch, 1, heads, mini_batch);
    using Step = TttStep<float, float>;
    std::int64_t time = 0;
    suite.run(
        name("step", heads, model) + ", C = " + std::to_string(mini_batch) + ", " + std::to_string(batch) +
            (batch == 1 ? " session" : " sessions") + (model.kept > 0 ? ", factors" : ""),
        {.threads = threads,
         .flops = static_cast<double>(batch * heads) * counts.step(static_cast<double>(model.kept)),
         .bytes = static_cast<double>(batch * heads) * counts.step_bytes(static_cast<double>(model.kept)),
         .against = bench::Against::copy},
        [&] {
          be.rows(batch * heads,
                  Step{model, 1, heads, mini_batch, d.q.data(), d.k.data(), d.target.data(), d.lr.data(),
                       d.scale.data(), d.gamma.data(), d.beta.data(), d.weights.data(), d.gradients.data(),
                       d.position.data(), nullptr, d.out.data(), 1e-6f},
                  Step::scratch(model) * 4, model.size() * 4);
          be.fill(d.position.data(), batch, ++time);
        });
  }
  if (batch == 1) {
    char text[120];
    std::snprintf(text, sizeof text, "state of a session, %s%s: %.1f kB", name("", heads, model).c_str(),
                  model.kept > 0 ? ", factors" : "",
                  4e-3 * static_cast<double>(heads * (model.size() + model.gathered())));
    suite.note(text);
  }
}

constexpr InnerModel linear(Index width) { return {width, 4 * width, 1}; }
constexpr InnerModel mlp(Index width) { return {width, 4 * width, 2}; }
/// Of sessions that keep the tokens' factors.
constexpr InnerModel by_factors(InnerModel model, Index mini_batch) {
  model.kept = mini_batch;
  return model;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Suite suite("ttt", argc, argv);
  if (suite.quick()) {
    for (const InnerModel model : {linear(16), mlp(16)}) {
      scans(suite, 2, model, 16, 32);
      step(suite, 2, model, 16, 1);
      step(suite, 2, by_factors(model, 16), 16, 1);
    }
    return suite.finish();
  }
  for (const Index mini_batch : {Index{16}, Index{64}}) {
    for (const InnerModel model : {linear(32), mlp(32)}) scans(suite, 4, model, mini_batch, 256);
    for (const InnerModel model : {linear(64), mlp(64)}) scans(suite, 8, model, mini_batch, 256);
    scans(suite, 32, linear(128), mini_batch, 64);
    scans(suite, 32, mlp(128), mini_batch, 64);
  }
  const auto both_steps = [&](Index heads, InnerModel model) {
    step(suite, heads, model, 16, 1);
    step(suite, heads, by_factors(model, 16), 16, 1);
  };
  for (const InnerModel model : {linear(32), mlp(32)}) both_steps(4, model);
  for (const InnerModel model : {linear(64), mlp(64)}) both_steps(8, model);
  for (const InnerModel model : {linear(128), mlp(128)}) both_steps(32, model);
  step(suite, 8, linear(64), 16, 512);
  step(suite, 8, mlp(64), 16, 64);
  return suite.finish();
}
