// Quantised weights become numbers of the model's type: int8 rows of the PyTorch repositories, packed groups
// of MLX.
#include "foreign.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using mttt::test::contains;

bool is_linear(const std::string& name) {
  return name.ends_with("weight") && name.find("emb") == name.npos && name.find("norm") == name.npos;
}

/// A file of tensors of several types, which live as long as it does.
struct Mixed {
  SafetensorsWriter writer;
  std::list<std::vector<std::int8_t>> bytes;
  std::list<std::vector<std::uint32_t>> words;
  std::list<std::vector<float>> floats;

  void add(const std::string& name, const Stored& stored) {
    floats.push_back(stored.values);
    writer.add_rounded(name, DType::BF16, stored.shape, std::span<const float>(floats.back()));
  }
  void add_f32(const std::string& name, std::vector<std::int64_t> shape, std::vector<float> values) {
    writer.add(name, std::move(shape), std::span<const float>(floats.emplace_back(std::move(values))));
  }
  /// As QLinear: the largest of a row is 127. Returns what the file stands for.
  Stored add_int8(const std::string& name, const Stored& w) {
    auto& q = bytes.emplace_back(w.values.size());
    std::vector<float> scb(static_cast<std::size_t>(w.rows()));
    Stored out = w;
    for (std::size_t r = 0; r < scb.size(); ++r) {
      float* row = out.values.data() + r * w.row_size();
      for (std::size_t i = 0; i < w.row_size(); ++i) scb[r] = std::max(scb[r], std::abs(row[i]));
      for (std::size_t i = 0; i < w.row_size(); ++i) {
        const auto value = static_cast<std::int8_t>(std::lround(row[i] / scb[r] * 127));
        q[r * w.row_size() + i] = value;
        row[i] = static_cast<float>(value) * scb[r] / 127;
      }
    }
    writer.add(name, w.shape, std::span<const std::int8_t>(q));
    add_f32(name + "_scb", {w.rows()}, scb);
    return out;
  }
  /// As mlx.core.quantize of `bits`, in groups of columns.
  Stored add_packed(const std::string& stem, const Stored& w, std::size_t bits, std::size_t group) {
    const std::size_t per_word = 32 / bits, columns = w.row_size();
    auto& q = words.emplace_back(w.values.size() / per_word, 0u);
    std::vector<float> scales, biases;
    Stored out = w;
    for (std::size_t at = 0; at < w.values.size(); at += group) {
      const auto [low, high] = std::minmax_element(&w.values[at], &w.values[at] + group);
      const float scale = float(bf16((*high - *low) / static_cast<float>((1 << bits) - 1) + 1e-3f));
      scales.push_back(scale), biases.push_back(float(bf16(*low)));
      for (std::size_t i = at; i < at + group; ++i) {
        const auto value = static_cast<std::uint32_t>(
            std::clamp(std::lround((w.values[i] - biases.back()) / scale), 0L, (1L << bits) - 1));
        q[i / per_word] |= value << (i % per_word * bits);
        out.values[i] = static_cast<float>(value) * scale + biases.back();
      }
    }
    const auto words_a_row = static_cast<std::int64_t>(columns / per_word);
    writer.add(stem + ".weight", {w.rows(), words_a_row}, std::span<const std::uint32_t>(q));
    const Stored of_groups{{w.rows(), static_cast<std::int64_t>(columns / group)}, {}};
    add(stem + ".scales", {of_groups.shape, scales}), add(stem + ".biases", {of_groups.shape, biases});
    return out;
  }
};

/// Largest difference over all tensors, in parts of the largest value of each.
double difference(const Tensors& a, const Tensors& b) {
  double largest = 0;
  for (const auto& [name, stored] : a) {
    const auto& other = b.at(name);
    REQUIRE(other.shape == stored.shape);
    double size = 0, off = 0;
    for (std::size_t i = 0; i < stored.values.size(); ++i) {
      size = std::max(size, std::abs(double(stored.values[i])));
      off = std::max(off, std::abs(double(stored.values[i]) - double(other.values[i])));
    }
    largest = std::max(largest, off / size);
  }
  return largest;
}
}  // namespace

