// GGUF: files as candle and ggml write them, block by block as computed here, and what damaged ones say.
#include "gguf_writer.hpp"

#include "foreign.hpp"

namespace {
using namespace mttt;
using namespace mttt::testing;
using mttt::test::contains;

/// The small Moshi in the names of the Rust program: matrices in `type`, where their rows are whole blocks.
void write_candle(const std::filesystem::path& path, const Tensors& tensors, GgmlType type,
                  const std::string& prefix) {
  GgufWriter writer;
  for (const auto& [name, stored] : tensors) {
    const bool packs = stored.shape.size() == 2 && stored.shape[1] % block_numbers(type) == 0;
    writer.add(prefix + name, packs ? type : GgmlType::f32, stored.shape, stored.values);
  }
  writer.write(path);
}

constexpr MoshiConfig wide_moshi() {  // rows of whole blocks
  MoshiConfig config = foreign_moshi;
  config.temporal.dim = 256, config.temporal.hidden = 64, config.depformer.dim = 32,
  config.depformer.hidden = 32;
  return config;
}
using WideParams = Moshi<wide_moshi(), B>::Params;

/// Largest difference of any tensor, in parts of its own largest number.
double off(const Tensors& found, const Tensors& expected) {
  double worst = 0;
  for (const auto& [name, stored] : expected) {
    double largest = 0, difference = 0;
    const auto& other = found.at(name).values;
    for (std::size_t i = 0; i < other.size(); ++i) {
      largest = std::max(largest, std::abs(double(stored.values[i])));
      difference = std::max(difference, std::abs(double(stored.values[i]) - double(other[i])));
    }
    worst = std::max(worst, difference / largest);
  }
  return worst;
}

struct Pair {
  Tensor<float, 2, 32> w;
  Tensor<float, 2> b;
  static void visit(auto&& f, auto&&... p) {
    f("w", p.w...);
    f("b", p.b...);
  }
};

std::string refused(const std::string& content) {
  const Scratch folder;
  return error_of([&] { const GgufFile file(folder.put("f.gguf", content)); });
}
}  // namespace

TEST_CASE("the Rust program's GGUF loads to the numbers that its blocks stand for", "[io]") {
  const Scratch folder;
  B be;
  Store<WideParams, B> params(be), back(be);
  number(*params);
  const auto ours = tensors_of(*params);
  const auto type =
      GENERATE(GgmlType::f32, GgmlType::f16, GgmlType::bf16, GgmlType::q8_0, GgmlType::q4_0, GgmlType::q4_k);
  const std::string prefix = type == GgmlType::q4_k ? "lm." : "";  // moshi.cpp
  write_candle(folder / "model.q8.gguf", moshi_in_steps<wide_moshi()>(ours, false), type, prefix);
  LoadOptions options;
  options.prefix = prefix;
  load_params(folder / "model.q8.gguf", be, back, options);
  check_params<WideParams>(folder / "model.q8.gguf", options);
  const double limit = type == GgmlType::q4_0   ? 0.126  // 8 steps down, but only 7 up
                       : type == GgmlType::q4_k ? 0.08
                       : type == GgmlType::q8_0 ? 0.005
                                                : 0.0005;
  const double difference = off(tensors_of(*back), ours);
  INFO("type " << int(type) << ", difference " << difference);
  CHECK(difference <= limit);
  if (type == GgmlType::f32 || type == GgmlType::bf16)
    CHECK(std::memcmp(params.data(), back.data(), std::size_t(params.bytes())) == 0);
  if (limit > 0.001) CHECK(difference > limit / 100);
}

TEST_CASE("blocks of 4 and 8 bits, by hand", "[io]") {
  std::array<float, 256> out{};
  std::vector<std::uint8_t> q8(34);
  q8[0] = 0x00, q8[1] = 0x38;  // 0.5 in float16
  q8[2] = 2, q8[3] = 0xff, q8[33] = 0x80;
  detail::unpack_block(Blocks::q8_0, q8.data(), out.data());
  CHECK(out[0] == 1.0f);
  CHECK(out[1] == -0.5f);
  CHECK(out[31] == -64.0f);
  std::vector<std::uint8_t> q4(18);
  q4[1] = 0x40;  // 2
  q4[2] = 0xf0, q4[17] = 0x19;
  detail::unpack_block(Blocks::q4_0, q4.data(), out.data());
  CHECK(out[0] == -16.0f);  // 0 - 8
  CHECK(out[16] == 14.0f);  // 15 - 8
  CHECK(out[15] == 2.0f);
  CHECK(out[31] == -14.0f);
  std::vector<std::uint8_t> k(144);
  k[1] = 0x3c, k[3] = 0x40;  // d = 1, m = 2
  k[4] = 5, k[8] = 3;        // of numbers 0-31: scale 5, minimum 3
  k[4 + 2] = 0x40 | 1;       // scale of 64-95 is 1; two high bits of the scale of 192-223
  k[4 + 10] = 0x27;          // of 192-223: low halves, scale 7, minimum 2
  k[4 + 6] = 0x80;           // minimum of 64-95 is 0; high bits of the minimum of 192-223
  k[16] = 0x09, k[16 + 32] = 0x0c, k[16 + 96] = 0x03;
  detail::unpack_block(Blocks::q4_k, k.data(), out.data());
  CHECK(out[0] == 1 * 5 * 9 - 2.0f * 3);
  CHECK(out[1] == -6.0f);
  CHECK(out[64] == 12.0f);
  CHECK(out[192] == (7 + 16) * 3 - 2.0f * (2 + 32));
}

