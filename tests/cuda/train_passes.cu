// What training does beside the model, each against the CPU: AdamW, the gradient's norm, cross-entropy, and
// the gradient of embeddings in short types.
#include "agreement.cuh"
#include "mttt/nn/embedding.hpp"
#include "mttt/train/adamw.hpp"
#include "mttt/train/clip.hpp"
#include "mttt/train/loss.hpp"

namespace {
using namespace mttt;
using laws::detail::fetch;
using laws::detail::send;

/// Tensors of several chunks, of a rest that no pack holds, of one element, of none.
template <class T>
struct Uneven {
  Tensor<T, 301, 217> weight;
  Tensor<T, 1> one;
  Tensor<T, 0> none;
  Tensor<T, 1 << 14> chunk;
  Tensor<T, 7> frozen;
  static void visit(auto&& f, auto&&... p) {
    f("weight", p.weight...), f("one", p.one...), f("none", p.none...), f("chunk", p.chunk...);
    f("frozen", p.frozen...);
  }
};
using M = Uneven<float>;

/// Two steps of AdamW and the norms before them; what it leaves.
template <class T, class B>
struct Steps {
  using P = Uneven<T>;
  B be;
  Store<P, B> params{be};
  Store<M, B> weights{be}, grad{be};
  AdamW<M, B> adam{be};
  ChunkTable<P, B, M> table{be, params, weights};
  std::vector<double> norms;

  explicit Steps(const Store<M, Cpu<float>>& start, const Store<M, Cpu<float>>& gradient) {
    be.to_device(start.data(), weights.data(), start.bytes());
    be.to_device(gradient.data(), grad.data(), gradient.bytes());
    table.round(be, weights, params, table.all());
    auto groups = make_groups(*params, 0.1, {{"frozen", name_contains("frozen"), 1, {}, true}});
    for (int i = 0; i < 2; ++i) {
      norms.push_back(gradient_norm(be, table, grad, groups, 0.5));
      adam.update(be, table, weights, params, grad, groups, {}, 1e-2, 0.5);
      groups[0].learning_rate = 0.3;  // is sent again
    }
  }
  template <class S, class U>
  std::vector<U> host(const S& store, U) {
    std::vector<U> all(static_cast<std::size_t>(store.bytes()) / sizeof(U));
    be.to_host(reinterpret_cast<const U*>(store.data()), all.data(), static_cast<Index>(all.size()));
    return all;
  }
};
}  // namespace

TEST_CASE("CUDA: AdamW and the gradient's norm, with rounded weights beside") {
  Cpu<float> cpu;
  Store<M, Cpu<float>> start(cpu), gradient(cpu);
  Rng rng(1);
  for (auto* store : {&start, &gradient})
    for_each_tensor([&](std::string_view, auto& t) { init_truncated_normal(t, 1, rng); }, **store);
  Steps<bf16, Cpu<bf16>> expected(start, gradient);
  Steps<bf16, Cuda<bf16>> got(start, gradient), again(start, gradient);
  CHECK(got.norms == again.norms);
  for (std::size_t i = 0; i < 2; ++i) CHECK(got.norms[i] == Approx(expected.norms[i]).epsilon(1e-12));
  const auto near = [&](const auto& a,
                        const auto& b) {  // fused multiply-adds round once where the CPU does twice
    const auto x = got.host(a, 0.0f), y = expected.host(b, 0.0f);
    return laws::largest_difference(x.data(), y.data(), static_cast<Index>(x.size())) <= 1e-6;
  };
  CHECK(near(got.weights, expected.weights));
  CHECK(near(got.adam.m, expected.adam.m));
  CHECK(near(got.adam.v, expected.adam.v));
  CHECK(got.host(got.weights, 0.0f) == again.host(again.weights, 0.0f));

  Store<M, Cpu<float>> weights(cpu);
  Cpu<bf16> half;
  Store<Uneven<bf16>, Cpu<bf16>> seen(half);
  download(got.be, got.weights, weights);
  download(got.be, got.params, seen);
  Index wrong = 0, moved = 0;
  for_each_tensor(
      [&](std::string_view name, const auto& w, const auto& p, const auto& before) {
        for (Index i = 0; i < w.size(); ++i) {
          wrong += bf16(w.data()[i]).bits != p.data()[i].bits;
          moved += (w.data()[i] != before.data()[i]) != (name != "frozen");
        }
      },
      *weights, *seen, *start);
  CHECK(wrong == 0);
  CHECK(moved == 0);

  const float bad = NAN;
  got.be.to_device(&bad, got.grad->chunk.data() + 5000, 1);
  CHECK_THROWS_WITH(gradient_norm(got.be, got.table, got.grad, make_groups(*got.params, 0.1)),
                    mttt::test::contains("'chunk'") && mttt::test::contains("NaN"));
}

