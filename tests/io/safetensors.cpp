// safetensors: round trips, conversions, the published reference files, and files made to harm.
#include "mttt/io/safetensors.hpp"

#include <random>

#include "scratch.hpp"

using mttt::DType;
using mttt::SafetensorsFile;
using mttt::SafetensorsWriter;

namespace {

template <class T>
std::vector<T> read_all(const SafetensorsFile& file, std::string_view name) {
  const auto& entry = file.at(name);
  std::vector<T> out(entry.count());
  file.read(entry, out.data(), out.size());
  return out;
}

/// A file with a correct length field, the given header and `data` bytes of data.
std::string crafted(const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data, 'd');
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
         "}";
}

const std::string good = tensor("a", "U8", "[4]", "[0,4]");

}  // namespace

TEST_CASE("every half and bfloat16 widens exactly and returns", "[io]") {
  int wrong = 0;
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023, sign = bits >> 15;
    const float half = mttt::half_to_float(bits);
    if (exponent == 31) {
      wrong += mantissa != 0 ? !std::isnan(half) : !std::isinf(half);
    } else {
      // The definition: 2^(e - 15) * 1.m, or 2^-14 * 0.m.
      const double value =
          exponent > 0 ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
      wrong += double(half) != (sign ? -value : value);
    }
    wrong += std::signbit(half) != (sign == 1);
    wrong += mttt::float_to_half(half) != bits;
    const float brain = mttt::bfloat16_to_float(bits);
    wrong += std::bit_cast<std::uint32_t>(brain) != i << 16;
    wrong += mttt::float_to_bfloat16(brain) != bits;
  }
  CHECK(wrong == 0);
}

