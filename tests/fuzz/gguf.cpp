// Hostile GGUF: header, keys and values, shapes, blocks; and a model that is filled from it.
#include "mttt/io/gguf.hpp"

#include "../io/gguf_writer.hpp"
#include "fuzz.hpp"
#include "mttt/io/checkpoint.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using B = Cpu<float>;

struct Layer {
  Tensor<float, 2, 32> in0, in1;
  Tensor<float, 2, 256> wide;
  Tensor<float, 1, 1, 3> norm;
  static void visit(auto&& f, auto&&... p) {
    f("attn.in_projs.0.weight", p.in0...), f("attn.in_projs.1.weight", p.in1...);
    f("wide.weight", p.wide...), f("norm.alpha", p.norm...);
  }
};
}  // namespace

void seeds(const std::filesystem::path& folder) {
  std::vector<float> values(512);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * static_cast<float>(i % 91) - 0.4f;
  for (const auto type : {GgmlType::f16, GgmlType::q8_0, GgmlType::q4_0, GgmlType::bf16}) {
    GgufWriter writer;
    writer.text("general.architecture", "moshi");
    writer.texts("tokenizer.pieces", {"a", "", "bc"});
    writer.add("attn.in_proj_weight", type, {4, 32}, values);
    writer.add("wide.weight", GgmlType::q4_k, {2, 256}, values);
    writer.add("norm.alpha", GgmlType::f32, {3}, values);
    writer.write(folder / ("type" + std::to_string(static_cast<int>(type))));
  }
}

void try_file(const std::filesystem::path& path, std::span<const std::byte> content) {
  static const auto named =
      std::filesystem::temp_directory_path() / ("mttt-fuzz-" + std::to_string(::getpid()) + ".gguf");
  fuzz::accepted([&] {
    const GgufFile file(path);
    for (const auto& entry : file.tensors()) {
      if (entry.blocks == Blocks::none) fuzz::accepted([&] { file.read<float>(entry); });
    }
    fuzz::accepted([&] { file.at("wide"); });
  });
  fuzz::put(named, {reinterpret_cast<const char*>(content.data()), content.size()});
  static B be(1);
  static Store<Layer, B> layer(be);
  fuzz::accepted([&] { load_params(named, be, layer); });
  fuzz::accepted([&] { load_params(named, be, layer, {.prefix = "lm.", .check_finite = false}); });
  fuzz::accepted([&] { check_params<Layer>(named); });
  std::filesystem::remove(named);
}