TEMPLATE_TEST_CASE_SIG("CUDA: embedding's gradient, of several blocks of columns and long runs of one code",
                       "", ((int dim), dim), 40, 45, 1096) {
  constexpr EmbeddingConfig config{.card = 7, .dim = dim};
  using Params = typename Embedding<config, Cpu<float>>::Params;
  constexpr Index rows = 203;
  Cpu<bf16> cpu;
  Cuda<bf16> gpu;
  Rng rng(1);
  const auto codes = cpu.make<std::int32_t, dyn>(rows);
  for (Index i = 0; i < rows; ++i) codes(i) = static_cast<std::int32_t>(rng.below(config.card + 2)) - 1;
  const auto dy = cpu.make<bf16, dyn, config.dim>(rows);
  laws::fill_normal(dy, 1, rng);
  const auto device_codes = send(gpu, codes);
  const auto device_dy = send(gpu, dy);
  Store<Params, Cpu<bf16>> grad(cpu), fetched(cpu);
  Store<Params, Cuda<bf16>> device_grad(gpu);
  Embedding<config, Cpu<bf16>>::backward(cpu, CodeRows<std::int32_t>(codes), dy.data(), *grad);
  Embedding<config, Cuda<bf16>>::backward(gpu, CodeRows<std::int32_t>(device_codes), device_dy.data(),
                                          *device_grad);
  download(gpu, device_grad, fetched);
  CHECK(laws::detail::same_bits(fetched.data(), grad.data(), grad.bytes()));  // rows are added in order
}

TEMPLATE_TEST_CASE("CUDA: cross-entropy of rows that packs fit and of rows that they do not", "", float,
                   bf16) {
  using T = TestType;
  const Index card = GENERATE(2048, 301, 8, 5), rows = 9001;  // three parts of rows
  if (card == 2048 && std::is_same_v<T, float>) return;       // seen in bf16
  Cpu<T> cpu;
  Cuda<T> gpu;
  Rng rng(1);
  const auto logits = cpu.template make<T, dyn, dyn>(rows, card);
  laws::fill_normal(logits, 3, rng);
  const auto targets = cpu.template make<std::int32_t, dyn>(rows);
  const auto weights = cpu.template make<float, dyn>(rows);
  for (Index r = 0; r < rows; ++r) {
    targets(r) = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(card)));
    weights(r) = r % 5 == 0 ? 0.0f : static_cast<float>(rng.uniform());
  }
  logits(1, 2) = static_cast<T>(-INFINITY);  // a class that is ruled out, which nobody must make NaN of
  targets(1) = 0;
  const auto device_logits = send(gpu, logits);
  const auto device_targets = send(gpu, targets);
  const auto device_weights = send(gpu, weights);
  const auto expected = cross_entropy(cpu, logits, targets, weights, logits, 9000.0);
  const auto got = cross_entropy(gpu, device_logits, device_targets, device_weights, device_logits, 9000.0);
  const double tolerance = laws::agreement<T>(static_cast<double>(card), 1);
  CHECK(got.loss == Approx(expected.loss).epsilon(laws::agreement<float>(static_cast<double>(card), 1)));
  CHECK(got.weight == Approx(expected.weight).epsilon(1e-12));
  CHECK(laws::largest_difference(fetch(cpu, gpu, device_logits).data(), logits.data(), logits.size()) <=
        tolerance);
}