TEST_CASE("narrowing rounds to nearest, ties to even", "[io]") {
  // Between any two neighbours: the midpoint goes to the even one, a hair beside it to the nearer one.
  const auto check = [](auto narrow, auto widen, std::uint16_t largest) {
    int wrong = 0;
    for (std::uint32_t i = 0; i < largest; ++i) {
      const auto low = static_cast<std::uint16_t>(i), high = static_cast<std::uint16_t>(i + 1);
      const auto middle = static_cast<float>((double(widen(low)) + double(widen(high))) / 2);
      const float below = std::nextafter(middle, 0.0f), above = std::nextafter(middle, INFINITY);
      for (const std::uint16_t sign : {std::uint16_t{0}, std::uint16_t{0x8000}}) {
        const float s = sign ? -1.0f : 1.0f;
        wrong += narrow(s * middle) != (sign | (i % 2 == 0 ? low : high));
        wrong += narrow(s * below) != (sign | low);
        wrong += narrow(s * above) != (sign | high);
      }
    }
    return wrong;
  };
  CHECK(check(mttt::float_to_half, mttt::half_to_float, 0x7bff) == 0);
  CHECK(check(mttt::float_to_bfloat16, mttt::bfloat16_to_float, 0x7f7f) == 0);

  CHECK(mttt::float_to_half(65519.996f) == 0x7bff);
  CHECK(mttt::float_to_half(65520.0f) == 0x7c00);
  CHECK(mttt::float_to_half(-1e30f) == 0xfc00);
  CHECK(mttt::float_to_half(0x1p-25f) == 0);
  CHECK(mttt::float_to_half(0x1.000002p-25f) == 1);
  CHECK(mttt::float_to_half(-0x1p-140f) == 0x8000);
  CHECK(mttt::float_to_bfloat16(std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(mttt::float_to_half(std::bit_cast<float>(0x7f800001u)) == 0x7e00);  // a payload too small to keep
  CHECK(mttt::float_to_bfloat16(std::bit_cast<float>(0xff800001u)) == 0xffc0);
}

TEST_CASE("all types and the metadata survive a round trip", "[io]") {
  Scratch scratch;
  const auto path = scratch / "all.safetensors";
  const std::vector<std::uint8_t> u8{0, 1, 255}, flags{0, 1, 1};
  const std::vector<std::int8_t> i8{-128, 127};
  const std::vector<std::uint16_t> u16{65535};
  const std::vector<std::int16_t> i16{-32768, 5};
  const std::vector<std::uint32_t> u32{0xffffffffu};
  const std::vector<std::int32_t> i32{-2147483647 - 1, 7};
  const std::vector<std::uint64_t> u64{9223372036854775808u};
  const std::vector<std::int64_t> i64{std::numeric_limits<std::int64_t>::min(), 3};
  const std::vector<float> f32{1.5f, -0.0f, 1e-45f, INFINITY, 3.1415927f, -65520.0f};
  const std::vector<double> f64{0.1, 1e300};
  const auto write = [&] {
    SafetensorsWriter writer;
    writer.set_metadata("format", "mttt");
    writer.set_metadata("quote \" and \n", "caf\xc3\xa9");
    writer.add<std::uint8_t>("u8", {3}, u8);
    writer.add("flags", DType::BOOL, {3, 1}, std::as_bytes(std::span(flags)));
    writer.add<std::int8_t>("i8", {2}, i8);
    writer.add<std::uint16_t>("u16", {1}, u16);
    writer.add<std::int16_t>("i16", {2}, i16);
    writer.add<std::uint32_t>("u32", {1}, u32);
    writer.add<std::int32_t>("i32", {2}, i32);
    writer.add<std::uint64_t>("u64", {}, u64);
    writer.add<std::int64_t>("i64", {1, 2}, i64);
    writer.add<float>("f32", {2, 3}, f32);
    writer.add<double>("f64", {2}, f64);
    writer.add_rounded("f16", DType::F16, {3, 2}, f32);
    writer.add_rounded("bf16", DType::BF16, {6}, f32);
    writer.add_rounded("same", DType::F32, {6}, f32);
    writer.add<float>("empty", {0, 5}, {});
    writer.write(path);
  };
  write();
  const std::string first = content_of(path);
  write();
  CHECK(content_of(path) == first);
  CHECK(scratch.files() == 1);

  SafetensorsFile opened(path);
  const SafetensorsFile file(std::move(opened));
  REQUIRE(file.tensors().size() == 15);
  CHECK(file.tensors().front().name == "u8");
  CHECK(file.tensors().back().name == "empty");
  CHECK(file.metadata() == mttt::SafetensorsMetadata{{"format", "mttt"}, {"quote \" and \n", "caf\xc3\xa9"}});
  std::uint64_t header = 0;
  std::memcpy(&header, first.data(), 8);
  CHECK(header % 8 == 0);
  for (const auto& entry : file.tensors()) {
    CHECK(entry.begin % mttt::dtype_size(entry.dtype) == 0);  // for readers that map the file
  }

  CHECK(read_all<std::uint8_t>(file, "u8") == u8);
  CHECK(read_all<std::uint8_t>(file, "flags") == flags);
  CHECK(file.at("flags").dtype == DType::BOOL);
  CHECK(file.at("flags").shape == std::vector<std::int64_t>{3, 1});
  CHECK(read_all<std::int8_t>(file, "i8") == i8);
  CHECK(read_all<std::uint16_t>(file, "u16") == u16);
  CHECK(read_all<std::int16_t>(file, "i16") == i16);
  CHECK(read_all<std::uint32_t>(file, "u32") == u32);
  CHECK(read_all<std::int32_t>(file, "i32") == i32);
  CHECK(read_all<std::uint64_t>(file, "u64") == u64);
  CHECK(file.at("u64").shape.empty());
  CHECK(read_all<std::int64_t>(file, "i64") == i64);
  CHECK(read_all<float>(file, "f32") == f32);
  CHECK(read_all<double>(file, "f64") == f64);
  CHECK(read_all<float>(file, "same") == f32);
  CHECK(read_all<float>(file, "empty").empty());
  CHECK(read_all<std::int64_t>(file, "i8") == std::vector<std::int64_t>{-128, 127});
  CHECK(read_all<std::int64_t>(file, "u32") == std::vector<std::int64_t>{0xffffffffLL});
  CHECK(read_all<double>(file, "f32") == std::vector<double>(f32.begin(), f32.end()));
  CHECK(read_all<float>(file, "f16") == std::vector<float>{1.5f, -0.0f, 0, INFINITY, 3.140625f, -INFINITY});
  CHECK(read_all<float>(file, "bf16") == std::vector<float>{1.5f, -0.0f, 0, INFINITY, 3.140625f, -65536.0f});
  CHECK(read_all<double>(file, "bf16").at(4) == 3.140625);

  CHECK(file.read<float>(file.at("f32")) == f32);
  check_refused([&] { read_all<float>(file, "f64"); }, "1e+300 at element 1");
  check_refused([&] { read_all<float>(file, "i64"); }, "tensor 'i64': found I64; expected F32");
  check_refused([&] { read_all<std::int64_t>(file, "f16"); }, "found F16; expected I64");
  check_refused([&] { read_all<std::uint8_t>(file, "i8"); }, "-128 at element 0");
  check_refused([&] { read_all<std::int32_t>(file, "i64"); }, "a value that I32 holds");
  check_refused([&] { read_all<std::int64_t>(file, "u64"); }, "9223372036854775808 at element 0");
  float few[2];
  check_refused([&] { file.read(file.at("f32"), few, 2); }, "6 elements, shape [2, 3]; expected 2 elements");
  CHECK(file.find("f33") == nullptr);
  check_refused([&] { file.at("f33"); }, "the closest names are 'f32'");
}

TEST_CASE("rounding while writing goes through in blocks", "[io]") {
  Scratch scratch;
  std::vector<float> values(10'001);
  std::mt19937 random(1);
  for (auto& value : values) value = std::normal_distribution<float>()(random);
  SafetensorsWriter writer;
  writer.add_rounded("half", DType::F16, {10'001}, values);
  writer.write(scratch / "a.safetensors");
  const auto back = read_all<float>(SafetensorsFile(scratch / "a.safetensors"), "half");
  int wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    wrong += back[i] != mttt::half_to_float(mttt::float_to_half(values[i]));
    wrong += std::abs(back[i] - values[i]) > std::max(std::abs(values[i]) * 0x1p-11f, 0x1p-25f);
  }
  CHECK(wrong == 0);
}

TEST_CASE("an empty file of tensors is a file", "[io]") {
  Scratch scratch;
  SafetensorsWriter().write(scratch / "a.safetensors");
  const SafetensorsFile file(scratch / "a.safetensors");
  CHECK(file.tensors().empty());
  CHECK(file.metadata().empty());
  check_refused([&] { file.at("x"); }, "no tensors at all");
}

TEST_CASE("the reference files of the published implementations are read", "[io]") {
  const std::filesystem::path folder = MTTT_TEST_DATA;
  const auto check = [&](const char* name, std::size_t tensors, std::size_t metadata) {
    INFO(name);
    const SafetensorsFile file(folder / name);
    CHECK(file.tensors().size() == tensors);
    CHECK(file.metadata().size() == metadata);
    for (const auto& entry : file.tensors()) {
      if (entry.dtype != DType::F32) continue;
      const auto values = read_all<float>(file, entry.name);
      CHECK(std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); }));
    }
  };
  check("mimi_tiny.safetensors", 126, 7);
  check("mimi_tiny_window.safetensors", 126, 7);
  check("moshi_tiny.safetensors", 137, 3);
  check("ttt_linear.safetensors", 30, 7);
  check("ttt_mlp.safetensors", 34, 7);

  const SafetensorsFile mimi(folder / "mimi_tiny.safetensors");
  CHECK(mimi.at("out.codes").shape == std::vector<std::int64_t>{1, 6, 20});
  const auto codes = read_all<std::int64_t>(mimi, "out.codes");
  CHECK(std::all_of(codes.begin(), codes.end(), [](auto code) { return 0 <= code && code < 16; }));
  CHECK(mimi.metadata().at("sample_rate") == "2400");
}

TEST_CASE("hostile files are refused with a reason", "[io]") {
  Scratch scratch;
  const auto refused = [&](const std::string& content, const std::string& words) {
    const auto path = scratch.put("bad.safetensors", content);
    const auto open = [&] { SafetensorsFile file(path); };
    check_refused(open, words);
    CHECK(error_of(open).find("bad.safetensors") != std::string::npos);
    CHECK(error_of(open).size() < 600);
  };
  const auto header_refused = [&](const std::string& header, const std::string& words, std::size_t data = 4) {
    refused(crafted(header, data), words);
  };
  {  // the frame of all cases below is itself accepted
    const SafetensorsFile file(scratch.put("good.safetensors", crafted("{" + good + "}  ", 4)));
    CHECK(read_all<std::uint8_t>(file, "a") == std::vector<std::uint8_t>(4, 'd'));
  }
  check_refused([&] { SafetensorsFile(scratch / "none.safetensors"); }, "no such file");

  SECTION("lengths") {
    refused("", "a file of 0 bytes");
    refused("1234567", "a file of 7 bytes");
    refused(std::string(8, '\xff'), "a header of 18446744073709551615 bytes");
    refused(std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "a header of 100000001 bytes");
    refused(std::string("\x03\0\0\0\0\0\0\0{}", 10), "a header of 3 bytes in a file of 10");
    refused(std::string(8, '\0'), "does not start with '{'");
  }
  SECTION("not the JSON we want") {
    header_refused("{", "found at byte 2 of the header");
    header_refused("{" + good + "}x", "valid JSON");
    header_refused("{" + good + ",}", "valid JSON");
    header_refused(" {" + good + "}", "does not start with '{'");
    header_refused("[]", "does not start with '{'");
    header_refused("{" + good + "}" + std::string(1, '\0') + "x", "a zero byte");
    header_refused("{\"\xff\":1}", "valid JSON");
    header_refused(std::string(1'000'000, '{'), "valid JSON");
    header_refused("{\"" + std::string(1'000'000, 'x'), "valid JSON");
    header_refused("{\"a\":null}", "null as the header entry 'a'; expected an object");
    header_refused("{\"a\":[]}", "an array as the header entry 'a'");
    header_refused("{\"a\":\"b\"}", "the text 'b' as the header entry 'a'");
    header_refused("{\"a\":7}", "the number 7 as the header entry 'a'");
    std::string deep = "{\"a\":{\"shape\":";
    for (int i = 0; i < 1'000'000; ++i) deep += '[';
    header_refused(deep, "an array as field 'shape' of tensor 'a'");
    std::string nest;
    for (int i = 0; i < 1'000'000; ++i) nest += "{\"a\":";
    header_refused(nest, "field 'a' of tensor 'a'");
  }
  SECTION("repeated and unknown keys") {
    header_refused("{" + good + "," + good + "}", "the name 'a' twice");
    header_refused("{\"__metadata__\":{},\"__metadata__\":{}}", "the name '__metadata__' twice", 0);
    header_refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", "the metadata key 'k' twice", 0);
    header_refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", "field 'dtype' of tensor 'a' twice");
    header_refused("{\"a\":{\"dtype\":\"U8\",\"strides\":[1]}}", "field 'strides'");
  }
  SECTION("metadata") {
    header_refused("{\"__metadata__\":{\"k\":1}}", "the number 1 as the metadata key 'k'; expected text", 0);
    header_refused("{\"__metadata__\":{\"k\":{}}}", "an object as the metadata key 'k'", 0);
    header_refused("{\"__metadata__\":{\"k\":null}}", "null as the metadata key 'k'", 0);
    header_refused("{\"__metadata__\":[]}", "an array as the header entry", 0);
  }
  SECTION("fields") {
    header_refused("{\"a\":{}}", "a field missing");
    header_refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", "a field missing");
    header_refused("{" + tensor("a", "F8_E4M3", "[4]", "[0,4]") + "}", "'F8_E4M3'; expected one of F64, F32");
    header_refused("{\"a\":{\"dtype\":7}}", "the number 7 as field 'dtype'");
    header_refused("{\"a\":{\"dtype\":[\"U8\"]}}", "an array as field 'dtype'");
    header_refused("{" + tensor("a", "U8", "4", "[0,4]") + "}", "the number 4 as field 'shape'");
    header_refused("{" + tensor("a", "U8", "[-4]", "[0,4]") + "}", "the number -4");
    header_refused("{" + tensor("a", "U8", "[4.0]", "[0,4]") + "}", "the number '4.0'");
    header_refused("{" + tensor("a", "U8", "[4e0]", "[0,4]") + "}", "the number '4e0'");
    header_refused("{" + tensor("a", "U8", "[1e999]", "[0,4]") + "}", "valid JSON");
    header_refused("{" + tensor("a", "U8", "[true]", "[0,4]") + "}", "true or false");
    header_refused("{" + tensor("a", "U8", "[\"4\"]", "[0,4]") + "}", "the text '4'");
    header_refused("{" + tensor("a", "U8", "[[4]]", "[0,4]") + "}", "an array as field 'shape'");
    header_refused("{" + tensor("a", "U8", "[{}]", "[0,4]") + "}", "an object as field 'shape'");
    header_refused("{" + tensor("a", "U8", "[9223372036854775808]", "[0,4]") + "}",
                   "the number 9223372036854775808");
    header_refused("{" + tensor("a", "U8", "[18446744073709551616]", "[0,4]") + "}",
                   "the number '18446744073709551616'");
    std::string many = "[1";
    for (int i = 0; i < 64; ++i) many += ",1";
    header_refused("{" + tensor("a", "U8", many + "]", "[0,4]") + "}", "more than 64 numbers");
  }
  SECTION("offsets") {
    header_refused("{" + tensor("a", "U8", "[4]", "[]") + "}", "with 0 numbers; expected two");
    header_refused("{" + tensor("a", "U8", "[4]", "[0]") + "}", "with 1 numbers");
    header_refused("{" + tensor("a", "U8", "[4]", "[0,4,8]") + "}", "with 3 numbers");
    header_refused("{" + tensor("a", "U8", "[4]", "[-1,4]") + "}", "the number -1");
    header_refused("{" + tensor("a", "U8", "[4]", "[4,0]") + "}",
                   "bytes 4 to 0; expected a range within the 4 bytes");
    header_refused("{" + tensor("a", "U8", "[5]", "[0,5]") + "}",
                   "bytes 0 to 5; expected a range within the 4 bytes");
    header_refused("{" + tensor("a", "U8", "[4]", "[9223372036854775803,9223372036854775807]") + "}",
                   "within the 4 bytes");
    header_refused("{" + tensor("a", "U8", "[3]", "[0,4]") + "}", "expected 3 bytes for shape [3] of U8");
    header_refused("{" + tensor("a", "F32", "[2]", "[0,4]") + "}", "expected 8 bytes for shape [2] of F32");
    header_refused("{" + tensor("a", "F64", "[2305843009213693952]", "[0,0]") + "}", "more than 2^64");
    header_refused("{" + tensor("a", "U8", "[4294967296,4294967296]", "[0,0]") + "}", "more than 2^64", 0);
    header_refused("{" + tensor("a", "U8", "[4294967296,4294967297]", "[0,4]") + "}", "more than 2^64");
  }
  SECTION("overlaps and holes") {
    const auto two = [](const std::string& a, int n, const std::string& b, int m) {
      return "{" + tensor("a", "U8", "[" + std::to_string(n) + "]", a) + "," +
             tensor("b", "U8", "[" + std::to_string(m) + "]", b) + "}";
    };
    header_refused(two("[0,3]", 3, "[2,4]", 2), "tensor 'b' overlapping another");
    header_refused(two("[0,4]", 4, "[0,4]", 4), "overlapping another");
    header_refused(two("[0,4]", 4, "[1,2]", 1), "tensor 'b' overlapping another");
    header_refused(two("[0,1]", 1, "[2,4]", 2), "1 unused bytes before tensor 'b'");
    header_refused(two("[1,2]", 1, "[2,4]", 2), "1 unused bytes before tensor 'a'");
    header_refused(two("[0,1]", 1, "[1,3]", 2), "1 unused bytes at the end");
    header_refused(two("[0,4]", 4, "[2,2]", 0), "tensor 'b' overlapping another");
    header_refused("{}", "4 unused bytes at the end");
    const auto path = scratch.put("order.safetensors", crafted(two("[2,4]", 2, "[0,2]", 2), 4));
    CHECK(SafetensorsFile(path).tensors().front().name == "a");  // any order is fine
  }
  SECTION("names cannot disturb the terminal") {
    header_refused("{\"\\u001b[31m" + std::string(500, 'n') + "\":1}", "'?[31mnnn");
  }
}

TEST_CASE("every truncation and every flipped byte of a file is survived", "[io]") {
  Scratch scratch;
  const std::vector<float> values{1, 2, 3};
  const std::vector<std::uint8_t> bytes{1, 2, 3};
  SafetensorsWriter writer;
  writer.set_metadata("key", "value");
  writer.add<float>("floats", {3}, values);
  writer.add<std::uint8_t>("bytes", {3, 1}, bytes);
  writer.write(scratch / "whole.safetensors");
  const std::string whole = content_of(scratch / "whole.safetensors");
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const auto path = scratch.put("cut.safetensors", whole.substr(0, length));
    INFO(length);
    CHECK_THROWS_AS(SafetensorsFile(path), mttt::Error);
  }
  check_refused([&] { SafetensorsFile(scratch.put("long.safetensors", whole + "x")); }, "1 unused bytes");
  // A flipped bit may leave a sound file, but nothing else than Error may come of it.
  int opened = 0;
  for (std::size_t i = 0; i < 8 * (whole.size() - 15); ++i) {
    std::string flipped = whole;
    flipped[i / 8] = static_cast<char>(flipped[i / 8] ^ (1 << i % 8));
    error_of([&] {
      const SafetensorsFile file(scratch.put("flip.safetensors", flipped));
      std::size_t total = 0;
      for (const auto& entry : file.tensors()) total += entry.bytes;
      CHECK(total == 15);
      ++opened;
    });
  }
  CHECK(opened > 0);
}

