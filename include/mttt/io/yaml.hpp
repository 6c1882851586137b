// YAML files into aggregates that name their members, with every problem told by its line.
//
// An aggregate lists its keys once, each with the numbers that it may hold:
//   static void visit(auto&& f, auto& s) { f("lr", s.lr, Above{0}); f("lora", s.lora); }
// A member is a bool, a whole number, a double, a std::string, a std::optional of these (null empties it), a
// std::vector, a type that names joins_lists and holds a text (a list becomes "a,b"), or another such aggregate. f("wandb", Elsewhere{"..."}) takes a key that has no effect here and
// says why. Keys that the file leaves out keep their values.
//
// Shapes:  none.   Units: none.
// Errors:  what is no YAML; a key that is unknown (with the one that was perhaps meant) or given twice, a value
//          of another type or out of range: all of them in one message, with their lines. A file over 1 MB.
// Not supported: several documents in a file; merge keys (<<).
// Source:  YAML 1.2; yaml-cpp.
#pragma once

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "mttt/io/config.hpp"
#include "mttt/io/matcher.hpp"

namespace mttt {

/// What a number may be.
struct Range {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
  bool open = false;  // low itself is out

  bool holds(double x) const { return (open ? x > low : x >= low) && x <= high; }
  std::string text() const {
    const bool bounded = std::isfinite(high);
    if (!std::isfinite(low)) return bounded ? detail::cat("at most ", high) : "any number";
    if (open) return bounded ? detail::cat("above ", low, " and at most ", high) : detail::cat("above ", low);
    return bounded ? detail::cat("from ", low, " to ", high) : detail::cat("at least ", low);
  }
};
inline Range above(double low) { return {.low = low, .open = true}; }
inline Range at_least(double low) { return {.low = low}; }
inline Range between(double low, double high) { return {.low = low, .high = high}; }

/// A key that files of this kind have and that has no effect here.
struct Elsewhere {
  std::string why;
};

/// One of a few words.
struct OneOf {
  std::vector<std::string> words;
};

/// Where in the file keys were given, "ttt.layers" to its line; and which of them have no effect.
struct YamlKeys {
  std::string path;
  std::map<std::string, int> lines;
  std::vector<std::string> notes;

  bool given(const std::string& key) const { return lines.contains(key); }
  /// "line 12, 'ttt.layers'"; without a line where the key was left out.
  std::string place(const std::string& key) const {
    const auto found = lines.find(key);
    return found == lines.end() ? detail::cat("'", key, "' (left out)")
                                : detail::cat("line ", found->second, ", '", key, "'");
  }
};

namespace detail {

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

class YamlReader {
 public:
  YamlReader(YamlKeys& keys, Problems& problems) : keys_(keys), problems_(problems) {}

  template <class S>
  void section(const YAML::Node& map, const std::string& prefix, S& to) {
    std::map<std::string, YAML::Node> found;
    for (const auto& item : map) {
      const YAML::Node& key = item.first;
      const int line = key.Mark().line + 1;
      if (!key.IsScalar()) {
        problems_.add("line ", line, ": found a key that is no word");
        continue;
      }
      const std::string name = key.Scalar();
      if (!found.emplace(name, item.second).second)
        problems_.add("line ", line, ": found ", quote(name), " a second time");
      keys_.lines.emplace(prefix + name, line);
    }
    std::vector<std::string> known;
    const auto member = [&]<class M>(std::string_view name, M&& value, const auto&... may) {
      known.emplace_back(name);
      const auto node = found.find(known.back());
      if (node == found.end()) return;
      if constexpr (std::is_same_v<std::remove_cvref_t<M>, Elsewhere>) {
        keys_.notes.push_back(cat(keys_.place(prefix + known.back()), " has no effect: ", value.why));
      } else {
        read(node->second, prefix + known.back(), value, may...);
      }
      found.erase(node);
    };
    S::visit(member, to);
    for (const auto& [name, value] : found) unknown(prefix, name, known);
  }

 private:
  void unknown(const std::string& prefix, const std::string& name, const std::vector<std::string>& known) {
    const auto nearest = std::min_element(known.begin(), known.end(), [&](const auto& a, const auto& b) {
      return edit_distance(a, name) < edit_distance(b, name);
    });
    const bool close = nearest != known.end() && edit_distance(*nearest, name) <= 1 + name.size() / 4;
    problems_.add("line ", keys_.lines[prefix + name], ": found the unknown key ", quote(prefix + name),
                  close ? cat("; did you mean '", *nearest, "'?") : std::string());
  }

