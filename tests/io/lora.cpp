// Adapters: W + scaling B A against products computed here, in every way that adapters are stored.
#include "mttt/nn/lora.hpp"
#include "foreign.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using mttt::test::contains;

constexpr std::int64_t rank = 3;

bool is_linear(const std::string& name) { return name.ends_with("weight") && name.find("emb") == name.npos; }
Stored random(std::vector<std::int64_t> shape, Rng& rng) {
  Stored out{std::move(shape), {}};
  out.values.resize(static_cast<std::size_t>(out.shape[0] * out.shape[1]));
  for (auto& value : out.values) value = float(bf16(static_cast<float>(rng.normal())));
  return out;
}

/// An adapter of every linear layer, as LoRALinear names it, and the weights that it should make.
struct Adapted {
  Tensors adapter, expected;
  Adapted(const Tensors& base, double scaling, Rng& rng) : expected(base) {
    for (auto& [name, w] : expected) {
      if (!is_linear(name)) continue;
      const std::string stem = name.substr(0, name.size() - 6);
      const auto& a = adapter[stem + "lora_A.weight"] = random({rank, w.shape[1]}, rng);
      const auto& b = adapter[stem + "lora_B.weight"] = random({w.shape[0], rank}, rng);
      for (std::int64_t i = 0; i < w.shape[0]; ++i) {
        for (std::int64_t j = 0; j < w.shape[1]; ++j) {
          double sum = 0;
          for (std::int64_t r = 0; r < rank; ++r)
            sum += double(b.values[std::size_t(i * rank + r)]) *
                   double(a.values[std::size_t(r * w.shape[1] + j)]);
          auto& value = w.values[std::size_t(i * w.shape[1] + j)];
          value = static_cast<float>(double(value) + scaling * sum);
        }
      }
    }
  }
};

struct HalfMatrix {
  Tensor<bf16, 2, 2> w;
  static void visit(auto&& f, auto&&... p) { f("text_linear.weight", p.w...); }
};

void check_close(const Tensors& found, const Tensors& expected, float tolerance) {
  for (const auto& [name, stored] : expected) {
    INFO(name);
    double largest = 0, off = 0;
    for (std::size_t i = 0; i < stored.values.size(); ++i) {
      largest = std::max(largest, std::abs(double(stored.values[i])));
      off = std::max(off, std::abs(double(stored.values[i]) - double(found.at(name).values[i])));
    }
    CHECK(off <= double(tolerance) * largest);
  }
}

struct Fixture {
  Scratch folder;
  B be;
  Rng rng{3};
  Store<MoshiParams, B> params{be}, back{be};
  Tensors base;
  Fixture() {
    number(*params);
    base = tensors_of(*params);
    write(folder / "base", base);
  }
  void load(const LoadOptions& options) { load_params(folder / "base", be, back, options); }
  std::string refused(const Tensors& adapter, Index expected_rank = 0) {
    write(folder / "lora", adapter);
    LoadOptions options;
    options.adapter = folder / "lora", options.lora_rank = expected_rank;
    return error_of([&] { load(options); });
  }
};
}  // namespace

TEST_CASE("an adapter of every layer is fused as computed here", "[io]") {
  Fixture f;
  const Adapted adapted(f.base, 1.5, f.rng);
  const bool fused = GENERATE(false, true);
  auto adapter = adapted.adapter;
  if (fused) {  // as older fine-tuned models hold it: weights per step below each other, A and B alike
    Tensors lists;
    std::map<std::string, std::map<int, Stored>> parts;
    for (const auto& [name, stored] : adapter) {
      const auto list = name.find("_projs.");
      if (list == name.npos) {
        lists[name] = stored;
      } else {
        const auto number = name.find('.', list + 7);
        parts[name.substr(0, list) + "_proj" + name.substr(number)][std::stoi(name.substr(list + 7))] =
            stored;
      }
    }
    for (const auto& [name, steps] : parts) {
      std::vector<Stored> all;
      for (const auto& [k, stored] : steps) all.push_back(stored);
      lists[name] = stacked(all, false);
    }
    REQUIRE(lists.at("depformer.layers.0.self_attn.in_proj.lora_B.weight").rows() == 3 * 24);
    adapter = lists;
  }
  write(f.folder / "lora", adapter, DType::BF16);
  LoadOptions options;
  options.adapter = f.folder / "lora", options.lora_scaling = 1.5, options.lora_rank = rank;
  f.load(options);
  check_close(tensors_of(*f.back), adapted.expected, 1e-6f);
  CHECK(!same(f.params, f.back));
  check_params<MoshiParams>(f.folder / "base", options);

  // On other names, and on what other programs stack and turn.
  write(f.folder / "base", moshi_in_transformers(f.base));
  options.head_dim = 8;
  f.load(options);
  check_close(tensors_of(*f.back), adapted.expected, 1e-6f);
}

