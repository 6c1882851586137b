// JSON from outside: as nlohmann::json::parse, but refused where it is made to overwhelm what walks it.
//
// Parsing takes any depth, but walking, flattening and printing a value call themselves once a level: a small
// file of brackets alone would fill the stack. An ordered object looks each key up among all before it.
//
// Shapes:  none.   Units: none.
// Errors:  none; a text that is refused gives a discarded value, and `problem` says why.
// Not supported: more than 100 levels; ordered values of more than 5,000 keys.
// Source:  RFC 8259, section 9: a parser may limit the depth of nesting.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <type_traits>

namespace mttt::detail {

inline constexpr int json_depth_limit = 100;
inline constexpr int ordered_keys_limit = 5'000;

template <class Json = nlohmann::json>
Json parse_json(std::string_view text, std::string* problem = nullptr) {
  struct Refused {
    const char* why;
  };
  using Event = typename Json::parse_event_t;
  int keys = 0;
  const auto watch = [&](int depth, Event event, Json&) {
    if (depth >= json_depth_limit && (event == Event::object_start || event == Event::array_start))
      throw Refused{"JSON nested in over 100 levels"};
    if constexpr (std::is_same_v<Json, nlohmann::ordered_json>) {
      if (event == Event::key && ++keys > ordered_keys_limit) throw Refused{"JSON of over 5000 keys"};
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Refused& refused) {
    if (problem != nullptr) *problem = refused.why;
  } catch (const nlohmann::json::exception& error) {
    if (problem != nullptr) *problem = error.what();
  }
  return Json(Json::value_t::discarded);
}

}  // namespace mttt::detail