  template <class T, class... May>
  void read(const YAML::Node& node, const std::string& name, T& to, const May&... may) {
    if constexpr (is_optional<T>) {
      if (node.IsNull()) {
        to.reset();
      } else {
        read(node, name, to.emplace(), may...);
      }
    } else if constexpr (is_vector<T>) {
      if (!node.IsSequence()) return refuse(node, name, "a list");
      to.clear();
      for (std::size_t i = 0; i < node.size(); ++i)
        read(node[i], cat(name, "[", i, "]"), to.emplace_back(), may...);
    } else if constexpr (requires { T::joins_lists; }) {
      std::vector<std::string> items;
      if (node.IsSequence()) {
        read(node, name, items);
        to.text.clear();
        for (const auto& item : items) to.text += (to.text.empty() ? "" : ",") + item;
      } else {
        scalar(node, name, to.text);
      }
    } else if constexpr (!std::is_arithmetic_v<T> && !std::is_same_v<T, std::string>) {
      if (node.IsNull()) return;  // "lora:" and nothing below it
      if (!node.IsMap()) return refuse(node, name, "keys with values");
      section(node, name + ".", to);
    } else {
      scalar(node, name, to, may...);
    }
  }

  template <class T, class... May>
  void scalar(const YAML::Node& node, const std::string& name, T& to, const May&... may) {
    const auto line = [&] { return keys_.lines.emplace(name, node.Mark().line + 1).first->second; };
    T value{};
    if (!node.IsScalar() || !convert(node, value)) return refuse(node, name, kind(to));
    if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
      const Range range{may...};
      if (!std::isfinite(static_cast<double>(value)) || !range.holds(static_cast<double>(value))) {
        problems_.add("line ", line(), ", '", name, "': found ", node.Scalar(), ", expected ", range.text());
        return;
      }
    }
    if constexpr (std::is_same_v<T, std::string> && sizeof...(May) > 0) {
      const OneOf one{may...};
      if (std::find(one.words.begin(), one.words.end(), value) == one.words.end()) {
        std::string words;
        for (const auto& word : one.words) words += (words.empty() ? "'" : ", '") + word + "'";
        problems_.add("line ", line(), ", '", name, "': found ", quote(value), ", expected one of ", words);
        return;
      }
    }
    to = std::move(value);
  }

  template <class T>
  static bool convert(const YAML::Node& node, T& value) {
    // A quoted number is a text, and an unquoted text may be anything.
    if constexpr (std::is_same_v<T, std::string>) {
      value = node.Scalar();
      return true;
    } else {
      return node.Tag() != "!" && YAML::convert<T>::decode(node, value);
    }
  }
  static const char* kind(bool) { return "true or false"; }
  template <class T>
  static const char* kind(const T&) {
    if constexpr (std::is_same_v<T, std::string>) return "a text";
    return std::is_floating_point_v<T> ? "a number" : "a whole number";
  }
  void refuse(const YAML::Node& node, const std::string& name, const char* expected) {
    const std::string found = node.IsNull()       ? "nothing"
                              : node.IsScalar()   ? quote(node.Scalar())
                              : node.IsSequence() ? "a list"
                                                  : "keys with values";
    problems_.add("line ", node.Mark().line + 1, ", '", name, "': found ", found, ", expected ", expected);
  }

  YamlKeys& keys_;
  Problems& problems_;
};

}  // namespace detail

/// Reads the file over the defaults that `to` holds. Where keys stand, and what had no effect, is answered.
template <class S>
YamlKeys read_yaml(const std::filesystem::path& path, S& to) {
  const WholeFile file(path);
  constexpr std::size_t most = 1 << 20;
  constexpr const char* advice = "correct the file";
  if (file.text().size() > most)
    fail(path.string(), detail::cat(file.text().size(), " bytes"), "a configuration of at most 1 MB", advice);
  YamlKeys keys{path.string(), {}, {}};
  detail::Problems problems;
  try {
    const YAML::Node root = YAML::Load(std::string(file.text()));
    if (!root.IsMap()) fail(path.string(), root.IsNull() ? "nothing" : "no keys", "keys with values", advice);
    detail::YamlReader(keys, problems).section(root, "", to);
  } catch (const YAML::Exception& error) {
    fail(path.string(), detail::cat("line ", error.mark.line + 1, ": ", detail::quote(error.msg)), "YAML",
         advice);
  }
  problems.stop(path.string(), "known keys, each once, with values of their types and in their ranges",
                advice);
  return keys;
}

}  // namespace mttt