TEST_CASE("an adapter is rounded once: in bf16 the sum, not its parts", "[io]") {
  Fixture f;
  Store<HalfMatrix, B> matrix(f.be);
  write(f.folder / "w", {{"text_linear.weight", {{2, 2}, {1, -1, 0, 256}}}}, DType::BF16);
  write(f.folder / "lora", {{"text_linear.lora_A.weight", {{1, 2}, {1, 0.00390625f}}},
                            {"text_linear.lora_B.weight", {{2, 1}, {0.00390625f, 1}}}});
  LoadOptions options;
  options.adapter = f.folder / "lora", options.lora_scaling = 3;
  load_params(f.folder / "w", f.be, matrix, options);
  CHECK(float(matrix->w(0, 0)) == float(bf16(1 + 3 * 0.00390625f)));
  CHECK(float(matrix->w(0, 1)) == -1);  // too little to be seen
  CHECK(float(matrix->w(1, 0)) == 3);
  CHECK(float(matrix->w(1, 1)) == 256);
}

TEST_CASE("a file of adapters may hold whole tensors: embeddings that were trained too", "[io]") {
  Fixture f;
  Adapted adapted(f.base, 2, f.rng);
  adapted.expected["emb.2.weight"] = adapted.adapter["emb.2.weight"] = random({7, 16}, f.rng);
  write(f.folder / "lora", adapted.adapter);
  LoadOptions options;
  options.adapter = f.folder / "lora";
  f.load(options);
  check_close(tensors_of(*f.back), adapted.expected, 1e-6f);
}

TEST_CASE("adapters that do not fit are told by name, with the file that they are in", "[io]") {
  Fixture f;
  const Tensors good{{"linears.1.lora_A.weight", random({rank, 8}, f.rng)},
                     {"linears.1.lora_B.weight", random({6, rank}, f.rng)}};
  CHECK(f.refused(good).empty());
  auto bad = good;
  bad["linears.1.lora_A.weight"] = random({rank + 1, 8}, f.rng);
  CHECK_THAT(f.refused(bad), contains("adapter of 'linears.1.weight': found lora_A [4, 8] and lora_B [6, 3], "
                                      "expected [rank, 8] and [6, rank]"));
  CHECK_THAT(f.refused(good, 16),
             contains("found lora_A [3, 8] and lora_B [6, 3], expected [16, 8] and [6, 16]"));
  bad = good;
  bad.erase("linears.1.lora_B.weight");
  CHECK_THAT(f.refused(bad), contains("found lora_A [3, 8] and lora_B nothing"));
  bad = good;
  bad["linears.3.lora_A.weight"] = random({rank, 8}, f.rng);
  CHECK_THAT(f.refused(bad),
             contains("1 problem:") &&
                 contains("extra tensor 'linears.3.lora_A.weight' of shape [3, 8] in the adapter '"));
  bad = good;
  bad["linears.1.lora_A.weight"].values[5] = NAN;
  CHECK_THAT(f.refused(bad), contains("tensor 'linears.1.lora_A.weight': found nan at index [0, 5]"));
  bad = good;
  bad["depformer.layers.0.self_attn.in_proj.lora_A.weight"] = random({3 * rank, 8}, f.rng);
  bad["depformer.layers.0.self_attn.in_proj.lora_B.weight"] = random({2 * 24, rank}, f.rng);
  CHECK_THAT(f.refused(bad), contains("adapter of 'depformer.layers.0.self_attn.in_projs.2.weight'"));
}

