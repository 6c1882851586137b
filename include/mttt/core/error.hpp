// The one exception type of the library, and the one way to raise it.
//
// Every message answers three questions: what was found, what was expected, what to do about it.
//
// Shapes:  none.   Units: none.
// Errors:  Error, thrown by fail().
// Not supported: error codes; a program that must not throw wraps the call.
// Source:  none.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace mttt {

/// Thrown for every bad input and every broken promise that a caller can repair.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Raises Error with "subject: found X; expected Y; to do Z".
[[noreturn]] inline void fail(std::string_view subject, std::string_view found, std::string_view expected,
                              std::string_view advice = {}) {
  std::string text;
  text.reserve(subject.size() + found.size() + expected.size() + advice.size() + 32);
  text.append(subject).append(": found ").append(found).append("; expected ").append(expected);
  if (!advice.empty()) text.append("; ").append(advice);
  throw Error(text);
}

}  // namespace mttt
