// Models whose weights stay in 16, 8 and 4 bits: from files in floats, from published int8 rows and from
// checkpoints of their own, to the bit; and files of these that are broken.
#include "foreign.hpp"
#include "mttt/backend/with_weights.hpp"
#include "mttt/core/quantise.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using mttt::test::contains;

template <class Format, class T = float>
using Quantised = WithWeights<Format, Cpu<T>>;
template <class Q>
using ParamsOf = Store<typename Moshi<foreign_moshi, Q>::Params, Q>;

template <class P, class A, class Q, class C>
bool same_bytes(const Store<P, A>& a, const Store<Q, C>& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

/// A row of zeros is a row too, and so is one whose largest is negative.
void number_with_zeros(MoshiParams& params) {
  number(params);
  for (Index i = 0; i < 16; ++i) params.text_linear.weight(3, i) = 0;
}

/// The parameters of a quantised model as numbers, in the types of a plain one.
template <class Q>
void as_numbers(const typename Moshi<foreign_moshi, Q>::Params& from, MoshiParams& to) {
  for_each_parameter(
      [](std::string_view, const auto& source, auto& target) {
        using Source = std::remove_cvref_t<decltype(source)>;
        if constexpr (is_quantised<Source>) {
          const auto w = source.matrix();
          for (Index i = 0; i < target.size(); ++i)
            target.data()[i] =
                Source::Format::weight(w.row(i / w.cols), w.row_scales(i / w.cols), i % w.cols);
        } else {
          for (Index i = 0; i < target.size(); ++i) target.data()[i] = static_cast<float>(source.data()[i]);
        }
      },
      from, to);
}

/// All weights of a file as int8 rows of the published form.
struct PublishedInt8 {
  SafetensorsWriter writer;
  std::list<std::vector<std::int8_t>> bytes;
  std::list<std::vector<float>> floats;

  void add(const std::string& name, const Stored& w) {
    if (!name.ends_with("weight") || name.find("emb") != name.npos || name.find("norm") != name.npos)
      return writer.add(name, w.shape, std::span<const float>(floats.emplace_back(w.values)));
    auto& scb = floats.emplace_back(static_cast<std::size_t>(w.rows()), 0.0f);
    auto& q = bytes.emplace_back();
    for (std::size_t i = 0; i < w.values.size(); ++i)
      scb[i / w.row_size()] = std::max(scb[i / w.row_size()], std::abs(w.values[i]));
    for (std::size_t i = 0; i < w.values.size(); ++i)
      q.push_back(static_cast<std::int8_t>(std::lround(w.values[i] / scb[i / w.row_size()] * 127)));
    writer.add(name, w.shape, std::span<const std::int8_t>(q));
    writer.add(name + "_scb", {w.rows()}, std::span<const float>(scb));
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a file in floats is rounded on the way in, as quantise does", "[io]", Int8, Int4) {
  const Scratch folder;
  B be;
  Quantised<TestType> quantised;
  Store<MoshiParams, B> trained(be);
  number_with_zeros(*trained);
  ParamsOf<Quantised<TestType>> expected(quantised), found(quantised);
  quantise(trained, expected);
  save_params(folder / "f32", be, trained);
  save_params(folder / "bf16", be, trained, {.dtype = DType::BF16});
  for (const char* file : {"f32", "bf16"}) {  // the numbers are exact in bf16
    load_params(folder / file, quantised, found);
    CHECK(same_bytes(expected, found));
  }
  write(folder / "fused", moshi_fused(tensors_of(*trained), "in_proj_weight"));
  Store<MoshiParams, B> meant(be);
  load_params(folder / "fused", be, meant);
  quantise(meant, expected);
  load_params(folder / "fused", quantised, found);
  CHECK(same_bytes(expected, found));

  Quantised<TestType, bf16> half;  // beside embeddings and norms in bf16
  ParamsOf<Quantised<TestType, bf16>> small(half), loaded(half);
  quantise(trained, small);
  load_params(folder / "f32", half, loaded);
  CHECK(same_bytes(small, loaded));
  CHECK(small.bytes() < found.bytes());
}

TEMPLATE_TEST_CASE("a checkpoint in 8 or 4 bits comes back to the bit, into a plain model as numbers", "[io]",
                   Int8, Int4) {
  const Scratch folder;
  B be;
  Quantised<TestType> quantised;
  Store<MoshiParams, B> trained(be), numbers(be), meant(be);
  number_with_zeros(*trained);
  ParamsOf<Quantised<TestType>> first(quantised), back(quantised);
  quantise(trained, first);
  save_params(folder / "q", quantised, first);
  load_params(folder / "q", quantised, back);
  CHECK(same_bytes(first, back));
  save_params(folder / "half", quantised, first, {.dtype = DType::F16});  // of the others: not of the weights
  load_params(folder / "half", quantised, back);
  CHECK(std::memcmp(first->text_linear.weight.scales.data(), back->text_linear.weight.scales.data(), 9) == 0);
  CHECK(std::filesystem::file_size(folder / "half") < std::filesystem::file_size(folder / "q"));

  as_numbers<Quantised<TestType>>(*first, *meant);
  load_params(folder / "q", be, numbers);
  CHECK(same_bytes(meant, numbers));
  // A model in the other format rounds them again.
  using Other = Quantised<std::conditional_t<std::is_same_v<TestType, Int8>, Int4, Int8>>;
  Other other;
  ParamsOf<Other> rounded(other), expected(other);
  quantise(meant, expected);
  load_params(folder / "q", other, rounded);
  CHECK(same_bytes(expected, rounded));
}

TEMPLATE_TEST_CASE("weights in 16 bits come from floats and their own files, and go into a plain model",
                   "[io]", f16, bf16) {
  const Scratch folder;
  B be;
  Quantised<TestType> narrow;
  Store<MoshiParams, B> trained(be), numbers(be), meant(be);
  number_with_zeros(*trained);
  trained->text_linear.weight(2, 5) = 0.1f;  // which neither holds
  ParamsOf<Quantised<TestType>> expected(narrow), found(narrow), back(narrow);
  quantise(trained, expected);
  save_params(folder / "f32", be, trained);
  load_params(folder / "f32", narrow, found);
  CHECK(same_bytes(expected, found));
  save_params(folder / "narrow", narrow, expected);
  load_params(folder / "narrow", narrow, back);
  CHECK(same_bytes(expected, back));
  CHECK(std::filesystem::file_size(folder / "narrow") < std::filesystem::file_size(folder / "f32"));
  load_params(folder / "narrow", be, numbers);
  as_numbers<Quantised<TestType>>(*expected, *meant);
  CHECK(same_bytes(meant, numbers));
  CHECK(numbers->text_linear.weight(2, 5) != 0.1f);
}

TEST_CASE("published int8 rows are taken as they are", "[io]") {
  const Scratch folder;
  B be;
  Quantised<Int8> quantised;
  Store<MoshiParams, B> trained(be), numbers(be), meant(be);
  number(*trained);
  const bool fused = GENERATE(false, true);
  PublishedInt8 file;
  const auto ours = tensors_of(*trained);
  for (const auto& [name, stored] : fused ? moshi_fused(ours, "in_proj_weight") : ours)
    file.add(name, stored);
  file.writer.write(folder / "q8");
  ParamsOf<Quantised<Int8>> params(quantised);
  load_params(folder / "q8", quantised, params);
  if (!fused) {
    const SafetensorsFile written(folder / "q8");
    const auto bytes = written.read<std::int8_t>(written.at("text_linear.weight"));
    const auto& weight = params->text_linear.weight;
    CHECK(std::equal(bytes.begin(), bytes.end(), weight.values.data()));
    CHECK(weight.scales(4, 0) == written.read<float>(written.at("text_linear.weight_scb"))[4] * (1.0f / 127));
  }
  load_params(folder / "q8", be, numbers);
  as_numbers<Quantised<Int8>>(*params, *meant);
  const auto a = tensors_of(*numbers), b = tensors_of(*meant);
  double off = 0;
  for (const auto& [name, stored] : a) {
    for (std::size_t i = 0; i < stored.values.size(); ++i)
      off = std::max(off, std::abs(double(stored.values[i]) - double(b.at(name).values[i])) /
                              std::abs(double(stored.values[i]) + 1e-30));
  }
  CHECK(off < 2e-7);  // q (s / 127), not (q s) / 127
}

TEMPLATE_TEST_CASE("an adapter is added before weights are rounded", "[io]", Int8, Int4) {
  const Scratch folder;
  B be;
  Quantised<TestType> quantised;
  Store<MoshiParams, B> trained(be), fused(be);
  number(*trained);
  save_params(folder / "base", be, trained);
  write(folder / "lora", {{"text_linear.lora_A.weight", {{1, 16}, std::vector<float>(16, 0.25f)}},
                          {"text_linear.lora_B.weight", {{9, 1}, std::vector<float>(9, 0.5f)}}});
  const LoadOptions with{.adapter = folder / "lora"};
  load_params(folder / "base", be, fused, with);
  ParamsOf<Quantised<TestType>> expected(quantised), found(quantised);
  quantise(fused, expected);
  load_params(folder / "base", quantised, found, with);
  CHECK(same_bytes(expected, found));
  // Onto weights that are quantised already, it needs them as numbers.
  quantise(trained, expected);
  save_params(folder / "q", quantised, expected);
  load_params(folder / "q", be, fused, with);
  load_params(folder / "q", quantised, found, with);
  quantise(fused, expected);
  CHECK(same_bytes(expected, found));
}

TEST_CASE("NaN is not rounded: where it was found is said", "[io]") {
  const Scratch folder;
  B be;
  Quantised<Int4> quantised;
  Store<MoshiParams, B> trained(be);
  number(*trained);
  trained->text_linear.weight(7, 5) = NAN;
  trained->text_linear.weight(8, 1) = INFINITY;
  ParamsOf<Quantised<Int4>> params(quantised);
  check_refused([&] { quantise(trained, params); },
                "weight 'text_linear.weight' to quantise: found nan at row 7, column 5");
  save_params(folder / "nan", be, trained);
  check_refused([&] { load_params(folder / "nan", quantised, params); },
                "tensor 'text_linear.weight': found nan at index [7, 5]");
  check_refused([&] { load_params(folder / "nan", quantised, params, {.check_finite = false}); },
                "weight 'text_linear.weight' to quantise: found nan at row 7, column 5");
}

TEMPLATE_TEST_CASE("broken checkpoints of quantised weights are refused by name", "[io]", Int8, Int4) {
  using Value = typename TestType::Value;
  using Scale = typename TestType::Scale;
  const Scratch folder;
  B be;
  Quantised<TestType> quantised;
  Store<MoshiParams, B> trained(be);
  number(*trained);
  ParamsOf<Quantised<TestType>> params(quantised), before(quantised);
  quantise(trained, params);
  save_params(folder / "q", quantised, params);
  before.assign(quantised, params);
  const auto with = [&](auto&& text_linear) {
    const SafetensorsFile whole(folder / "q");
    SafetensorsWriter writer;
    std::list<std::vector<std::byte>> kept;
    const auto copy = [&]<class T>(const TensorEntry& entry, T) {
      auto& bytes = kept.emplace_back(static_cast<std::size_t>(entry.bytes));
      whole.read_bytes(entry, bytes);
      writer.add(entry.name, entry.shape,
                 std::span<const T>(reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)));
    };
    for (const auto& entry : whole.tensors()) {
      if (entry.name.starts_with("text_linear")) continue;
      if (entry.dtype == DType::F32) copy(entry, float{});
      if (entry.dtype == DType::BF16) copy(entry, bf16{});
      if (entry.dtype == DType::I8) copy(entry, std::int8_t{});
      if (entry.dtype == DType::U8) copy(entry, std::uint8_t{});
    }
    text_linear(writer);
    writer.write(folder / "broken");
    return error_of([&] { load_params(folder / "broken", quantised, params); });
  };
  constexpr auto bytes_a_row = static_cast<std::int64_t>(TestType::values(16));
  const std::vector<Value> values(static_cast<std::size_t>(9 * bytes_a_row), Value(1));
  const std::vector<Scale> scales(20, Scale(1.0f));
  const auto add_values = [&](SafetensorsWriter& writer, std::int64_t rows) {
    writer.add("text_linear.weight", {rows, bytes_a_row},
               std::span(values).first(static_cast<std::size_t>(rows * bytes_a_row)));
  };
  const auto add_scales = [&](SafetensorsWriter& writer, std::int64_t rows, std::int64_t columns) {
    writer.add("text_linear.weight.scale", {rows, columns},
               std::span(scales).first(static_cast<std::size_t>(rows * columns)));
  };
  CHECK(with([&](SafetensorsWriter& writer) { add_values(writer, 9), add_scales(writer, 9, 1); }).empty());
  params.assign(quantised, before);

  CHECK_THAT(
      with([&](SafetensorsWriter& writer) { add_values(writer, 9); }),
      contains("mistyped tensor 'text_linear.weight'") || contains("misshapen tensor 'text_linear.weight'"));
  CHECK_THAT(
      with([&](SafetensorsWriter& writer) { add_scales(writer, 9, 1); }),
      contains("missing tensor 'text_linear.weight'") && contains("extra tensor 'text_linear.weight.scale'"));
  CHECK_THAT(with([&](SafetensorsWriter& writer) { add_values(writer, 9), add_scales(writer, 8, 1); }),
             contains("tensor 'text_linear.weight': found scales of shape [8, 1], expected one "));
  CHECK_THAT(with([&](SafetensorsWriter& writer) { add_values(writer, 9), add_scales(writer, 9, 2); }),
             contains("tensor 'text_linear.weight': found scales of shape [9, 2], expected one "));
  CHECK_THAT(with([&](SafetensorsWriter& writer) { add_values(writer, 8), add_scales(writer, 8, 1); }),
             contains("misshapen tensor 'text_linear.weight': found [8, 16], expected [9, 16]"));
  auto bad = scales;
  bad[6] = Scale(NAN);
  CHECK_THAT(with([&](SafetensorsWriter& writer) {
               add_values(writer, 9);
               writer.add("text_linear.weight.scale", {9, 1}, std::span<const Scale>(bad).first(9));
             }),
             contains("tensor 'text_linear.weight.scale': found nan at index [6, 0]"));
  CHECK(same_bytes(before, params));  // a refused file changes nothing
}