namespace {
/// A model with its adapters beside the weights.
struct Apart {
  using Layer = Lora<LoraConfig{.rank = rank, .scaling = 1.5}, Linear<LinearConfig{.in = 16, .out = 9}, B>>;
  Layer::Params text_linear;
  Tensor<float, 7, 16> emb;
  static void visit(auto&& f, auto&&... p) {
    f("text_linear", p.text_linear...);
    f("emb.2.weight", p.emb...);
  }
};
struct Fused {
  Linear<LinearConfig{.in = 16, .out = 9}, B>::Params text_linear;
  Tensor<float, 7, 16> emb;
  static void visit(auto&& f, auto&&... p) {
    f("text_linear", p.text_linear...);
    f("emb.2.weight", p.emb...);
  }
};
}  // namespace

TEST_CASE("an adapter is loaded beside the weights that it adapts, and says what the fused one says",
          "[io]") {
  Scratch folder;
  B be;
  Rng rng{8};
  Tensors base{{"text_linear.weight", random({9, 16}, rng)}, {"emb.2.weight", random({7, 16}, rng)}};
  Tensors adapter{{"text_linear.lora_A.weight", random({rank, 16}, rng)},
                  {"text_linear.lora_B.weight", random({9, rank}, rng)}};
  write(folder / "base", base), write(folder / "lora", adapter);
  LoadOptions options;
  options.adapter = folder / "lora", options.lora_scaling = 1.5;
  Store<Apart, B> apart(be);
  Store<Fused, B> fused(be);
  load_params(folder / "base", be, apart, options);
  load_params(folder / "base", be, fused, options);
  CHECK(std::memcmp(apart->text_linear.inner.weight.data(), base["text_linear.weight"].values.data(),
                    9 * 16 * sizeof(float)) == 0);
  CHECK(apart->text_linear.b(8, 2) == adapter["text_linear.lora_B.weight"].values[26]);
  CHECK(fused->text_linear.weight(3, 4) != apart->text_linear.inner.weight(3, 4));

  const auto scope = be.scope();
  const auto x = be.make<float, dyn, dyn, 16>(3, 5);
  const auto y = be.make<float, dyn, dyn, 9>(3, 5), y_fused = be.make<float, dyn, dyn, 9>(3, 5);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(rng.normal());
  Apart::Layer::Saved saved;
  Linear<LinearConfig{.in = 16, .out = 9}, B>::Saved saved_fused;
  Apart::Layer::forward(be, apart->text_linear, x, y, saved);
  Linear<LinearConfig{.in = 16, .out = 9}, B>::forward(be, fused->text_linear, x, y_fused, saved_fused);
  for (Index i = 0; i < y.size(); ++i)
    CHECK(y.data()[i] == Approx(y_fused.data()[i]).epsilon(1e-5).margin(1e-4));

  // Saved and loaded again, the adapter is part of the model.
  save_params(folder / "whole", be, apart);
  Store<Apart, B> again(be);
  load_params(folder / "whole", be, again);
  CHECK(std::memcmp(again.data(), apart.data(), std::size_t(apart.bytes())) == 0);
  // Of another rank it is refused; without one, the model keeps what it was initialised with.
  write(folder / "lora", {{"text_linear.lora_A.weight", random({rank + 1, 16}, rng)},
                          {"text_linear.lora_B.weight", random({9, rank + 1}, rng)}});
  const auto message = error_of([&] { load_params(folder / "base", be, again, options); });
  CHECK_THAT(message,
             contains("misshapen tensor 'text_linear.lora_A.weight': found [4, 16], expected [3, 16]"));
  CHECK_THAT(error_of([&] { load_params(folder / "base", be, again); }),
             contains("missing tensor 'text_linear.lora_A.weight'"));
  LoadOptions plain;
  plain.may_be_missing = is_lora_name;
  load_params(folder / "base", be, again, plain);
  CHECK(again->text_linear.b(8, 2) == apart->text_linear.b(8, 2));
}
