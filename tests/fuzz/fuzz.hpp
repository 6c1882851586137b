// What the fuzz targets share: a hostile file without a disk, and the promise that only an Error leaves a
// reader.
//
// A target defines seeds(), which writes files that a reader takes, and try_file(), which reads a file in
// every way that it knows. `fuzz_NAME --seeds=FOLDER` writes the seeds and ends.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>

#include "mttt/io/file.hpp"

/// Writes files worth starting from into a folder.
void seeds(const std::filesystem::path& folder);
/// Reads the file, whose content is anything at all.
void try_file(const std::filesystem::path& path, std::span<const std::byte> content);

namespace mttt::fuzz {

/// A regular file in memory, found under a path like any other.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const std::byte> content) : file_(::memfd_create("input", MFD_CLOEXEC)) {
    FileSink(file_.get(), "input").write(content);
  }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(file_.get()); }

 private:
  detail::Descriptor file_;
};

/// Runs `f`, which may be refused with a complete message; whatever else it throws is a finding.
template <class F>
bool accepted(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    const std::string_view text = error.what();
    if (text.find(": found ") != text.npos && text.find("; expected ") != text.npos) return false;
    std::fprintf(stderr, "an incomplete message: %s\n", error.what());
    std::abort();
  }
  return true;
}

inline void put(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

}  // namespace mttt::fuzz

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  constexpr std::string_view option = "--seeds=";
  for (int i = 1; i < *argc; ++i) {
    const std::string_view argument = (*argv)[i];
    if (!argument.starts_with(option)) continue;
    std::filesystem::create_directories(argument.substr(option.size()));
    seeds(argument.substr(option.size()));
    std::fflush(nullptr);
    std::_Exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const auto content = std::as_bytes(std::span(data, size));
  const mttt::fuzz::MemoryFile file(content);
  try_file(file.path(), content);
  return 0;
}
