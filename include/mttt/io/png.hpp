// Writes PNG pictures of 256 colours, without compression, so that no library is needed.
//
// Shapes:  pixels (height, width), one byte each, an index into the palette.
// Units:   colours 0..255, sRGB.
// Errors:  a picture without pixels, or with another number of them than its sides say.
// Not supported: true colour, transparency, compression (a picture takes width * height bytes).
// Source:  PNG specification, third edition; RFC 1950 (zlib, Adler-32), RFC 1951 3.2.4 (stored blocks).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mttt/core/error.hpp"

namespace mttt {

using Colour = std::array<std::uint8_t, 3>;  // red, green, blue
using Palette = std::array<Colour, 256>;

namespace detail {

inline std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffu;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0u);
  }
  return ~crc;
}

inline std::uint32_t adler32(std::string_view bytes) {
  std::uint32_t a = 1, b = 0;
  for (const char c : bytes) {
    a = (a + static_cast<unsigned char>(c)) % 65521;
    b = (b + a) % 65521;
  }
  return b << 16 | a;
}

inline void put_big_endian(std::string& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 255);
}

inline void put_chunk(std::string& out, std::string_view type, std::string_view data) {
  const std::string body = std::string(type).append(data);
  put_big_endian(out, static_cast<std::uint32_t>(data.size()));
  out += body;
  put_big_endian(out, crc32(body));
}

/// A zlib stream of stored blocks.
inline std::string zlib_stored(std::string_view data) {
  std::string out = "\x78\x01";
  constexpr std::size_t most = 65535;
  for (std::size_t at = 0;; at += most) {
    const std::string_view block = data.substr(at, most);
    const bool last = at + block.size() == data.size();
    const auto size = static_cast<std::uint32_t>(block.size());
    out += last ? '\1' : '\0';
    for (const std::uint32_t half : {size, ~size})
      for (const int shift : {0, 8}) out += static_cast<char>(half >> shift & 255);
    out += block;
    if (last) break;
  }
  put_big_endian(out, adler32(data));
  return out;
}

}  // namespace detail

/// The bytes of a PNG file.
inline std::string encode_png(std::span<const std::uint8_t> pixels, std::uint32_t width, std::uint32_t height,
                              const Palette& palette) {
  if (width == 0 || height == 0 || pixels.size() != std::size_t{width} * height) {
    fail("encode_png", std::to_string(pixels.size()) + " pixels",
         std::to_string(width) + " x " + std::to_string(height) + ", at least one",
         "give one byte for every pixel");
  }
  std::string rows, colours, header;
  for (std::uint32_t y = 0; y < height; ++y) {
    rows += '\0';  // this row is not filtered
    for (const std::uint8_t pixel : pixels.subspan(std::size_t{y} * width, width))
      rows += static_cast<char>(pixel);
  }
  for (const Colour& colour : palette)
    for (const std::uint8_t part : colour) colours += static_cast<char>(part);
  detail::put_big_endian(header, width);
  detail::put_big_endian(header, height);
  header += std::string_view("\x08\x03\0\0\0", 5);  // 8 bits, palette, deflate, filters, not interlaced

  std::string out = "\x89PNG\r\n\x1a\n";
  detail::put_chunk(out, "IHDR", header);
  detail::put_chunk(out, "PLTE", colours);
  detail::put_chunk(out, "IDAT", detail::zlib_stored(rows));
  detail::put_chunk(out, "IEND", {});
  return out;
}

/// Straight lines through the given colours, the first at 0 and the last at 255.
inline Palette gradient(std::span<const Colour> through) {
  Palette palette{};
  for (std::size_t i = 0; i < palette.size(); ++i) {
    const double at = static_cast<double>(i) / 255 * static_cast<double>(through.size() - 1);
    const std::size_t left = std::min(static_cast<std::size_t>(at), through.size() - 1);
    const std::size_t right = std::min(left + 1, through.size() - 1);
    for (std::size_t c = 0; c < 3; ++c) {
      const double mixed =
          through[left][c] + (at - static_cast<double>(left)) * (through[right][c] - through[left][c]);
      palette[i][c] = static_cast<std::uint8_t>(std::lround(mixed));
    }
  }
  return palette;
}

}  // namespace mttt
