// Checkpoints of parameters: round trips, published names and shapes, and everything that must be refused.
#include "mttt/io/checkpoint.hpp"

#include <list>
#include <numeric>

#include "scratch.hpp"

namespace {

using namespace mttt;
using mttt::test::contains;
using B = Cpu<float>;

/// Names and shapes like those of a transformer layer and a convolution of the codec.
struct Layer {
  Tensor<float, 6, 2> in0, in1;
  Tensor<float, 2, 2> out;
  Tensor<float, 3> norm;
  PermutedTensor<float, std::index_sequence<0, 2, 1>, 2, 4, 3> conv;  // published (2, 3, 4)
  static void visit(auto&& f, auto&&... p) {
    f("self_attn.in_projs.0.weight", p.in0...), f("self_attn.in_projs.1.weight", p.in1...);
    f("self_attn.out_projs.0.weight", p.out...), f("norm1.alpha", p.norm...), f("conv.weight", p.conv...);
  }
};
using Params = Store<Layer, B>;

template <class T>
struct NormOf {
  Tensor<T, 3> norm;
  static void visit(auto&& f, auto&&... p) { f("a", p.norm...); }
};

struct Fused {
  Tensor<float, 12, 2> in;
  static void visit(auto&& f, auto&&... p) { f("in_proj_weight", p.in...); }
};

struct One {
  Tensor<float, 2> a;
  static void visit(auto&& f, auto&&... p) { f("a", p.a...); }
};

/// Element i of tensor k is 100 k + i, in the order of memory.
void number(Layer& layer) {
  float k = 0;
  for_each_tensor(
      [&](std::string_view, auto& t) {
        for (Index i = 0; i < t.size(); ++i) t.data()[i] = 100 * k + static_cast<float>(i);
        ++k;
      },
      layer);
}
bool same(const Params& a, const Params& b) {
  return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

/// A file in the making: tensors of numbers 0, 1, 2, ... plus `first`.
struct File {
  SafetensorsWriter writer;
  std::list<std::vector<float>> kept;
  std::vector<float>& add(const std::string& name, std::vector<std::int64_t> shape, float first = 0) {
    std::size_t n = 1;
    for (const auto extent : shape) n *= static_cast<std::size_t>(extent);
    auto& values = kept.emplace_back(n);
    std::iota(values.begin(), values.end(), first);
    writer.add(name, std::move(shape), std::span<const float>(values));
    return values;
  }
};

}  // namespace

TEST_CASE("parameters return to the bit, in published shapes", "[io]") {
  const Scratch folder;
  B be;
  Params params(be), back(be);
  number(*params);
  params->norm(1) = -0.0f;
  params->norm(2) = 1e-42f;  // a subnormal
  const nlohmann::json config = {{"dim", 2}, {"context", {10, 20}}};
  save_params(folder / "p.safetensors", be, params, {.config = config, .metadata = {{"note", "x"}}});
  load_params(folder / "p.safetensors", be, back, {.config = config});
  CHECK(same(params, back));

  const SafetensorsFile file(folder / "p.safetensors");
  CHECK(file.metadata().at("kind") == "params");
  CHECK(file.metadata().at("note") == "x");
  CHECK(file.at("conv.weight").shape == std::vector<std::int64_t>{2, 3, 4});
  const auto published = file.read<float>(file.at("conv.weight"));
  for (Index o = 0; o < 2; ++o) {
    for (Index i = 0; i < 3; ++i) {
      for (Index k = 0; k < 4; ++k)
        CHECK(published[static_cast<std::size_t>((o * 3 + i) * 4 + k)] == params->conv(o, k, i));
    }
  }
}

TEST_CASE("parameters are converted on the way out and in", "[io]") {
  const Scratch folder;
  B be;
  Params params(be), back(be);
  number(*params);
  params->norm(0) = 1.00390625f;  // half way between two bfloat16: to even, down
  const auto dtype = GENERATE(DType::BF16, DType::F16);
  save_params(folder / "p.safetensors", be, params, {.dtype = dtype});
  CHECK(SafetensorsFile(folder / "p.safetensors").at("norm1.alpha").dtype == dtype);
  load_params(folder / "p.safetensors", be, back);
  CHECK(back->norm(0) == (dtype == DType::BF16 ? 1.0f : 1.00390625f));
  CHECK(back->conv(1, 3, 2) == (dtype == DType::BF16 ? 424.0f : 423.0f));  // 8 bits of mantissa

  Store<NormOf<double>, B> wide(be), wide_back(be);
  wide->norm(0) = 0.1;
  save_params(folder / "d.safetensors", be, wide);
  load_params(folder / "d.safetensors", be, wide_back);
  CHECK(wide_back->norm(0) == 0.1);
  save_params(folder / "d.safetensors", be, wide, {.dtype = DType::F32});
  load_params(folder / "d.safetensors", be, wide_back);
  CHECK(wide_back->norm(0) == static_cast<double>(0.1f));
}

TEST_CASE("parameters and state in bf16 take any float, and return to the bit", "[io]") {
  const Scratch folder;
  B be;
  Store<NormOf<double>, B> exact(be);
  Store<NormOf<bf16>, B> narrow(be), back(be);
  exact->norm(0) = 1.00390625, exact->norm(1) = -0.1, exact->norm(2) = 3e38;
  save_params(folder / "d", be, exact);
  load_params(folder / "d", be, narrow);
  for (Index i = 0; i < 3; ++i) CHECK(float(narrow->norm(i)) == float(bf16(exact->norm(i))));

  save_params(folder / "b", be, narrow);
  CHECK(SafetensorsFile(folder / "b").at("a").dtype == DType::BF16);
  load_params(folder / "b", be, back);
  CHECK(std::memcmp(narrow.data(), back.data(), static_cast<std::size_t>(back.bytes())) == 0);
  save_params(folder / "f", be, narrow, {.dtype = DType::F32});
  CHECK(SafetensorsFile(folder / "f").at("a").dtype == DType::F32);
  load_params(folder / "f", be, exact);
  CHECK(exact->norm(1) == static_cast<double>(float(bf16(-0.1))));
  narrow->norm(1) = bf16(NAN);
  save_params(folder / "n", be, narrow);
  check_refused([&] { load_params(folder / "n", be, back); }, "found nan at index [1]");

  back->norm(0) = bf16(7);
  save_state(folder / "s", be, back);
  Store<NormOf<bf16>, B> state(be);
  load_state(folder / "s", be, state);
  CHECK(std::memcmp(state.data(), back.data(), static_cast<std::size_t>(back.bytes())) == 0);
  check_refused([&] { load_state(folder / "s", be, exact); }, "found BF16 [3], expected F64 [3]");
}

TEST_CASE("published names: fused and stacked projections, leading ones, prefixes", "[io]") {
  const Scratch folder;
  B be;
  Params params(be);
  File file;
  file.add("lm.self_attn.in_proj_weight", {12, 2});
  file.add("lm.self_attn.out_proj.weight", {2, 2}, 50);
  file.add("lm.norm1.alpha", {1, 1, 3}, 60);
  file.add("lm.conv.weight", {2, 3, 4}, 70);
  file.add("other.weight", {5});  // outside the prefix: somebody else's
  file.writer.write(folder / "f");
  load_params(folder / "f", be, params, {.prefix = "lm."});
  CHECK(params->in0(5, 1) == 11);
  CHECK(params->in1(0, 0) == 12);
  CHECK(params->in1(5, 1) == 23);
  CHECK(params->out(1, 0) == 52);
  CHECK(params->norm(2) == 62);
  CHECK(params->conv(1, 3, 2) == 93);
  CHECK(params->conv(0, 1, 2) == 79);  // published (0, 2, 1)
  check_refused([&] { load_params(folder / "f", be, params); }, "extra tensor 'other.weight' of shape [5]");

  // The other way round: a model with one stacked matrix, a file with its parts.
  Store<Fused, B> fused(be);
  File parts;
  parts.add("in_projs.1.weight", {6, 2}, 12);
  parts.add("in_projs.0.weight", {6, 2});
  parts.writer.write(folder / "parts");
  load_params(folder / "parts", be, fused);
  for (Index i = 0; i < 24; ++i) CHECK(fused->in.data()[i] == static_cast<float>(i));
}

TEST_CASE("stacked projections that do not fit are told with both shapes", "[io]") {
  const Scratch folder;
  B be;
  Params params(be);
  const std::int64_t rows = GENERATE(6, 18, 13);
  File file;
  file.add("self_attn.in_proj_weight", {rows, 2});
  file.add("self_attn.out_proj.weight", {2, 2});
  file.add("norm1.alpha", {3});
  file.add("conv.weight", {2, 3, 4});
  file.writer.write(folder / "f");
  const auto load = [&] { load_params(folder / "f", be, params); };
  if (rows == 6)
    check_refused(load,
                  "'self_attn.in_projs.1.weight': found [6, 2] in 'self_attn.in_proj_weight', "
                  "expected [6, 2] from row 6 on");
  if (rows == 18) check_refused(load, "'self_attn.in_proj_weight' of shape [18, 2]: only 24 of 36 elements");
  if (rows == 13) check_refused(load, "'self_attn.in_projs.0.weight': found [13, 2]");
}

TEST_CASE("all that does not fit is told at once, and nothing changes", "[io]") {
  const Scratch folder;
  B be;
  Params params(be), before(be);
  number(*params), number(*before);
  File file;
  file.add("self_attn.in_projs.0.weight", {6, 2});
  file.add("self_attn.in_projs.1.weight", {2, 6});
  file.add("norm1.alpha", {1, 4});
  file.add("conv.weight", {2, 4, 3});  // as in memory, not as published
  file.add("surprise", {7, 1});
  const std::vector<std::int64_t> whole{1, 2, 3, 4};
  file.writer.add("self_attn.out_projs.0.weight", {2, 2}, std::span<const std::int64_t>(whole));
  file.writer.write(folder / "f");
  const std::string message = error_of([&] { load_params(folder / "f", be, params); });
  CHECK_THAT(message, contains("5 problems"));
  CHECK_THAT(message,
             contains("misshapen tensor 'self_attn.in_projs.1.weight': found [2, 6], expected [6, 2]"));
  CHECK_THAT(message, contains("misshapen tensor 'norm1.alpha': found [1, 4], expected [3]"));
  CHECK_THAT(message, contains("misshapen tensor 'conv.weight': found [2, 4, 3], expected [2, 3, 4]"));
  CHECK_THAT(message, contains("mistyped tensor 'self_attn.out_projs.0.weight': found I64, expected F32"));
  CHECK_THAT(message, contains("extra tensor 'surprise' of shape [7, 1]"));
  CHECK(same(params, before));

  File empty;
  empty.add("norm1.alpha", {3});
  empty.writer.write(folder / "e");
  const std::string missing = error_of([&] { load_params(folder / "e", be, params); });
  CHECK_THAT(missing, contains("4 problems") && contains("missing tensor 'conv.weight' of shape [2, 3, 4]") &&
                          contains("missing tensor 'self_attn.in_projs.1.weight' of shape [6, 2]"));
  load_params(folder / "e", be, params,
              {.may_be_missing = [](std::string_view name) { return name != "norm1.alpha"; }});
  CHECK(params->norm(2) == 2);
  CHECK(params->in1(0, 1) == 101);  // kept
  file.writer.write(folder / "f");
  CHECK_THAT(error_of([&] {
               load_params(folder / "f", be, params,
                           {.ignore_extra = [](std::string_view name) { return name == "surprise"; }});
             }),
             contains("4 problems"));
}

TEST_CASE("values that are not finite or do not fit are refused by name and index", "[io]") {
  const Scratch folder;
  B be;
  Params params(be), before(be);
  number(*params), number(*before);
  params->conv(1, 3, 0) = NAN;  // published (1, 0, 3)
  params->norm(1) = -INFINITY;
  save_params(folder / "f", be, params);
  const std::string message = error_of([&] { load_params(folder / "f", be, before); });
  CHECK_THAT(message, contains("2 problems") &&
                          contains("tensor 'conv.weight': found nan at index [1, 0, 3]") &&
                          contains("tensor 'norm1.alpha': found -inf at index [1]"));
  CHECK(before->out(0, 0) == 200);
  load_params(folder / "f", be, before, {.check_finite = false});
  CHECK(std::isnan(before->conv(1, 3, 0)));

  Store<One, B> one(be);
  const std::vector<double> large{1, 1e300};
  SafetensorsWriter writer;
  writer.add("a", {2}, std::span<const double>(large));
  writer.write(folder / "g");
  check_refused([&] { load_params(folder / "g", be, one); }, "tensor 'a': found 1e+300 at index [1]");
  CHECK(one->a(0) == 0);
}

TEST_CASE("damaged checkpoints are refused and an old one survives a failed save", "[io]") {
  const Scratch folder;
  B be;
  Params params(be), back(be);
  number(*params);
  save_params(folder / "p", be, params);
  const std::string whole = content_of(folder / "p");
  for (const std::size_t length : {std::size_t{0}, std::size_t{7}, std::size_t{100}, whole.size() - 1}) {
    folder.put("cut", whole.substr(0, length));
    check_refused([&] { load_params(folder / "cut", be, back); }, "cut");
  }
  check_refused([&] { load_params(folder / "absent", be, back); }, "no such file");
  for (Index i = 0; i < back.bytes(); ++i) CHECK(back.data()[i] == std::byte{0});
  {
    const FileSizeLimit full(600);
    CHECK_THROWS_AS(save_params(folder / "p", be, params), Error);
  }
  CHECK(content_of(folder / "p") == whole);
  CHECK(folder.files() == 2);
}

TEST_CASE("a config that contradicts the program is told field by field", "[io]") {
  const Scratch folder;
  B be;
  Params params(be);
  const nlohmann::json stored = {{"dim", 512}, {"lm", {{"delays", {0, 0, 1}}, {"n_q", 8}}}, {"old", true}};
  const nlohmann::json wanted = {{"dim", 1024}, {"lm", {{"delays", {0, 0, 2}}, {"n_q", 8}}}, {"new", "x"}};
  save_params(folder / "p", be, params, {.config = stored});
  load_params(folder / "p", be, params, {.config = stored});
  const std::string message = error_of([&] { load_params(folder / "p", be, params, {.config = wanted}); });
  CHECK_THAT(message, contains("4 problems") && contains("config field 'dim': found 512, expected 1024") &&
                          contains("config field 'lm.delays.2': found 1, expected 2"));
  CHECK_THAT(message, contains("config field 'new': found nothing, expected \"x\"") &&
                          contains("config field 'old': found true, expected no such field"));
  check_refused([&] { expect_config("file", {}, wanted); }, "no 'config'");
  check_refused([&] { expect_config("file", {{"config", "{"}}, wanted); }, "not JSON");
  check_refused([&] { expect_config("file", {{"config", "3"}}, wanted); }, "config field '(all)'");

  File later;
  later.writer.set_metadata("format_version", "2");
  later.writer.write(folder / "later");
  check_refused([&] { load_params(folder / "later", be, params); }, "format_version '2'; expected '1'");
}
