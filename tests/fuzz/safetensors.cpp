// Hostile safetensors: the format, parameters under published and older names, training checkpoints, codes.
#include "fuzz.hpp"
#include "mttt/io/checkpoint.hpp"
#include "mttt/io/codes.hpp"

namespace {
using namespace mttt;
using B = Cpu<float>;

/// What a checkpoint may hold: matrices that are found under several names, a turned one, a scalar.
struct Layer {
  Tensor<float, 6, 2> in0, in1;
  Tensor<float, 2, 2> out;
  Tensor<float, 1> gate;
  PermutedTensor<float, std::index_sequence<0, 2, 1>, 2, 4, 3> conv;
  static void visit(auto&& f, auto&&... p) {
    f("attn.in_projs.0.weight", p.in0...), f("attn.in_projs.1.weight", p.in1...);
    f("attn.out_projs.0.weight", p.out...), f("gate", p.gate...), f("conv.weight", p.conv...);
  }
};
struct Fused {
  Tensor<float, 12, 2> in;
  static void visit(auto&& f, auto&&... p) { f("attn.in_proj_weight", p.in...); }
};
struct Broad {
  Tensor<float, 4, 8> wide;
  static void visit(auto&& f, auto&&... p) { f("wide.weight", p.wide...); }
};
struct Half {
  Tensor<bf16, 3> norm;
  static void visit(auto&& f, auto&&... p) { f("norm", p.norm...); }
};

const nlohmann::json config = {{"dim", 4}, {"delays", {0, 1, 1}}};

struct Training {
  B be{1};
  Store<Fused, B> params{be};
  Trainer<Fused, B> trainer{be, params, {.max_steps = 100, .lr = 1e-3}};
};

/// Files to add adapters to.
struct Sound {
  static std::vector<std::byte> file_of(const auto& store) {
    const auto path = std::filesystem::temp_directory_path() / ("mttt-fuzz-" + std::to_string(::getpid()));
    B be(1);
    save_params(path, be, store);
    const WholeFile whole(path);
    std::filesystem::remove(path);
    return {whole.bytes().begin(), whole.bytes().end()};
  }
  B be{1};
  fuzz::MemoryFile wide{file_of(Store<Broad, B>(be))}, fused{file_of(Store<Fused, B>(be))};
};

template <class T>
void read_all(const SafetensorsFile& file) {
  for (const TensorEntry& entry : file.tensors()) fuzz::accepted([&] { file.read<T>(entry); });
}
}  // namespace

void seeds(const std::filesystem::path& folder) {
  B be(1);
  Store<Layer, B> layer(be);
  Store<Fused, B> fused(be);
  Store<Half, B> half(be);
  save_params(folder / "layer", be, layer, {.config = config, .metadata = {{"source", "seed"}}});
  save_params(folder / "half", be, half);
  save_params(folder / "rounded", be, fused, {.dtype = DType::F16});
  Training training;
  save_training(folder / "training", be, training.trainer, config);
  save_codes(folder / "codes", {3, 4, std::vector<std::int32_t>(12, 2), 12.5, 9, 6, "codec", "source"});
  const std::vector<std::int8_t> rows(24, 5);
  const std::vector<std::uint32_t> words(4, 0x12345678);
  const std::vector<float> ones(48, 1);
  SafetensorsWriter quantised, packed,
      adapter;  // forms of "attn.in_proj_weight" (12, 2) and of "wide" (4, 8)
  quantised.add("attn.in_proj_weight", {12, 2}, std::span(rows));
  quantised.add("attn.in_proj_weight_scb", {12}, std::span(ones).first(12));
  quantised.write(folder / "int8");
  packed.add("wide.weight", {4, 1}, std::span(words));
  packed.add("wide.scales", {4, 2}, std::span(ones).first(8));
  packed.add("wide.biases", {4, 2}, std::span(ones).first(8));
  packed.write(folder / "packed");
  adapter.add("attn.in_proj.lora_A.weight", {1, 2}, std::span(ones).first(2));
  adapter.add("attn.in_proj.lora_B.weight", {12, 1}, std::span(ones).first(12));
  adapter.add("wide.lora_A.weight", {2, 8}, std::span(ones).first(16));
  adapter.add("wide.lora_B.weight", {4, 2}, std::span(ones).first(8));
  adapter.write(folder / "adapter");
  const std::int64_t number = 7;
  const std::uint8_t flags[3]{0, 1, 255};
  const double wide = 1e300;
  SafetensorsWriter all;
  all.add("i64", {}, std::span(&number, 1));
  all.add("bool", DType::BOOL, {3}, std::as_bytes(std::span(flags)));
  all.add("f64", {1, 1}, std::span(&wide, 1));
  all.add("empty", {0, 5}, std::span<const std::int16_t>());
  all.write(folder / "types");
}

void try_file(const std::filesystem::path& path, std::span<const std::byte>) {
  fuzz::accepted([&] {
    const SafetensorsFile file(path);
    read_all<float>(file), read_all<double>(file), read_all<std::int64_t>(file), read_all<std::uint8_t>(file);
    fuzz::accepted([&] { file.at("attn.in_proj.weight"); });
  });
  static B be(1);
  static Store<Layer, B> layer(be);
  static Store<Fused, B> fused(be);
  static Store<Half, B> half(be);
  static Store<Broad, B> wide(be);
  fuzz::accepted([&] { load_params(path, be, layer); });
  fuzz::accepted([&] { load_params(path, be, layer, {.config = config}); });
  fuzz::accepted([&] { load_params(path, be, layer, {.prefix = "model.", .check_finite = false}); });
  fuzz::accepted([&] { load_params(path, be, fused); });
  fuzz::accepted([&] { load_params(path, be, wide); });
  // As an adapter, of files that are sound.
  static const Sound sound;
  fuzz::accepted([&] { load_params(sound.wide.path(), be, wide, {.adapter = path}); });
  fuzz::accepted([&] { load_params(sound.fused.path(), be, fused, {.adapter = path, .lora_rank = 1}); });
  fuzz::accepted(
      [&] { load_params(path, be, half, {.ignore_extra = [](std::string_view) { return true; }}); });
  fuzz::accepted([&] { load_codes(path); });

  static Training training;
  if (fuzz::accepted([&] { load_training(path, be, training.trainer); })) {
    fuzz::accepted([&] { training.trainer.step([](std::int64_t, Fused&) { return MicroBatch{1.0, 1}; }); });
  }
}
