// Writes GGUF, as ggml's documents and its quantisers say: for tests and seeds of the reader.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "mttt/io/dtype.hpp"

namespace mttt::testing {

enum class GgmlType : std::uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q8_0 = 8, q4_k = 12, bf16 = 30 };

inline std::int64_t block_numbers(GgmlType type) {
  return type == GgmlType::q4_k ? 256 : type == GgmlType::q4_0 || type == GgmlType::q8_0 ? 32 : 1;
}

class GgufWriter {
 public:
  void text(const std::string& key, const std::string& value) {
    ++keys_, put_text(header_, key), put<std::uint32_t>(header_, 8), put_text(header_, value);
  }
  void texts(const std::string& key, const std::vector<std::string>& values) {
    ++keys_, put_text(header_, key), put<std::uint32_t>(header_, 9), put<std::uint32_t>(header_, 8);
    put<std::uint64_t>(header_, values.size());
    for (const auto& value : values) put_text(header_, value);
  }
  void add(const std::string& name, GgmlType type, const std::vector<std::int64_t>& shape,
           const std::vector<float>& values) {
    std::size_t count = 1;
    for (const auto extent : shape) count *= static_cast<std::size_t>(extent);
    ++tensors_, put_text(infos_, name), put<std::uint32_t>(infos_, static_cast<std::uint32_t>(shape.size()));
    for (auto extent = shape.rbegin(); extent != shape.rend(); ++extent)
      put<std::uint64_t>(infos_, static_cast<std::uint64_t>(*extent));
    put<std::uint32_t>(infos_, static_cast<std::uint32_t>(type)), put<std::uint64_t>(infos_, data_.size());
    const auto each = static_cast<std::size_t>(block_numbers(type));
    for (std::size_t at = 0; at < count; at += each) put_block(type, values.data() + at);
    data_.resize((data_.size() + 31) / 32 * 32);
  }
  std::string content() const {
    std::string out = "GGUF";
    put<std::uint32_t>(out, 3), put<std::uint64_t>(out, tensors_), put<std::uint64_t>(out, keys_);
    out += header_ + infos_;
    out.resize((out.size() + 31) / 32 * 32);
    return out + data_;
  }
  void write(const std::filesystem::path& path) const { std::ofstream(path, std::ios::binary) << content(); }

 private:
  template <class T>
  static void put(std::string& to, T value) {
    to.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void put_text(std::string& to, const std::string& text) {
    put<std::uint64_t>(to, text.size()), to += text;
  }
  void put_half(float x) { put(data_, float_to_half(x)); }

  void put_block(GgmlType type, const float* x) {
    if (type == GgmlType::f32) return put(data_, *x);
    if (type == GgmlType::f16) return put_half(*x);
    if (type == GgmlType::bf16) return put(data_, float_to_bfloat16(*x));
    if (type == GgmlType::q8_0) return put_q8(x);
    type == GgmlType::q4_0 ? put_q4(x) : put_q4_k(x);
  }
  void put_q8(const float* x) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::abs(x[i]));
    const float d = largest / 127;
    put_half(d);
    for (int i = 0; i < 32; ++i) put(data_, static_cast<std::int8_t>(d > 0 ? std::lround(x[i] / d) : 0));
  }
  void put_q4(const float* x) {
    const float* end = x + 32;
    const float most = *std::max_element(x, end, [](float a, float b) { return std::abs(a) < std::abs(b); });
    const float d = most / -8;
    put_half(d);
    const auto q = [&](float v) { return static_cast<int>(d == 0 ? 8 : std::min(15.0f, v / d + 8.5f)); };
    for (int i = 0; i < 16; ++i) put(data_, static_cast<std::uint8_t>(q(x[i]) | q(x[i + 16]) << 4));
  }
  /// Scales and minima straight from the extremes of each 32 numbers, without ggml's search for better ones.
  void put_q4_k(const float* x) {
    float step[8], low[8], steps = 0, lows = 0;
    for (int j = 0; j < 8; ++j) {
      const auto [least, most] = std::minmax_element(x + 32 * j, x + 32 * j + 32);
      low[j] = std::max(0.0f, -*least), step[j] = (*most + low[j]) / 15;
      steps = std::max(steps, step[j]), lows = std::max(lows, low[j]);
    }
    const float d = steps / 63, m = lows / 63;
    int s[8], t[8];
    for (int j = 0; j < 8; ++j) {
      s[j] = d > 0 ? static_cast<int>(std::ceil(step[j] / d - 1e-4f)) : 0;
      t[j] = m > 0 ? static_cast<int>(std::lround(low[j] / m)) : 0;
      s[j] = std::min(63, s[j]), t[j] = std::min(63, t[j]);
    }
    std::uint8_t packed[12] = {};
    for (int j = 0; j < 4; ++j) {
      packed[j] = static_cast<std::uint8_t>(s[j] | (s[j + 4] >> 4) << 6);
      packed[j + 4] = static_cast<std::uint8_t>(t[j] | (t[j + 4] >> 4) << 6);
      packed[j + 8] = static_cast<std::uint8_t>((s[j + 4] & 15) | (t[j + 4] & 15) << 4);
    }
    put_half(d), put_half(m);
    data_.append(reinterpret_cast<const char*>(packed), 12);
    const auto q = [&](int j, int i) {
      const float each = d * static_cast<float>(s[j]);
      const float v = each > 0 ? (x[32 * j + i] + m * static_cast<float>(t[j])) / each : 0;
      return std::clamp(static_cast<int>(std::lround(v)), 0, 15);
    };
    for (int j = 0; j < 8; j += 2) {
      for (int i = 0; i < 32; ++i) put(data_, static_cast<std::uint8_t>(q(j, i) | q(j + 1, i) << 4));
    }
  }

  std::string header_, infos_, data_;
  std::uint64_t tensors_ = 0, keys_ = 0;
};

}  // namespace mttt::testing
