// Part of a program that was compiled for several vector widths (widths.cmake): before it does anything, it
// becomes the one for this processor, which lies in a folder beside it. One that is not there is done without.
// MTTT_WIDTH=x86-64-v3 in the environment takes that one, any other word none.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

namespace {

/// The widest first.
std::vector<std::string> widths_here() {
  if (const char* wanted = std::getenv("MTTT_WIDTH")) return {wanted};
  std::vector<std::string> widths;
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) widths.emplace_back("x86-64-v4");
  if (v3) widths.emplace_back("x86-64-v3");
  return widths;
}

[[gnu::constructor]] void become_wide(int, char** arguments, char**) {
  std::error_code none;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", none);
  if (none) return;
  for (const auto& width : widths_here()) {
    if (width.starts_with("x86-64-v"))
      ::execv((self.parent_path() / width / self.filename()).c_str(),
              arguments);  // returns if it is not there
  }
}

}  // namespace
