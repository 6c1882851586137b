// A program outside the library. second.cpp includes the same headers: both must link together.
#include <iostream>

#include "mttt_headers.hpp"

void second();

int main() {
  try {
    second();
  } catch (mttt::Error const& error) {
    std::cout << error.what() << '\n';
    return 0;
  }
  return 1;
}
