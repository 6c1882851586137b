// What a sentencepiece model must keep to, since that library follows the model's tables unchecked.
//
// Layout:  a ModelProto: field 1 pieces {1 text, 3 type}, 3 and 5 rules for (de)normalising {2 charsmap}. A
//          charsmap is the byte length of a double array, the array, and the replacements, each ended by a
//          zero. A unit of the array holds its label in bits 0 to 7 and 31, in bit 8 whether a value follows,
//          in bits 9 to 31 the offset of its children. A node with children at `base` reads units
//          base ^ byte; a value lies at `base`.
// Shapes:  none.   Units: bytes.
// Errors:  none; model_problem answers what is wrong, or nothing.
// Not supported: groups, which no sentencepiece model has.
// Source:  google/sentencepiece sentencepiece_model.proto and Normalizer; darts-clone, DoubleArrayUnit; the
//          encoding of protocol buffers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mttt::detail {

/// The fields of a serialised message, one after the other.
class ProtoFields {
 public:
  explicit ProtoFields(std::string_view message) : rest_(message) {}

  std::uint64_t number = 0, value = 0;  // of a field that holds a number
  std::string_view bytes;               // of one that holds bytes
  bool is_bytes = false;

  /// False at the end, and where the message is damaged.
  bool next() {
    if (rest_.empty()) return false;
    std::uint64_t key = 0;
    if (!varint(key)) return damage();
    number = key >> 3;
    is_bytes = (key & 7) == 2;
    value = 0, bytes = {};
    if (number == 0) return damage();
    switch (key & 7) {
      case 0:
        return varint(value) || damage();
      case 1:
        return take(8) || damage();
      case 2:
        return (varint(value) && take(value)) || damage();
      case 5:
        return take(4) || damage();
      default:
        return damage();
    }
  }
  bool damaged() const { return damaged_; }

 private:
  bool damage() {
    damaged_ = true;
    return false;
  }
  bool varint(std::uint64_t& out) {
    out = 0;
    for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      out |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool take(std::uint64_t size) {
    if (size > rest_.size()) return false;
    bytes = rest_.substr(0, static_cast<std::size_t>(size));
    rest_.remove_prefix(bytes.size());
    return true;
  }

  std::string_view rest_;
  bool damaged_ = false;
};

/// Follows every path through the double array of a charsmap, as a search for any text at all might.
class CharsmapWalk {
 public:
  explicit CharsmapWalk(std::string_view blob) {
    std::uint32_t size = 0;
    if (blob.size() < sizeof size) return;
    std::memcpy(&size, blob.data(), sizeof size);
    blob.remove_prefix(sizeof size);
    if (size < sizeof(std::uint32_t) || size >= blob.size() || blob.back() != '\0') return;
    units_.resize(size / sizeof(std::uint32_t));
    std::memcpy(units_.data(), blob.data(), units_.size() * sizeof(std::uint32_t));
    replacements_ = blob.size() - size;
    most_.assign(units_.size(), unseen);
    sound_ = walk();
  }
  bool sound() const { return sound_; }

 private:
  static constexpr int unseen = -1, open = -2;
  static constexpr int matches_limit = 32;  // the library has room for so many on one path

  struct Step {
    std::uint32_t node, base;
    std::uint32_t next = 0;  // the byte to follow next
    int below = 0;           // most values on any path further down
  };

  bool enter(std::uint32_t node) {
    const std::uint32_t unit = units_[node];
    const std::uint32_t base = node ^ ((unit >> 10) << ((unit & (1u << 9)) >> 6));
    if ((base | 0xffu) >= units_.size()) return false;
    if (has_value(node) && (units_[base] & 0x7fffffffu) >= replacements_) return false;
    most_[node] = open;
    path_.push_back({node, base});
    return true;
  }
  bool has_value(std::uint32_t node) const { return node != 0 && (units_[node] >> 8 & 1) != 0; }

  bool walk() {
    if (!enter(0)) return false;
    while (!path_.empty()) {
      Step& step = path_.back();
      if (step.next == 256) {
        const int most = step.below + (has_value(step.node) ? 1 : 0);
        if (most > matches_limit) return false;
        most_[step.node] = most;
        path_.pop_back();
        if (!path_.empty()) path_.back().below = std::max(path_.back().below, most);
        continue;
      }
      const std::uint32_t byte = step.next++, child = step.base ^ byte;
      if ((units_[child] & 0x800000ffu) != byte) continue;
      if (most_[child] == open) return false;  // a circle: texts of any length match
      if (most_[child] == unseen) {
        if (!enter(child)) return false;
      } else {
        step.below = std::max(step.below, most_[child]);
      }
    }
    return true;
  }

  std::vector<std::uint32_t> units_;
  std::vector<int> most_;  // values on the path from a node down, where that has most
  std::vector<Step> path_;
  std::size_t replacements_ = 0;
  bool sound_ = false;
};

/// Whether no text begins with too many of the pieces.
inline bool few_nested(std::vector<std::string_view> pieces) {
  constexpr std::size_t limit = 64;  // the library has room for so many
  std::sort(pieces.begin(), pieces.end());
  std::vector<std::string_view> nested;
  for (const auto piece : pieces) {
    while (!nested.empty() && !piece.starts_with(nested.back())) nested.pop_back();
    nested.push_back(piece);
    if (nested.size() > limit) return false;
  }
  return true;
}

/// What makes a model dangerous to run.
inline std::optional<std::string> model_problem(std::string_view model) {
  constexpr std::uint64_t user_defined = 4;
  std::vector<std::string_view> symbols;
  ProtoFields fields(model);
  while (fields.next()) {
    if (!fields.is_bytes) continue;
    ProtoFields inner(fields.bytes);
    if (fields.number == 1) {
      std::string_view piece;
      bool symbol = false;
      while (inner.next()) {
        if (inner.number == 1 && inner.is_bytes) piece = inner.bytes;
        if (inner.number == 3 && !inner.is_bytes)
          symbol |= static_cast<std::uint32_t>(inner.value) == user_defined;
      }
      if (symbol) symbols.push_back(piece.substr(0, piece.find('\0')));
    } else if (fields.number == 3 || fields.number == 5) {
      while (inner.next()) {
        if (inner.number == 2 && inner.is_bytes && !inner.bytes.empty() && !CharsmapWalk(inner.bytes).sound())
          return "rules for characters that lead out of their table";
      }
    } else {
      continue;  // what this field holds is none of our business
    }
    if (inner.damaged()) return "damaged fields";
  }
  if (fields.damaged()) return "damaged fields";
  if (!few_nested(std::move(symbols))) return "over 64 symbols that begin with one another";
  return std::nullopt;
}

}  // namespace mttt::detail