TEST_CASE("data of a foreign file need not be aligned", "[io]") {
  Scratch scratch;
  const std::string header =
      "{" + tensor("a", "U8", "[1]", "[0,1]") + "," + tensor("b", "F32", "[1]", "[1,5]") + "}";
  for (std::size_t pad = 0; pad < 4; ++pad) {
    const SafetensorsFile file(scratch.put("a.safetensors", crafted(header + std::string(pad, ' '), 5)));
    const float wanted = std::bit_cast<float>(0x64646464u);
    CHECK(read_all<float>(file, "b") == std::vector<float>{wanted});
    CHECK(read_all<double>(file, "b") == std::vector<double>{wanted});
  }
}

TEST_CASE("the writer refuses what the reader would", "[io]") {
  Scratch scratch;
  const std::vector<float> values(6);
  SafetensorsWriter writer;
  writer.add<float>("a", {2, 3}, values);
  check_refused([&] { writer.add<float>("a", {6}, values); }, "tensor 'a': found a name already taken");
  check_refused([&] { writer.add<float>("__metadata__", {6}, values); }, "a name already taken");
  check_refused(
      [&] {
        writer.add<float>("b", {2, 2}, values);
      },
      "24 bytes; expected 16 bytes for shape [2, 2]");
  check_refused([&] { writer.add<float>("b", {-2, -3}, values); }, "a possible size");
  check_refused([&] { writer.add<float>("b", {std::int64_t{1} << 62, 4}, values); }, "a possible size");
  check_refused([&] { writer.add<float>("\xff", {6}, values); }, "valid UTF-8");
  check_refused([&] { writer.set_metadata("k", "\xff"); }, "valid UTF-8");
  check_refused([&] { writer.add_rounded("b", DType::I8, {6}, values); }, "expected F32, F16 or BF16");
  const auto path = scratch.put("a.safetensors", "old");
  check_refused([&] { writer.write(scratch / "none/a.safetensors"); }, "opening its folder");
  CHECK(content_of(path) == "old");
  writer.write(path);
  CHECK(SafetensorsFile(path).tensors().size() == 1);  // the refused ones left nothing behind
}
