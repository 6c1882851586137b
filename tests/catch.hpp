// Catch2, whichever of its two generations the machine has: 2.13 (Debian 12, Ubuntu 22.04) or 3.x (later).
//
// Write Approx, mttt::test::contains(text) and the macros; they mean the same in both.
//
// Shapes:  none.   Units: none.   Errors: none.
// Not supported: Catch2 before 2.13.
// Source:  none.
#pragma once

#include <string>

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;  // 2.13 has it here already
#else
#include <catch2/catch.hpp>
#endif

namespace mttt::test {

/// Matches a message that contains `text`: CHECK_THROWS_WITH(call(), contains("expected"));
inline auto contains(std::string const& text) {
#if __has_include(<catch2/catch_all.hpp>)
  return Catch::Matchers::ContainsSubstring(text);
#else
  return Catch::Matchers::Contains(text);
#endif
}

}  // namespace mttt::test
