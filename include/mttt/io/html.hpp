// Small parts of a web page that needs nothing else: escaped text, numbers for reading, data URIs.
//
// Shapes:  none.   Units: bytes.
// Errors:  none: what is not UTF-8, and control characters, become U+FFFD.
// Not supported: text inside <script> and <style>, which other rules escape.
// Source:  HTML Living Standard 13.1.2; RFC 4648 section 4 (base64); RFC 3629 (UTF-8).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

namespace mttt {
namespace detail {

/// Bytes of the UTF-8 character that `text` starts with; 0 when it starts with none.
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(0);
  if (first < 0x80) return text.empty() ? 0 : 1;
  const std::size_t length = first >= 0xf0 ? 4 : (first >= 0xe0 ? 3 : 2);
  if (first < 0xc2 || first > 0xf4) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  const unsigned second = byte(1);  // overlong forms, surrogates, beyond U+10FFFF
  const bool wrong = (first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ||
                     (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f);
  return wrong ? 0 : length;
}

}  // namespace detail

/// Text made fit for the content of an element and for a quoted attribute.
inline std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  while (!text.empty()) {
    const std::size_t length = detail::utf8_length(text);
    const char c = text.front();
    const bool control = length == 1 && ((c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == 0x7f);
    if (c == '\r') {  // line ends of other systems
    } else if (length == 0 || control) {
      out += "\xef\xbf\xbd";
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

inline std::string base64(std::span<const std::byte> bytes) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t have = bytes.size() - i;
    const auto byte = [&](std::size_t j) {
      return j < have ? std::to_integer<std::uint32_t>(bytes[i + j]) : 0;
    };
    const std::uint32_t group = byte(0) << 16 | byte(1) << 8 | byte(2);
    for (std::size_t j = 0; j < 4; ++j) out += j <= have ? alphabet[group >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

inline std::string data_uri(std::string_view mime, std::span<const std::byte> bytes) {
  return std::string("data:").append(mime).append(";base64,") + base64(bytes);
}

/// A number with so many significant digits, as a person writes it: "0.0123", "12 345", "1.5e-7", "NaN".
inline std::string number_text(double value, int digits = 4) {
  if (!std::isfinite(value)) return std::isnan(value) ? "NaN" : (value > 0 ? "\u221e" : "\u2212\u221e");
  const double size = std::abs(value);
  char text[64];
  if (size != 0 && (size < 1e-4 || size >= 1e15)) {
    std::snprintf(text, sizeof text, "%.*e", digits - 1, size);
    std::string out = text;  // "1.500e-07": zeros go, before and after the e
    std::size_t e = out.find('e'), end = e;
    while (out[end - 1] == '0') --end;
    if (out[end - 1] == '.') --end;
    out.erase(end, e - end);
    e = out.find('e') + 1;
    if (out[e] == '+') out.erase(e, 1);
    if (out[e] == '-') ++e;
    while (out[e] == '0') out.erase(e, 1);
    return (value < 0 ? "\u2212" : "") + out;
  }
  const int before = size < 1 ? 0 : static_cast<int>(std::floor(std::log10(size))) + 1;
  const int leading = size == 0 || size >= 1 ? 0 : -static_cast<int>(std::floor(std::log10(size))) - 1;
  std::snprintf(text, sizeof text, "%.*f", std::max(0, digits - before + leading), size);
  std::string out = text;
  if (out.find('.') != std::string::npos) {
    while (out.back() == '0') out.pop_back();
    if (out.back() == '.') out.pop_back();
  }
  const std::size_t whole = std::min(out.find('.'), out.size());
  for (std::size_t at = whole; whole > 4 && at > 3;)
    out.insert(at -= 3, "\u202f");  // four are read at a glance
  return (value < 0 && out != "0" ? "\u2212" : "") + out;
}

}  // namespace mttt
