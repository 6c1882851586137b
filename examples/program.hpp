// How a program ends: with its own status, or with one line on stderr that says why it could not go on.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

/// Calls `work`, which answers the exit status. Text that could not be printed is an error too.
template <class F>
int run_program(const char* name, F work) {
  try {
    const int status = work();
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
    std::fprintf(stderr, "%s: standard output: found '%s'; expected a place for all that was printed\n", name,
                 std::strerror(errno));
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr,
                 "%s: memory of this machine: found no room; expected more; end other programs, or use "
                 "a shorter recording, a smaller batch or a smaller model\n",
                 name);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
  }
  return 1;
}