TEST_CASE("int8 rows with their scales, split and stacked", "[io]") {
  const Scratch folder;
  B be;
  Store<MoshiParams, B> params(be), back(be);
  number(*params);
  const auto ours = tensors_of(*params);
  const bool fused = GENERATE(false, true);
  Mixed file;
  Tensors meant;
  for (const auto& [name, stored] : fused ? moshi_fused(ours, "in_proj_weight") : ours) {
    if (is_linear(name)) {
      meant[name] = file.add_int8(name, stored);
    } else {
      meant[name] = stored;
      file.add(name, stored);
    }
  }
  file.writer.write(folder / "q8");
  if (fused) {
    write(folder / "meant", meant);
    load_params(folder / "meant", be, back);
    meant = tensors_of(*back);
  }
  load_params(folder / "q8", be, back);
  const auto found = tensors_of(*back);
  CHECK(difference(meant, found) < 1e-6);  // the rounding of one product
  CHECK(difference(ours, found) > 1e-4);   // it was quantised
  CHECK(difference(ours, found) < 0.5 / 127 + 1e-6);
}

TEST_CASE("packed groups of MLX, 8 and 4 bits", "[io]") {
  const Scratch folder;
  B be;
  Store<MoshiParams, B> params(be), back(be);
  number(*params);
  const auto ours = tensors_of(*params);
  const std::size_t bits = GENERATE(4u, 8u);
  Mixed file;
  Tensors meant;
  for (const auto& [name, stored] : moshi_in_steps(ours, true)) {
    if (stored.shape.size() == 2 && stored.row_size() % 8 == 0) {
      meant[name] = file.add_packed(name.substr(0, name.size() - 7), stored, bits, 8);
    } else {
      meant[name] = stored;
      file.add(name, stored);
    }
  }
  file.writer.write(folder / "q");
  write(folder / "meant", meant);
  load_params(folder / "meant", be, params);
  load_params(folder / "q", be, back);
  CHECK(difference(tensors_of(*params), tensors_of(*back)) < 1e-6);
  CHECK(difference(ours, tensors_of(*back)) > 1e-4);  // it was quantised
}

TEST_CASE("quantised tensors that lack a part are refused by name", "[io]") {
  const Scratch folder;
  B be;
  Store<MoshiParams, B> params(be);
  number(*params);
  const auto ours = tensors_of(*params);
  const auto with = [&](auto&& one) {
    Mixed file;
    for (const auto& [name, stored] : ours)
      name == "text_linear.weight" ? one(file, name, stored) : file.add(name, stored);
    file.writer.write(folder / "q8");
    return error_of([&] { load_params(folder / "q8", be, params); });
  };
  const std::vector<std::int8_t> q(9 * 16, 1);
  CHECK_THAT(with([&](Mixed& file, const std::string& name, const Stored& stored) {
               file.writer.add(name, stored.shape, std::span<const std::int8_t>(q));
             }),
             contains("mistyped tensor 'text_linear.weight': found I8, expected F32"));
  CHECK_THAT(with([&](Mixed& file, const std::string& name, const Stored& stored) {
               file.writer.add(name, stored.shape, std::span<const std::int8_t>(q));
               file.add_f32(name + "_scb", {8}, std::vector<float>(8, 1));
             }),
             contains("tensor 'text_linear.weight': found scales of shape [8], expected one a row"));
  CHECK_THAT(with([&](Mixed& file, const std::string& name, const Stored& stored) {
               file.writer.add(name, stored.shape, std::span<const std::int8_t>(q));
               std::vector<float> scb(9, 1);
               scb[4] = INFINITY;
               file.add_f32(name + "_scb", {9}, scb);
             }),
             contains("tensor 'text_linear.weight_scb': found inf at index [4]"));
  const std::vector<std::uint32_t> words(9 * 4, 1);
  CHECK_THAT(
      with([&](Mixed& file, const std::string&, const Stored&) {
        file.writer.add("text_linear.weight", {9, 4}, std::span<const std::uint32_t>(words));
        file.add_f32("text_linear.scales", {9, 3}, std::vector<float>(27, 1));
        file.add_f32("text_linear.biases", {9, 3}, std::vector<float>(27, 1));
      }),
      contains("tensor 'text_linear.weight': found scales of shape [9, 3], expected one for each group"));
  CHECK_THAT(with([&](Mixed& file, const std::string&, const Stored&) {
               file.writer.add("text_linear.weight", {9, 4}, std::span<const std::uint32_t>(words));
             }),
             contains("misshapen tensor 'text_linear.weight': found [9, 4], expected [9, 16]"));
}