TEST_CASE("a folder of the Rust program's q8 is found without config.json", "[io]") {
  const Scratch folder;
  B be;
  Store<WideParams, B> params(be);
  number(*params);
  write_candle(folder / "model.q8.gguf", moshi_in_steps<wide_moshi()>(tensors_of(*params), false),
               GgmlType::q8_0, "");
  folder.put("tokenizer-e351c8d8-checkpoint125.safetensors", "");
  CHECK(find_model(folder.folder).moshi == folder / "model.q8.gguf");
  CHECK(find_model(folder.folder).moshi_prefix.empty());
  std::filesystem::rename(folder / "model.q8.gguf", folder / "model.safetensors.q8_0.gguf");
  CHECK(find_model(folder.folder).moshi == folder / "model.safetensors.q8_0.gguf");
  write_candle(folder / "model.gguf", moshi_in_steps<wide_moshi()>(tensors_of(*params), false),
               GgmlType::q8_0, "lm.");
  CHECK(find_model(folder.folder).moshi_prefix == "lm.");
  CHECK(find_model(folder.folder, {}, folder / "mimi").mimi == folder / "mimi");
}

TEST_CASE("damaged GGUF is refused with what was found", "[io]") {
  const Scratch folder;
  GgufWriter writer;
  std::vector<float> values(64, 1);
  writer.text("general.name", "a model");
  writer.texts("tokenizer.pieces", {"a", "b"});
  writer.add("w", GgmlType::q8_0, {2, 32}, values);
  writer.add("b", GgmlType::f32, {2}, values);
  writer.write(folder / "good.gguf");
  const std::string good = content_of(folder / "good.gguf");
  CHECK(refused(good).empty());
  const GgufFile file(folder / "good.gguf");
  CHECK(file.tensors().size() == 2);
  CHECK(file.find("w")->shape == std::vector<std::int64_t>{2, 32});
  CHECK(stored_type(*file.find("w")) == "Q8_0");

  // Cut anywhere, it says so; no cut is taken for a file.
  for (std::size_t n = 0; n < good.size() - 24; ++n) {  // what follows the last tensor is padding
    INFO("cut to " << n);
    CHECK_THAT(refused(good.substr(0, n)), contains("; expected "));
  }
  const auto changed = [&](std::size_t at, const std::string& bytes) {
    std::string bad = good;
    return refused(bad.replace(at, bytes.size(), bytes));
  };
  const std::string huge(8, '\x7f');
  CHECK_THAT(changed(0, "GGUX"), contains("found no 'GGUF' at its start"));
  CHECK_THAT(changed(4, std::string("\1\0\0\0", 4)),
             contains("found GGUF of version 1; expected version 2 or 3"));
  CHECK_THAT(changed(8, huge), contains("found 9187201950435737471 tensors"));
  CHECK_THAT(changed(16, huge), contains("found 9187201950435737471 keys"));
  CHECK_THAT(changed(24, huge), contains("found a key of 9187201950435737471 bytes; expected at most 65535"));
  const std::size_t w = good.find(std::string("\1\0\0\0\0\0\0\0w", 9)) + 9;  // rank, two extents, type, place
  CHECK_THAT(changed(w, std::string("\5\0\0\0", 4)), contains("tensor 'w' of rank 5"));
  CHECK_THAT(changed(w + 4, std::string("\x21\0", 2)),
             contains("'w' of shape [2, 33]; expected rows of blocks of 32"));
  CHECK_THAT(changed(w + 12, huge), contains("tensor 'w' with an extent of 9187201950435737471"));
  CHECK_THAT(changed(w + 20, std::string("\16\0", 2)),
             contains("tensor 'w': found ggml's type Q6_K; expected F32, F16, BF16, Q8_0, Q4_0 or Q4_K"));
  CHECK_THAT(changed(w + 20, std::string("\x70\0", 2)), contains("ggml's type number 112"));
  CHECK_THAT(changed(w + 24, std::string("\3\0", 2)),
             contains("tensor 'w' at byte 3; expected a multiple of 32"));
  CHECK_THAT(changed(w + 24, std::string("\x20\0", 2)), contains("overlapping another"));
  CHECK_THAT(changed(w + 24, std::string(7, '\0') + "\x40"), contains("expected a range within the"));
  CHECK_THAT(changed(w - 1, "b"), contains("the name 'b' twice"));
  check_refused([&] { const SafetensorsFile other(folder / "good.gguf"); }, "found a GGUF file");

  // A scale that is no number.
  std::string nan = good;
  nan[file.find("w")->begin + 34 + 1] = '\x7e';
  folder.put("nan.gguf", nan);
  B be;
  Store<Pair, B> pair(be);
  load_params(folder / "good.gguf", be, pair);
  CHECK(pair->w(1, 31) == Approx(1).epsilon(1e-3));
  check_refused([&] { load_params(folder / "nan.gguf", be, pair); },
                "tensor 'w': found a scale of nan at block 1, expected finite numbers");
}
